"""Read poses that come with pictures: CSV and TUM files, UTM positions in file names, EXIF."""

from __future__ import annotations

import bisect
import csv
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from PIL import ExifTags, TiffImagePlugin

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.poses import UNKNOWN, Gps, Place, Pose
from pairvpr.runtime.geometry.rotations import normalize
from pairvpr.runtime.image import open_picture, pillow_reads

POSE_COLUMNS = ["name", "x", "y", "z", "qx", "qy", "qz", "qw"]
GPS_COLUMNS = ["name", "latitude", "longitude"]  # and maybe altitude
POSE_FILE_FORMS = (
    f'CSV with the header "{",".join(POSE_COLUMNS)}" or "{",".join(GPS_COLUMNS)}[,altitude]", '
    'or TUM lines "timestamp x y z qx qy qz qw"'
)
MAX_TIME_GAP = 0.05  # seconds between a picture's time stamp and a TUM pose that still counts as its own


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

    def in_file(self, name: str, timestamp: float | None = None) -> bool:
        """Return whether the pose file has a place for the picture `name`."""
        return self._poses is not None and self._poses.find(name, timestamp) is not None

    def find_place(self, name: str, path: str | Path | None = None, known: Place = UNKNOWN) -> Place:
        """Return the place of the picture `name`.

        path: the picture's own file, None for a frame of a video.
        known: the place that the source gives.

        Raises SourceError if the EXIF data of the file is damaged.
        """
        if self._poses is not None and (place := self._poses.find(name, known.timestamp)) is not None:
            self.matched += 1
            return place if known.timestamp is None else place._replace(timestamp=known.timestamp)
        if known.pose is not None or known.gps is not None:
            return known
        if (pose := utm_pose(name)) is not None:
            return known._replace(pose=pose)
        return known._replace(gps=None if path is None else exif_gps(path))


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
    columns = [column.strip() for column in first.split(",")]
    if columns in (POSE_COLUMNS, GPS_COLUMNS, [*GPS_COLUMNS, "altitude"]):
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
        columns = [column.strip() for column in next(rows)[1]]
        for where, row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(columns):
                raise SourceError(f"{where}: {len(row)} fields, but the header has {len(columns)}: correct it")
            if not row[0].strip():
                raise SourceError(f"{where}: the name is missing: write the picture's path")
            name = PurePosixPath(row[0].strip()).as_posix()
            if name in self._places:
                raise SourceError(f"{where}: {name} is in the file twice: keep one of the two")
            values = row[1:]
            self._places[name] = _pose_place(values, where) if "qw" in columns else _gps_place(values, where)
        if not self._places:
            raise SourceError(f"{path} has a header but no poses: add a line for each picture")

    def find(self, name: str, timestamp: float | None = None) -> Place | None:
        """Return the place in the line of exactly this name."""
        return self._places.get(PurePosixPath(name).as_posix())


class TumPoses:
    """Hold poses by time, for pictures that have a time stamp or a file stem that is one.

    A stem is a time in seconds with a decimal point (TUM), or an integer of nanoseconds (EuRoC) or whole seconds.
    An integer of fewer than 10 digits is a running number, which would match a trajectory that starts at 0.
    """

    def __init__(self, path: Path, lines: list[str]) -> None:
        by_time: dict[float, Pose] = {}
        for number, line in _content(lines):
            where = f"{path}, line {number}"
            fields = line.split()
            if len(fields) != 8:
                raise SourceError(f'{where}: {len(fields)} fields, not the 8 of "timestamp x y z qx qy qz qw"')
            time = read_number(fields[0], where)
            if time in by_time:
                raise SourceError(f"{where}: time stamp {fields[0]} is in the file twice: keep one of the two")
            by_time[time] = read_pose(fields[1:], where)
        self._times = sorted(by_time)
        self._by_time = by_time

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


def exif_gps(path: str | Path) -> Gps | None:
    """Return the GPS position in a picture's EXIF data, None if it has none or a receiver without a fix wrote it.

    Raises SourceError if the file or its EXIF data cannot be read.
    """
    with open_picture(path) as picture, pillow_reads(str(path)):
        tags = picture.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        latitude = _degrees(tags.get(ExifTags.GPS.GPSLatitude), tags.get(ExifTags.GPS.GPSLatitudeRef), "NS")
        longitude = _degrees(tags.get(ExifTags.GPS.GPSLongitude), tags.get(ExifTags.GPS.GPSLongitudeRef), "EW")
        if latitude is None or longitude is None or abs(latitude) > 90 or abs(longitude) > 180:
            return None
        altitude = _real(tags.get(ExifTags.GPS.GPSAltitude))
        if not math.isfinite(altitude):
            return Gps(latitude, longitude)
        below = tags.get(ExifTags.GPS.GPSAltitudeRef) in (1, b"\x01")
        return Gps(latitude, longitude, -altitude if below else altitude)


def _degrees(parts: tuple[float, float, float] | None, ref: str | None, signs: str) -> float | None:
    """Return degrees from EXIF's degrees, minutes and seconds, None if the hemisphere is unknown."""
    ref = (ref or "").strip("\0 ")
    if parts is None or ref not in tuple(signs):
        return None
    degrees, minutes, seconds = (_real(part) for part in parts)
    value = degrees + minutes / 60 + seconds / 3600
    if not math.isfinite(value):
        return None
    return -value if ref == signs[1] else value


def _real(value: float | TiffImagePlugin.IFDRational | None) -> float:
    """Return an EXIF number as a float, NaN if it is missing or 0/0, which receivers without a fix write."""
    if value is None or getattr(value, "denominator", 1) == 0:
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
            yield f"{path}, line {first - 1 + reader.line_num}", row
    except csv.Error as error:
        raise SourceError(f"{path}, line {first - 1 + reader.line_num}: {error}: correct it") from error


def _stamps(stem: str) -> list[float]:
    """Return the times in seconds that a file stem may mean."""
    if re.fullmatch(r"\d+\.\d+", stem):
        return [float(stem)]
    if re.fullmatch(r"\d{10,}", stem):
        return [float(stem), int(stem) / 1e9]
    return []


def _pose_place(values: list[str], where: str) -> Place:
    return Place(pose=read_pose(values, where))


def _gps_place(values: list[str], where: str) -> Place:
    latitude, longitude = (read_number(value, where) for value in values[:2])
    if abs(latitude) > 90 or abs(longitude) > 180:
        raise SourceError(f"{where}: {latitude}, {longitude} is not a latitude and longitude in degrees: correct it")
    altitude = read_number(values[2], where) if len(values) > 2 and values[2].strip() else None
    return Place(gps=Gps(latitude, longitude, altitude))


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
    try:
        value = float(text)
    except ValueError:
        raise SourceError(f"{where}: {text.strip()!r} is not a number: correct it") from None
    if not math.isfinite(value):
        raise SourceError(f"{where}: {text.strip()} is not a finite number: correct it")
    return value
