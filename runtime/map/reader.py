"""A map as the runtime reads it: descriptors and places in memory, tokens on demand."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError
from pairvpr.runtime.map import catalog
from pairvpr.runtime.map.catalog import Catalog
from pairvpr.runtime.map.creation import MODEL
from pairvpr.runtime.map.errors import reading
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import FOLDER, Segment
from pairvpr.runtime.map.tokens import KEY, TokenFormat

_SETTLED = 2 * 10**9  # nanoseconds: the coarsest time stamps of file systems
_SPARE_FILES = 256  # open files left to the rest of the process


@dataclass(frozen=True)
class MapInfo:
    """What a map holds and takes.

    pictures: not deleted, of which `with_pose` and `with_gps` have a place. bytes: of catalog and segments.
    model_bytes: of the bundle. tokens: how they are stored, and what that was measured to change.
    bytes_per_picture: bytes / (pictures + deleted), 0 for an empty map.
    """

    path: Path
    identity: str
    created_by: str
    pictures: int
    with_pose: int
    with_gps: int
    deleted: int
    segments: int
    descriptor_dim: int
    token_shape: tuple[int, int]
    tokens: dict[str, Any]
    bytes: int
    model_bytes: int
    bytes_per_picture: float


_Stamp = tuple[int, int, int]


class Map:
    """A consistent, read-only snapshot of a map; a writer may go on beside it.

    path: the folder. identity: of the bundle that made it. settings: the map's JSON values.
    records: n pictures that are not deleted, in the order of their ids.
    descriptors: (n, G) float32, aligned with `records`. token_shape: (M, D), as stored. token_format: how.
    model_path: the bundle.
    """

    @classmethod
    def open(cls, path: str | Path) -> Map:
        """Read the catalog and all descriptors, and keep the segment files open.

        Raises MapError: no map, damage, a newer format, a file that cannot be read.
        """
        path = Path(path)
        while True:
            stamp = _stamp(path)
            state = catalog.load(path)
            try:
                return cls._of(path, state, stamp)
            except MapError:
                if catalog.load(path).segments == state.segments:
                    raise
                # else a writer has compacted the map meanwhile: its old files are gone, the new ones are there

    @classmethod
    def _of(cls, path: Path, state: Catalog, stamp: _Stamp | None) -> Map:
        allow_open_files(path, len(state.segments))
        with ExitStack() as stack:
            segments: dict[int, Segment] = {}
            for entry in state.segments:
                meta = state.meta
                segment = Segment(path / FOLDER, entry, meta.descriptor_dim, meta.token_shape, meta.token_format.type)
                stack.callback(segment.close)
                segments[entry.number] = segment
            opened = cls(path, state, segments, stamp)
            stack.pop_all()
        return opened

    def __init__(self, path: Path, state: Catalog, segments: dict[int, Segment], stamp: _Stamp | None = None):
        """Take over a catalog and its open segments; see `open`."""
        self.path = path
        self.model_path = path / MODEL
        self.identity: str = state.meta.identity
        self.settings: dict[str, Any] = state.meta.settings
        self.token_shape: tuple[int, int] = state.meta.token_shape
        self.token_format: TokenFormat = state.meta.token_format
        self.records: list[Record] = [record for record in state.records if not record.deleted]
        self._state, self._stamp = state, stamp
        self._segments = segments
        self.descriptors: npt.NDArray[np.float32] = _gather_descriptors(
            self.records, segments, state.meta.descriptor_dim
        )

    def __len__(self) -> int:
        return len(self.records)

    def read_tokens(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.floating]:
        """Tokens of the records at `rows`, (len(rows), M, D), in that order: float16, or float32 where int8 is stored.

        rows: indices into `records`. Safe to call from several threads. Raises MapError where a picture's
        tokens cannot be read or are not as they were written, IndexError for a row that is not there,
        ValueError once the map is closed.
        """
        wanted = [self.records[_checked_row(row, len(self.records))] for row in rows]
        tokens = np.empty(
            (len(wanted), *self.token_shape), np.float32 if self.token_format.type == "int8" else np.float16
        )
        # In the order of the files and offsets: a disk reads forward several times as fast.
        for place in sorted(range(len(wanted)), key=lambda place: (wanted[place].segment, wanted[place].row)):
            record = wanted[place]
            tokens[place] = self._segments[record.segment].read_tokens(record).load()
        return tokens

    def info(self) -> MapInfo:
        """Counts and sizes of this snapshot."""
        stored = self._state.meta.records
        with reading(self.path):
            size = (self.path / catalog.FILE).stat().st_size
            model_size = sum(file.stat().st_size for file in self.model_path.rglob("*") if file.is_file())
        size += sum(segment.entry.bytes for segment in self._segments.values())
        return MapInfo(
            path=self.path,
            identity=self.identity,
            created_by=self._state.meta.created_by,
            pictures=len(self.records),
            with_pose=sum(record.pose is not None for record in self.records),
            with_gps=sum(record.gps is not None for record in self.records),
            deleted=stored - len(self.records),
            segments=len(self._segments),
            descriptor_dim=self._state.meta.descriptor_dim,
            token_shape=self.token_shape,
            tokens={**asdict(self.token_format), **self.settings.get(KEY, {})},
            bytes=size,
            model_bytes=model_size,
            bytes_per_picture=size / stored if stored else 0.0,
        )

    def newer(self) -> Map | None:
        """The map as it is now, opened beside this one; None where nothing was committed since.

        None costs a look at the catalog's file, and for two seconds after a commit its content. Raises MapError as
        `open`. Not for two threads at once.
        """
        stamp = _stamp(self.path)
        if stamp is not None and stamp == self._stamp:
            return None
        if catalog.load(self.path) == self._state:
            self._stamp = stamp
            return None
        return Map.open(self.path)

    def close(self) -> None:
        """Close the segment files; tokens can then no longer be read."""
        for segment in self._segments.values():
            segment.close()

    def __enter__(self) -> Map:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _gather_descriptors(records: list[Record], segments: dict[int, Segment], dim: int) -> npt.NDArray[np.float32]:
    """The records' descriptors, (len(records), G), checked; a segment at a time."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        places[record.segment].append(place)
    descriptors = np.empty((len(records), dim), np.float32)
    for number, segment in segments.items():
        stored = segment.read_descriptors()
        for place in places[number]:
            segment.check_descriptor(stored, records[place])
            descriptors[place] = stored[records[place].row]
    return descriptors


def _checked_row(row: int | np.integer, count: int) -> int:
    if not 0 <= row < count:
        raise IndexError(f"row {row} of a map of {count} pictures")
    return int(row)


def allow_open_files(path: Path, segments: int) -> None:
    """Raise the process's soft limit of open files where the map's segments come near it."""
    needed = segments + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError) as error:
        raise MapError(
            f"{path} has {segments} segments and this process may open {soft} files: "
            f"allow more with `ulimit -n {needed}`, or merge them with `pairvpr map compact --db {path}`"
        ) from error


def _stamp(path: Path) -> _Stamp | None:
    """What tells one state of the catalog's file from any later one; None while a commit could leave it as it is.

    The file is not opened: closing it would drop the locks of an SQLite connection to it in the same process.
    """
    with reading(path / catalog.FILE):
        catalog.check_is_map(path)
        status = (path / catalog.FILE).stat()
    if time.time_ns() - status.st_mtime_ns < _SETTLED:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
