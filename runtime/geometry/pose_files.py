"""Read poses that come with pictures: files of poses, UTM positions in file names, EXIF."""

from __future__ import annotations

import bisect
import codecs
import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.clocks import SECONDS_BELOW, find_step_unit, find_unit
from pairvpr.runtime.geometry.exif import exif_gps
from pairvpr.runtime.geometry.poses import UNKNOWN, Gps, Place, Pose, find_fix
from pairvpr.runtime.geometry.rotations import IDENTITY, inverse, normalize, rotate
from pairvpr.runtime.remarks import Tally, remark

POSE_COLUMNS = ["name", "x", "y", "z", "qx", "qy", "qz", "qw"]
GPS_COLUMNS = ["name", "latitude", "longitude"]  # and maybe altitude
SHORT_COLUMNS = {"lat": "latitude", "lon": "longitude", "lng": "longitude", "alt": "altitude"}
NO_FIX = "GPS positions are no fix (out of range, not finite, 0, 0 or without N, S, E or W) and are left out"
POSE_FILE_FORMS = (
    f'CSV with the header "{",".join(POSE_COLUMNS)}" or "{",".join(GPS_COLUMNS)}[,altitude]", '
    'or TUM lines "timestamp x y z qx qy qz qw"'
)
TIMED_COLUMNS = ["timestamp", "x", "y", "z", "qx", "qy", "qz", "qw"]
# Names of TIMED_COLUMNS in headers of TUM's and EuRoC's tools.
TIMED_NAMES = {
    **{name: name for name in TIMED_COLUMNS},
    **{"time": "timestamp", "t": "timestamp", "stamp": "timestamp"},
    **{f"t{axis}": axis for axis in "xyz"},
    **{f"p_rs_r_{axis}": axis for axis in "xyz"},
    **{f"q_rs_{axis}": f"q{axis}" for axis in "xyzw"},
}
COLMAP_COLUMNS = "IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME"
MAX_TIME_GAP = 0.05  # seconds between a picture's time stamp and a TUM pose that still counts as its own
LONGEST_FIELD = 100_000  # characters of a CSV field


class PoseFile(Protocol):
    """Find the places of pictures in one file.

    first: the name or time stamp of one entry, for messages.
    """

    first: str

    def find(self, name: str, timestamp: float | None = None) -> Place | None:
        """Return the place of a picture, None if the file has none for it.

        name: a relative posix path.
        timestamp: seconds, None if the picture has no time stamp.
        """
        ...


class PlaceFinder:
    """Find the places of pictures in a pose file, in the source, in a @UTM@ file name or in EXIF GPS, in this order.

    poses: the pose file, see `read_poses`.
    matched: number of pictures found in the pose file. 0 after a whole folder means that the file belongs to other
    pictures.

    Raises SourceError if the pose file cannot be used.
    """

    def __init__(self, poses: str | Path | None = None) -> None:
        self.matched = 0
        self._missed = ""  # the first picture without an entry
        self._poses = None if poses is None else read_poses(poses)
        self._no_fix = Tally(NO_FIX)
        self._degrees = Tally("names hold degrees where @UTM_east@UTM_north@ has metres, and give no place")

    def in_file(self, name: str, timestamp: float | None = None) -> bool:
        """Return whether the pose file has a place for the picture `name`."""
        return self._find(name, timestamp) is not None

    def compare(self) -> str:
        """Return one entry of the file and the first picture without an entry, for the message that none fits."""
        return "" if self._poses is None else f"the file has {self._poses.first}, a picture is {self._missed}"

    def _find(self, name: str, timestamp: float | None) -> Place | None:
        if self._poses is None:
            return None
        place = self._poses.find(name, timestamp)
        if place is None and not self._missed:
            self._missed = name if timestamp is None else f"{name} at {timestamp:.6f} s"
        return place

    def find_place(self, name: str, path: str | Path | None = None, known: Place = UNKNOWN) -> Place:
        """Return the place of the picture `name`.

        path: the picture's own file, None for a frame of a video.
        known: the place that the source gives.

        EXIF data that cannot be read gives no place. Raises SourceError if the file is missing.
        """
        if (place := self._find(name, known.timestamp)) is not None:
            self.matched += 1
            return place if known.timestamp is None else place._replace(timestamp=known.timestamp)
        if known.pose is not None or known.gps is not None:
            return known
        if (pose := utm_pose(name)) is not None:
            if not is_degrees(name):
                return known._replace(pose=pose)
            self._degrees.add(name)
        return known._replace(gps=None if path is None else exif_gps(path, self._no_fix))


