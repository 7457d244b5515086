"""Read poses that come with pictures: CSV and TUM files, UTM positions in file names, EXIF."""

from __future__ import annotations

import bisect
import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from PIL import ExifTags, TiffImagePlugin

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.clocks import SECONDS_BELOW, find_unit
from pairvpr.runtime.geometry.poses import UNKNOWN, Gps, Place, Pose, find_fix
from pairvpr.runtime.geometry.rotations import normalize
from pairvpr.runtime.image import open_picture, pillow_reads
from pairvpr.runtime.remarks import Tally, remark

POSE_COLUMNS = ["name", "x", "y", "z", "qx", "qy", "qz", "qw"]
GPS_COLUMNS = ["name", "latitude", "longitude"]  # and maybe altitude
SHORT_COLUMNS = {"lat": "latitude", "lon": "longitude", "lng": "longitude", "alt": "altitude"}
NO_FIX = "GPS positions are no fix (out of range, not finite, 0, 0 or without N, S, E or W) and are left out"
POSE_FILE_FORMS = (
    f'CSV with the header "{",".join(POSE_COLUMNS)}" or "{",".join(GPS_COLUMNS)}[,altitude]", '
    'or TUM lines "timestamp x y z qx qy qz qw"'
)
MAX_TIME_GAP = 0.05  # seconds between a picture's time stamp and a TUM pose that still counts as its own
LONGEST_FIELD = 100_000  # characters of a CSV field


