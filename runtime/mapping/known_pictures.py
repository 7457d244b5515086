"""Compare the pictures of a source with those that a map already holds."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pairvpr.errors import MapError, SourceError
from pairvpr.runtime.geometry.pose_files import PlaceFinder
from pairvpr.runtime.map import Map
from pairvpr.runtime.mapping.keyframes import Keyframe
from pairvpr.runtime.sources import Frame, Source


class KnownPictures:
    """Compare the frames of a part of a source with the pictures that the map holds.

    already: frames so far that the map holds.
    """

    def __init__(
        self, db: Path, origin: str, finder: PlaceFinder, map_: Map | None, first: int = 0, end: int = sys.maxsize
    ) -> None:
        """Take over the map.

        map_: the map as it is before anything is added, None if there is none.
        first, end: the part's first frame, and the frame after its last.
        """
        self.already = 0
        self._first, self._end = first, end
        self._db = db
        self._origin = origin
        self._finder = finder
        self._map = map_
        self._rows = {} if map_ is None else {name: row for row, name in enumerate(map_.records.names())}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def check_all(self, names: Sequence[str], poses: str | Path | None) -> None:
        """Check the names of a source before any picture is read.

        Raises SourceError if no entry of the pose file belongs to a name, and MapError as `_check`.
        """
        if poses is not None and not any(self._finder.in_file(name) for name in names):
            raise SourceError(
                f"{poses}: none of its entries belongs to one of the pictures ({self._finder.compare()}); check names "
                "or time stamps"
            )
        for name in names:
            self._check(name, None)

    def missing_frames(self, source: Source) -> Iterator[tuple[Frame, Keyframe | None]]:
        """Yield each frame of the part that the map lacks, and the last map picture between the previous one and it.

        The map picture is None if the frame directly follows the previous one.

        Raises MapError as `_check`, and the errors of the source.
        """
        last: int | None = None
        asked = 0

        def lacks(number: int, name: str, timestamp: float | None) -> bool:
            nonlocal last, asked
            asked += 1
            if not self._first < asked <= self._end:
                return False
            self._check(name, timestamp)
            if name not in self._rows:
                return True
            self.already += 1
            last = self._rows[name]
            return False

        for frame in source.frames(lacks):
            before, last = last, None
            yield frame, None if before is None else self._keyframe(before)

    def _keyframe(self, row: int) -> Keyframe:
        assert self._map is not None
        record = self._map.records[row]
        return Keyframe(record.pose or record.gps, self._map.read_descriptor(row))

    def _check(self, name: str, timestamp: float | None) -> None:
        """Raise MapError if the map holds this name from another source, or holds it without its present pose."""
        if self._map is None or name not in self._rows:
            return
        record = self._map.records[self._rows[name]]
        if record.source != self._origin:
            raise MapError(
                f"{self._db}: already holds a picture {name!r}, from {record.source}; "
                f"{rename_advice(self._origin, name)}"
            )
        if record.pose is None and record.gps is None and self._finder.in_file(name, timestamp):
            raise MapError(
                f"{self._db}: already holds {name!r} without its pose; build a new map with --poses from the start"
            )


def rename_advice(origin: str, name: str) -> str:
    """Return the advice that gives the pictures of a folder or file names that the map does not hold yet."""
    own = Path(origin).name
    if name.startswith(own) and re.search(r"#\d{6,}$", name):
        return f"rename {origin}, which frames are named after"
    return f"move {origin} into a new folder and give that one, so that names begin with '{own}/'"