def read_poses(path: str | Path) -> PoseFile:
    """Read a pose file: CSV by name, lines by time (TUM, EuRoC), or COLMAP's images.txt.

    Raises SourceError with file and line if it is missing, malformed or of another kind.
    """
    path = Path(path)
    lines = _read_lines(path)
    number, first = next(_content(lines), (0, ""))
    if not number:
        raise SourceError(f"{path} holds no poses: give {POSE_FILE_FORMS}")
    for delimiter in ",;\t":
        columns = _columns(next(csv.reader([first[:10_000]], delimiter=delimiter, skipinitialspace=True), []))
        if set(POSE_COLUMNS) <= set(columns) or set(GPS_COLUMNS) <= set(columns):
            return CsvPoses(path, lines, number, delimiter)
    comments = lines[: number - 1]
    if any(COLMAP_COLUMNS.replace(" ", "") in comment.replace(" ", "") for comment in comments) or any(
        "two lines of data per image" in comment for comment in comments
    ):
        return ColmapPoses(path, lines)
    fields = re.split(r"[,;\s]+", first.strip())
    if (order := _timed_order(first)) is not None:
        return TimedPoses(path, lines, number, order)
    if (order := next(filter(None, map(_timed_order, reversed(comments))), None)) is not None:
        return TimedPoses(path, lines, number - 1, order)
    if len(first.split()) == 8 or (len(fields) == 8 and _is_decimal(fields[0])):
        return TimedPoses(path, lines, number - 1, TimedOrder(list(range(8)), 8))
    where = f"{path}, line {number}"
    if len(fields) == 8 and fields[0].isdigit():
        raise SourceError(
            f"{where}: nothing says where the quaternion's w is: write the header "
            f'"{",".join(TIMED_COLUMNS)}" above, in the order of the columns'
        )
    if len(fields) == 12:
        raise SourceError(
            f"{where}: 12 numbers are a pose of KITTI, without name or time stamp: convert the file to TUM lines with "
            "the time stamps of the pictures"
        )
    raise SourceError(f"{where}: neither a known header nor a TUM line: give {POSE_FILE_FORMS}")


class CsvPoses:
    """Hold poses or GPS positions by picture name.

    path: the file, for messages.
    lines: the lines of the file.
    header: number of the line that names the columns, counted from 1.
    delimiter: the character between fields. Numbers may have a decimal comma unless it is a comma.
    """

    def __init__(self, path: Path, lines: list[str], header: int, delimiter: str = ",") -> None:
        self._places: dict[str, Place] = {}
        rows = _csv_rows(path, lines, header, delimiter)
        where, head = next(rows)
        columns = _columns(head)
        needed = POSE_COLUMNS if set(POSE_COLUMNS) <= set(columns) else [*GPS_COLUMNS, "altitude"]
        if any(columns.count(column) > 1 for column in needed):
            raise SourceError(f"{where}: a column is in the header twice: keep one of the two")
        if others := [cell.strip() or '""' for cell, column in zip(head, columns, strict=True) if column not in needed]:
            remark(f"{path}: the columns {', '.join(others)} are not read")
        no_fix, seen = Tally(NO_FIX), set()
        for where, row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(columns):
                raise SourceError(f"{where}: {len(row)} fields, but the header has {len(columns)}: correct it")
            fields = dict(zip(columns, row, strict=True))
            if delimiter != ",":
                fields = {name: text if name == "name" else text.replace(",", ".") for name, text in fields.items()}
            if not fields["name"].strip():
                raise SourceError(f"{where}: the name is missing: write the picture's path")
            name = PurePosixPath(fields["name"].strip()).as_posix()
            if name in seen:
                raise SourceError(f"{where}: {name} is in the file twice: keep one of the two")
            seen.add(name)
            if needed is POSE_COLUMNS:
                self._places[name] = Place(pose=read_pose([fields[column] for column in POSE_COLUMNS[1:]], where))
            elif (gps := _read_gps(fields, where)) is not None:
                self._places[name] = Place(gps=gps)
            else:
                no_fix.add(where)
        if not seen:
            raise SourceError(f"{path} has a header but no poses: add a line for each picture")
        if not self._places:
            raise SourceError(f"{path}: none of its {len(seen)} GPS positions is a fix: check the columns")
        self.first = next(iter(self._places))

    def find(self, name: str, timestamp: float | None = None) -> Place | None:
        """Return the place in the line of exactly this name."""
        return self._places.get(PurePosixPath(name).as_posix())


