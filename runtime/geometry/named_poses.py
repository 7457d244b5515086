"""Read pose files that name the pictures: CSV with a header, and images.txt of COLMAP."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.pose_fields import GPS_COLUMNS, NO_FIX, POSE_COLUMNS, read_float, read_pose
from pairvpr.runtime.geometry.poses import Gps, Place, Pose, find_fix
from pairvpr.runtime.geometry.rotations import IDENTITY, inverse, rotate
from pairvpr.runtime.remarks import Tally, remark

SHORT_COLUMNS = {"lat": "latitude", "lon": "longitude", "lng": "longitude", "alt": "altitude"}
COLMAP_COLUMNS = "IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME"
LONGEST_FIELD = 100_000  # characters of a CSV field


class _NamedPoses:
    """Hold places by picture name. first: the name of one entry, for messages."""

    first: str
    _places: dict[str, Place]

    def find(self, name: str, timestamp: float | None = None) -> Place | None:
        """Return the place in the line of exactly this name."""
        return self._places.get(PurePosixPath(name).as_posix())


class CsvPoses(_NamedPoses):
    """Hold poses or GPS positions by picture name.

    path: the file, for messages.
    lines: the lines of the file.
    header: number of the line that names the columns, counted from 1.
    delimiter: the character between fields. Numbers may have a decimal comma unless it is a comma.
    """

    def __init__(self, path: Path, lines: list[str], header: int, delimiter: str = ",") -> None:
        self._places = {}
        rows = _csv_rows(path, lines, header, delimiter)
        where, head = next(rows)
        columns = columns_of(head)
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


class ColmapPoses(_NamedPoses):
    """Hold the poses of the cameras in COLMAP's images.txt, by picture name.

    The file has the transform from the world to the camera, in two lines a picture. The second may be empty.
    """

    def __init__(self, path: Path, lines: list[str]) -> None:
        self._places = {}
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


def columns_of(cells: list[str]) -> list[str]:
    """Return the names of a header's columns in lower case, "" for those that are not read."""
    names = [SHORT_COLUMNS.get(cell.strip().lower(), cell.strip().lower()) for cell in cells]
    return [name if name in (*POSE_COLUMNS, *GPS_COLUMNS, "altitude") else "" for name in names]


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


def _read_gps(fields: Mapping[str, str], where: str) -> Gps | None:
    """Return the GPS position of a CSV line, None if it is no fix. Raise SourceError for text that is not a number."""
    altitude = fields.get("altitude", "").strip()
    latitude, longitude = (read_float(fields[column], where) for column in GPS_COLUMNS[1:])
    return find_fix(latitude, longitude, read_float(altitude, where) if altitude else None)