class PoseFile(Protocol):
    """Find the places of pictures in one file."""

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
        self._poses = None if poses is None else read_poses(poses)
        self._no_fix = Tally(NO_FIX)
        self._degrees = Tally("names hold degrees where @UTM_east@UTM_north@ has metres, and give no place")

    def in_file(self, name: str, timestamp: float | None = None) -> bool:
        """Return whether the pose file has a place for the picture `name`."""
        return self._poses is not None and self._poses.find(name, timestamp) is not None

    def find_place(self, name: str, path: str | Path | None = None, known: Place = UNKNOWN) -> Place:
        """Return the place of the picture `name`.

        path: the picture's own file, None for a frame of a video.
        known: the place that the source gives.

        EXIF data that cannot be read gives no place. Raises SourceError if the file is missing.
        """
        if self._poses is not None and (place := self._poses.find(name, known.timestamp)) is not None:
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
    """Read a CSV or TUM pose file. Raise SourceError with file and line if it is missing or malformed."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise SourceError(f"{path} is not a text file: give {POSE_FILE_FORMS}") from None
    except OSError as error:
        raise SourceError(f"the pose file {path} cannot be read ({error.strerror}): check the path") from error
    number, first = next(_content(lines), (0, ""))
    if not number:
        raise SourceError(f"{path} holds no poses: give {POSE_FILE_FORMS}")
    columns = _columns(next(csv.reader([first[:10_000]], skipinitialspace=True), []))
    if set(POSE_COLUMNS) <= set(columns) or set(GPS_COLUMNS) <= set(columns):
        return CsvPoses(path, lines, number)
    if len(first.split()) == 8:
        return TumPoses(path, lines)
    raise SourceError(f"{path}, line {number}: neither a known header nor a TUM line: give {POSE_FILE_FORMS}")


class CsvPoses:
    """Hold poses or GPS positions by picture name.

    path: the file, for messages.
    lines: the lines of the file.
    header: number of the line that names the columns, counted from 1.
    """

    def __init__(self, path: Path, lines: list[str], header: int) -> None:
        self._places: dict[str, Place] = {}
        rows = _csv_rows(path, lines, header)
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

    def find(self, name: str, timestamp: float | None = None) -> Place | None:
        """Return the place in the line of exactly this name."""
        return self._places.get(PurePosixPath(name).as_posix())


class TumPoses:
    """Hold poses by time, for pictures that have a time stamp or a file stem that is one.

    A stem is a time in seconds with a decimal point (TUM), or an integer of nanoseconds (EuRoC) or whole seconds.
    An integer of fewer than 10 digits is a running number, which would match a trajectory that starts at 0.

    Time stamps of the file that cannot be seconds are converted to seconds. Lines whose pose is not finite, which
    trackers write when they are lost, are left out. Both are remarked.
    """

    def __init__(self, path: Path, lines: list[str]) -> None:
        by_time: dict[float, Pose] = {}
        lost = Tally("lines hold no finite pose and are left out")
        for number, line in _content(lines):
            where = f"{path}, line {number}"
            fields = line.split()
            if len(fields) != 8:
                raise SourceError(f'{where}: {len(fields)} fields, not the 8 of "timestamp x y z qx qy qz qw"')
            time = read_number(fields[0], where)
            if time in by_time:
                raise SourceError(f"{where}: time stamp {fields[0]} is in the file twice: keep one of the two")
            if any(_is_not_finite(value) for value in fields[1:]):
                lost.add(where)
            else:
                by_time[time] = read_pose(fields[1:], where)
        if not by_time:
            raise SourceError(f"{path} holds no finite pose: give {POSE_FILE_FORMS}")
        largest = max(by_time, key=abs)
        unit = find_unit(largest)
        if unit is None:
            raise SourceError(
                f"{path}: the time stamp {largest:g} is no time in seconds, milliseconds, microseconds or nanoseconds "
                "since 1970: write seconds"
            )
        if unit[1] != 1:
            remark(f"{path}: the time stamps are {unit[0]}, and are converted to seconds")
        self._by_time = {time / unit[1]: pose for time, pose in by_time.items()}
        self._times = sorted(self._by_time)

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


def is_degrees(name: str) -> bool:
    """Return whether the two numbers of a `@UTM_east@UTM_north@` name look like longitude and latitude in degrees.

    Both are small enough for degrees, and have the 4 or more decimals that metres never need.
    """
    fields = PurePosixPath(name).stem.split("@")[1:3]
    if utm_pose(name) is None or not all(re.fullmatch(r"-?\d+\.\d{4,}", field) for field in fields):
        return False
    first, second = (abs(float(field)) for field in fields)
    return max(first, second) <= 180 and min(first, second) <= 90


def exif_gps(path: str | Path, no_fix: Tally | None = None) -> Gps | None:
    """Return the GPS position in a picture's EXIF data, None if it has none or it is not clear.

    Degrees, minutes and seconds may be given as one number, two or three. GPSStatus is ignored, because many devices
    set it wrongly.

    no_fix: counts the positions that are given and are no fix.

    Raises SourceError if the file cannot be read. EXIF data that is damaged gives None.
    """
    with open_picture(path) as picture:
        try:
            with pillow_reads(str(path)):
                tags = picture.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        except SourceError:  # the pixels may be sound
            tags = {}
        parts = [tags.get(tag) for tag in (ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLongitude)]
        refs = [tags.get(tag) for tag in (ExifTags.GPS.GPSLatitudeRef, ExifTags.GPS.GPSLongitudeRef)]
        latitude, longitude = _degrees(parts[0], refs[0], "NS"), _degrees(parts[1], refs[1], "EW")
        altitude = _real(tags.get(ExifTags.GPS.GPSAltitude))
        below = tags.get(ExifTags.GPS.GPSAltitudeRef) in (1, b"\x01")
        gps = find_fix(latitude, longitude, -altitude if below else altitude)
        if gps is None and no_fix is not None and not all(part is None for part in parts):
            no_fix.add(str(path))
        return gps


def _degrees(parts: object, ref: object, signs: str) -> float:
    """Return the degrees of EXIF's degrees, minutes and seconds, NaN if they or the hemisphere are not clear.

    parts: a number, or up to three. A part of 0/0 after a part with a fraction is left out.
    ref: the hemisphere as a letter or a word, text or bytes.
    signs: the letters of the positive and the negative hemisphere.
    """
    text = ref.decode("ascii", "replace") if isinstance(ref, bytes) else str(ref or "")
    text = text.strip("\0 ").upper()
    sign = {signs[0]: 1, signs[1]: -1}.get(text[:1], 0)
    if sign == 0 or text not in (signs[0], signs[1], "NORTH", "SOUTH", "EAST", "WEST"):
        return math.nan
    numbers = [_real(part) for part in (parts if isinstance(parts, tuple | list) else (parts,))]
    while len(numbers) > 1 and math.isnan(numbers[-1]) and numbers[-2] % 1:
        numbers.pop()
    if not 1 <= len(numbers) <= 3 or not all(0 <= minutes <= 60 for minutes in numbers[1:]):
        return math.nan
    value = sum(number / 60**power for power, number in enumerate(numbers))
    # A negative number in the positive hemisphere contradicts itself.
    return math.nan if value < 0 and sign > 0 else sign * abs(value)


def _real(value: object) -> float:
    """Return an EXIF number as a float, NaN if it is missing or 0/0, which receivers without a fix write."""
    if getattr(value, "denominator", 1) == 0 or not isinstance(value, int | float | TiffImagePlugin.IFDRational):
        return math.nan
    return float(value)


def _content(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines, without blank lines and comments."""
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _csv_rows(path: Path, lines: list[str], first: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows from line `first` on, each with its file and line for messages."""
    reader = csv.reader(lines[first - 1 :], skipinitialspace=True)
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
    if not re.fullmatch(r"\d{10,25}", stem):
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