class TimedOrder(NamedTuple):
    """Hold the position of each of TIMED_COLUMNS in a line, and the number of fields of a line."""

    positions: list[int]
    width: int


class TimedPoses:
    """Hold poses by time, for pictures that have a time stamp or a file stem that is one.

    A stem is a time in seconds with a decimal point (TUM), or an integer of nanoseconds (EuRoC) or whole seconds.
    An integer of fewer than 10 digits or with leading zeros is a running number, which would match a trajectory that
    starts at 0.

    Time stamps of the file that cannot be seconds are converted to seconds. Lines whose pose is not finite, which
    trackers write when they are lost, are left out. Both are remarked.

    path: the file, for messages.
    lines: the lines of the file.
    header: number of the line above the first pose.
    order: the order of the fields of a line, which commas, semicolons or spaces separate.
    """

    def __init__(self, path: Path, lines: list[str], header: int, order: TimedOrder) -> None:
        by_time: dict[float, Pose] = {}
        whole = True
        lost = Tally("lines hold no finite pose and are left out")
        for number, line in _content(lines):
            if number <= header:
                continue
            where = f"{path}, line {number}"
            fields = _timed_fields(line)
            if len(fields) != order.width:
                named = ' of "timestamp x y z qx qy qz qw"' if order.width == 8 else " of the header"
                raise SourceError(f"{where}: {len(fields)} fields, not the {order.width}{named}")
            stamp, *values = (fields[position] for position in order.positions)
            whole = whole and not _is_decimal(stamp)
            time = read_number(stamp, where)
            if time in by_time:
                raise SourceError(f"{where}: time stamp {stamp} is in the file twice: keep one of the two")
            if any(_is_not_finite(value) for value in values):
                lost.add(where)
            else:
                by_time[time] = read_pose(values, where)
        if not by_time:
            raise SourceError(f"{path} holds no finite pose: give {POSE_FILE_FORMS}")
        unit = find_step_unit(sorted(by_time), whole=whole)
        if unit is None:
            raise SourceError(
                f"{path}: the time stamps {min(by_time):g} to {max(by_time):g} may be no seconds, and their unit is "
                "not clear: write seconds with a decimal point"
            )
        if unit[1] != 1:
            remark(f"{path}: the time stamps are {unit[0]}, and are converted to seconds")
        self._by_time = {time / unit[1]: pose for time, pose in by_time.items()}
        self._times = sorted(self._by_time)
        self.first = f"time stamp {self._times[0]:.6f} s"

    def find(self, name: str, timestamp: float | None = None) -> Place | None:
        """Return the pose nearest in time and the picture's time stamp, None if it is over MAX_TIME_GAP away."""
        for stamp in _stamps(PurePosixPath(name).stem) if timestamp is None else [timestamp]:
            index = bisect.bisect_left(self._times, stamp)
            around = self._times[max(index - 1, 0) : index + 1]
            nearest = min(around, key=lambda time: abs(time - stamp))
            # Unix time in float64 is exact to 2e-7 s, so allow for rounding.
            if abs(nearest - stamp) <= MAX_TIME_GAP + 1e-6:
                return Place(pose=self._by_time[nearest], timestamp=stamp)
        return None


