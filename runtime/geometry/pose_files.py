"""Read poses that come with pictures: files of poses, UTM positions in file names, EXIF."""

from __future__ import annotations

import codecs
import csv
import re
from pathlib import Path
from typing import Protocol

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.exif import exif_gps
from pairvpr.runtime.geometry.named_poses import COLMAP_COLUMNS, ColmapPoses, CsvPoses, columns_of
from pairvpr.runtime.geometry.pose_fields import GPS_COLUMNS, NO_FIX, POSE_COLUMNS, POSE_FILE_FORMS, content_lines
from pairvpr.runtime.geometry.poses import UNKNOWN, Place
from pairvpr.runtime.geometry.timed_poses import TIMED_COLUMNS, TimedOrder, TimedPoses, is_decimal, timed_order
from pairvpr.runtime.geometry.utm_names import is_degrees, utm_pose
from pairvpr.runtime.remarks import Tally


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
    number, first = next(content_lines(lines), (0, ""))
    if not number:
        raise SourceError(f"{path} holds no poses: give {POSE_FILE_FORMS}")
    for delimiter in ",;\t":
        columns = columns_of(next(csv.reader([first[:10_000]], delimiter=delimiter, skipinitialspace=True), []))
        if set(POSE_COLUMNS) <= set(columns) or set(GPS_COLUMNS) <= set(columns):
            return CsvPoses(path, lines, number, delimiter)
    comments = lines[: number - 1]
    if any(COLMAP_COLUMNS.replace(" ", "") in comment.replace(" ", "") for comment in comments) or any(
        "two lines of data per image" in comment for comment in comments
    ):
        return ColmapPoses(path, lines)
    fields = re.split(r"[,;\s]+", first.strip())
    if (order := timed_order(first)) is not None:
        return TimedPoses(path, lines, number, order)
    if (order := next(filter(None, map(timed_order, reversed(comments))), None)) is not None:
        return TimedPoses(path, lines, number - 1, order)
    if len(first.split()) == 8 or (len(fields) == 8 and is_decimal(fields[0])):
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