class ColmapPoses:
    """Hold the poses of the cameras in COLMAP's images.txt, by picture name.

    The file has the transform from the world to the camera, in two lines a picture. The second may be empty.
    """

    def __init__(self, path: Path, lines: list[str]) -> None:
        self._places: dict[str, Place] = {}
        lines = lines[: len(lines) - (lines[-1:] == [""])]
        numbered = [(i, line) for i, line in enumerate(lines, start=1) if not line.lstrip().startswith("#")]
        for number, line in numbered[::2]:
            where = f"{path}, line {number}"
            fields = line.split(maxsplit=9)
            if len(fields) != 10:
                raise SourceError(f'{where}: {len(fields)} fields, not the 10 of "{COLMAP_COLUMNS}": correct it')
            name = PurePosixPath(fields[9].strip()).as_posix()
            if name in self._places:
                raise SourceError(f"{where}: {name} is in the file twice: keep one of the two")
            qw, qx, qy, qz, *position = fields[1:8]
            to_camera = read_pose([*position, qx, qy, qz, qw], where)
            turn = inverse(to_camera.q or IDENTITY)
            x, y, z = (-rotate(turn, np.array([to_camera.x, to_camera.y, to_camera.z]))).tolist()
            self._places[name] = Place(pose=Pose(x, y, z, turn))
        self.first = next(iter(self._places))
        remark(f"{path}: positions of COLMAP are taken for metres, which they are only if the model was scaled")

    def find(self, name: str, timestamp: float | None = None) -> Place | None:
        """Return the place of the picture of exactly this name."""
        return self._places.get(PurePosixPath(name).as_posix())


def utm_pose(name: str) -> Pose | None:
    """Return the pose in a file name `@UTM_east@UTM_north@zone number@zone letter@...`, as many data sets have them.

    The frame is "utm17T" if the name has the zone, else "utm". Return None if the name is not of this form.
    """
    fields = PurePosixPath(name).stem.split("@")
    if len(fields) < 3 or fields[0] or not all(re.fullmatch(r"-?\d+(\.\d+)?", f) for f in fields[1:3]):
        return None
    zone = re.fullmatch(r"(0?[1-9]|[1-5]\d|60)@([C-HJ-NP-X])", "@".join(fields[3:5]))
    frame = "utm" if zone is None else f"utm{int(zone[1])}{zone[2]}"
    return Pose(float(fields[1]), float(fields[2]), 0.0, frame=frame)


def named_pose(name: str) -> Pose | None:
    """Return the pose in a file name like `utm_pose`, None if its numbers are degrees."""
    return None if is_degrees(name) else utm_pose(name)


def is_degrees(name: str) -> bool:
    """Return whether the two numbers of a `@UTM_east@UTM_north@` name look like longitude and latitude in degrees.

    Both are small enough for degrees, and have the 4 or more decimals that metres never need.
    """
    fields = PurePosixPath(name).stem.split("@")[1:3]
    if utm_pose(name) is None or not all(re.fullmatch(r"-?\d+\.\d{4,}", field) for field in fields):
        return False
    first, second = (abs(float(field)) for field in fields)
    return max(first, second) <= 180 and min(first, second) <= 90


def _content(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines, without blank lines and comments."""
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a text file in UTF-8, or in UTF-16 with a byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"the pose file {path} cannot be read ({error.strerror}): check the path") from error
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        raise SourceError(f"{path} is not a text file: give {POSE_FILE_FORMS}") from None
    if "\0" in text:
        raise SourceError(f"{path} is not a text file in UTF-8: save it as UTF-8")
    return text.split("\n")


def _timed_order(header: str) -> TimedOrder | None:
    """Return the order of the columns that a header names, None if it lacks one of TIMED_COLUMNS.

    The header may be a comment, and may have units in brackets.
    """
    names = re.split(r"[,;\s]+", re.sub(r"\[[^\]]*\]", "", header.lower()).strip(" #\t\r,;"))
    columns = [TIMED_NAMES.get(name.strip('"'), "") for name in names]
    if any(columns.count(column) != 1 for column in TIMED_COLUMNS):
        return None
    return TimedOrder([columns.index(column) for column in TIMED_COLUMNS], len(columns))


def _timed_fields(line: str) -> list[str]:
    """Return the fields of a line, which commas, semicolons or spaces separate."""
    separator = next((each for each in ";," if each in line), None)
    fields = [field.strip() for field in line.strip().split(separator)]
    return fields[:-1] if separator and not fields[-1] else fields


def _is_decimal(text: str) -> bool:
    """Return whether a number is written with a decimal point or an exponent."""
    return re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+(\.\d*)?e[+-]?\d+)", text.strip().lower()) is not None


def _csv_rows(path: Path, lines: list[str], first: int, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows from line `first` on, each with its file and line for messages."""
    reader = csv.reader(lines[first - 1 :], delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            where = f"{path}, line {first - 1 + reader.line_num}"
            # The csv module's own limit can be changed by any library in the process.
            if max(map(len, row), default=0) > LONGEST_FIELD:
                raise SourceError(f"{where}: field larger than {LONGEST_FIELD} characters: correct it")
            yield where, row
    except csv.Error as error:
        raise SourceError(f"{path}, line {first - 1 + reader.line_num}: {error}: correct it") from error


def _stamps(stem: str) -> list[float]:
    """Return the times in seconds that a file stem may mean."""
    if re.fullmatch(r"\d+\.\d+", stem):
        return [float(stem)] if float(stem) < SECONDS_BELOW else []
    if not re.fullmatch(r"[1-9]\d{9,24}", stem):
        return []
    unit = find_unit(float(stem))
    # A clock that does not start in 1970 counts nanoseconds, as in EuRoC.
    return list(dict.fromkeys([*([] if unit is None else [int(stem) / unit[1]]), int(stem) / 1e9]))


def _columns(cells: list[str]) -> list[str]:
    """Return the names of a header's columns in lower case, "" for those that are not read."""
    names = [SHORT_COLUMNS.get(cell.strip().lower(), cell.strip().lower()) for cell in cells]
    return [name if name in (*POSE_COLUMNS, *GPS_COLUMNS, "altitude") else "" for name in names]


def _read_gps(fields: Mapping[str, str], where: str) -> Gps | None:
    """Return the GPS position of a CSV line, None if it is no fix. Raise SourceError for text that is not a number."""
    altitude = fields.get("altitude", "").strip()
    latitude, longitude = (_read_float(fields[column], where) for column in GPS_COLUMNS[1:])
    return find_fix(latitude, longitude, _read_float(altitude, where) if altitude else None)


def _is_not_finite(text: str) -> bool:
    return text.strip().lower().lstrip("+-") in ("nan", "inf", "infinity")


def read_pose(values: Sequence[str], where: str) -> Pose:
    """Parse a pose in the frame "map" from x, y, z, qx, qy, qz, qw. The quaternion is normalized.

    where: the file and line, for errors.

    Raises SourceError for text that is not a finite number, and for a zero quaternion.
    """
    x, y, z, qx, qy, qz, qw = (read_number(value, where) for value in values)
    q = normalize((qx, qy, qz, qw))
    if q is None:
        raise SourceError(f"{where}: the quaternion is zero: write x,y,z,w = 0,0,0,1 for no rotation")
    return Pose(x, y, z, q)


def read_number(text: str, where: str) -> float:
    """Parse a finite number. Raise SourceError, which names `where`, for anything else."""
    value = _read_float(text, where)
    if not math.isfinite(value):
        raise SourceError(f"{where}: {text.strip()} is not a finite number: correct it")
    return value


def _read_float(text: str, where: str) -> float:
    """Parse a number that need not be finite."""
    try:
        return float(text)
    except ValueError:
        raise SourceError(f"{where}: {text.strip()!r} is not a number: correct it") from None
