"""Read a map: descriptors and places in memory, tokens on demand."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError
from pairvpr.runtime.bundle_info import Dims
from pairvpr.runtime.inverted_lists import InvertedLists
from pairvpr.runtime.map import catalog
from pairvpr.runtime.map.catalog import Catalog
from pairvpr.runtime.map.creation import MODEL
from pairvpr.runtime.map.descriptor_rows import DescriptorRows, gather_descriptors
from pairvpr.runtime.map.errors import reading
from pairvpr.runtime.map.info import MapInfo
from pairvpr.runtime.map.list_file import GROWTH, ListEntry, StoredLists, read_lists
from pairvpr.runtime.map.meta import DIGEST, INDEX, LISTS, PRECISIONS
from pairvpr.runtime.map.open_files import allow_open_files
from pairvpr.runtime.map.record_list import Change, RecordList, find_change
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import FOLDER, Segment
from pairvpr.runtime.map.thumbnails import read_thumbnail, thumbnail_bytes
from pairvpr.runtime.map.tokens import KEY, TokenFormat

log = logging.getLogger(__name__)

_SETTLED = 2 * 10**9  # nanoseconds: the coarsest timestamps of file systems


_Stamp = tuple[int, int, int]


class Map(AbstractContextManager["Map"]):
    """A consistent, read-only snapshot of a map. A writer may change the map at the same time.

    path: the map's folder.
    model_path: the folder of the map's bundle.
    identity: identity of the bundle that made the map.
    settings: the map's JSON values, without those of its inverted lists.
    records: the n pictures that are not deleted, in the order of their ids.
    descriptors: (n, G) float32, in the order of `records`.
    model_digest: the digest that the bundle must have, None if any of the identity may be used.
    token_shape: (M, D), as stored.
    token_format: the format of stored tokens.
    index_precision: precision of the search, "float32" or "float16".
    lists: the entry of the inverted lists, None if all descriptors are compared.
    change: the difference from the snapshot that `open_newer` was called on, if both share their descriptors.
    """

    @classmethod
    def open(cls, path: str | Path, *, descriptors: bool = True) -> Map:
        """Read the catalog and all descriptors, and keep the segment files open.

        descriptors: False reads and checks descriptors only when they are asked for.
        Raises MapError if there is no map, it is damaged or of a newer format, or a file cannot be read.
        """
        opened = cls._open(Path(path), None, descriptors)
        assert opened is not None  # there is no earlier state
        return opened

    @classmethod
    def _open(cls, path: Path, earlier: Map | None, descriptors: bool) -> Map | None:
        """Open the present state. Return None if it is the earlier one."""
        known = None if earlier is None else earlier._state
        while True:
            stamp = _read_stamp(path)
            state = catalog.load(path, known=known)
            if earlier is not None and state is earlier._state:
                earlier._stamp = stamp
                return None
            try:
                return cls._open_state(path, state, stamp, earlier, descriptors)
            except MapError:
                if catalog.load(path, known=state) is state:
                    raise
                # a writer has replaced files in the meantime: read the new ones

    @classmethod
    def _open_state(
        cls, path: Path, state: Catalog, stamp: _Stamp | None, earlier: Map | None, descriptors: bool
    ) -> Map:
        allow_open_files(path, len(state.segments))
        held = {} if earlier is None else {segment.entry: segment for segment in earlier._segments.values()}
        with ExitStack() as stack:
            segments: dict[int, Segment] = {}
            for entry in state.segments:
                shared = held.get(entry)
                segment = Segment(path / FOLDER, entry, state.meta) if shared is None else shared.share()
                stack.callback(segment.close)
                segments[entry.number] = segment
            opened = cls(path, state, segments, stamp)
            if earlier is not None:
                opened._follow(earlier)
            if descriptors:
                opened._load_descriptors()
                opened.read_lists()
            stack.pop_all()
        return opened

    def __init__(self, path: Path, state: Catalog, segments: dict[int, Segment], stamp: _Stamp | None = None):
        """Take over a catalog and its open segments. Call `open` instead."""
        self.path = path
        self.model_path = path / MODEL
        self.identity: str = state.meta.identity
        self.settings: dict[str, Any] = {key: held for key, held in state.meta.settings.items() if key != LISTS}
        self.lists: ListEntry | None = state.meta.lists
        self.model_digest: str | None = state.meta.settings.get(DIGEST)
        self.token_shape: tuple[int, int] = state.meta.token_shape
        self.token_format: TokenFormat = state.meta.token_format
        self.records: RecordList = state.records.live()
        self._state, self._stamp = state, stamp
        self._segments = segments
        self._damaged: set[int] = set()  # ids of the records whose damage was logged
        self.index_precision: str = state.meta.upgraded(len(self.records)).settings.get(INDEX, PRECISIONS[0])
        self.change: Change | None = None
        self._closed = False
        self._rows: DescriptorRows | None = None
        self._stored_lists: StoredLists | None = None

    def _follow(self, earlier: Map) -> None:
        """Take over the descriptors of an earlier snapshot, if this one is made of them and others at its end."""
        if earlier.lists == self.lists:
            self._stored_lists = earlier._stored_lists
        same = [
            (each.identity, each._state.meta.descriptor_dim, each.index_precision, each.lists)
            for each in (earlier, self)
        ]
        if earlier._rows is None or same[0] != same[1]:
            return
        change = find_change(earlier.records, self.records)
        if change is not None:
            self._rows = earlier._rows.updated(change.removed, self._read_descriptors(change.added))
            self.change = change

    def _read_descriptors(self, last: int) -> npt.NDArray[np.float32]:
        """Read and check the descriptors of the last pictures, (last, G)."""
        records = self.records.tail(last)
        return gather_descriptors(records, len(records) - last, self._segments, self._state.meta.descriptor_dim)

    def _load_descriptors(self) -> DescriptorRows:
        if self._rows is None:
            self._rows = DescriptorRows([self._read_descriptors(len(self))])
        return self._rows

    @property
    def descriptors(self) -> npt.NDArray[np.float32]:
        """Return all descriptors (n, G). Raises MapError if they were not read before and are damaged."""
        return self._load_descriptors().array()

    def read_lists(self) -> InvertedLists | None:
        """Return the inverted lists of the map's first rows, None if all descriptors are compared.

        Raises MapError if they are damaged.
        """
        if self.lists is None:
            return None
        if self._stored_lists is None:
            self._stored_lists = read_lists(self.path, self.lists, self._state.meta.descriptor_dim)
        return self._stored_lists.of_rows(self.records.column("id").astype(np.int64), self.path)

    @property
    def list_advice(self) -> str | None:
        """Return the advice to make the inverted lists again, None if they hold most of the map's pictures."""
        if self.lists is None or self.unlisted <= (GROWTH - 1) * self.lists.pictures:
            return None
        return (
            f"{self.path}: {self.unlisted} of its pictures are in no list, which makes searches slower; run "
            f"`pairvpr map index --ivf --db {self.path}` again"
        )

    @property
    def unlisted(self) -> int:
        """Return the number of pictures that were added after the inverted lists were made. All are compared."""
        return 0 if self.lists is None else int((self.records.column("id") > self.lists.last_id).sum())

    def take_descriptors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the descriptors of some rows, (len(rows), G), without bringing all together as `descriptors` does."""
        return self._load_descriptors().take(rows)

    def last_descriptors(self, count: int) -> npt.NDArray[np.float32]:
        """Return the descriptors of the last rows, (count, G)."""
        return self.take_descriptors(np.arange(len(self) - count, len(self)))

    def read_descriptor(self, row: int) -> npt.NDArray[np.float32]:
        """Read the descriptor (G,) of one picture from its file. Raises MapError if it is damaged."""
        record = self.records[_checked_row(row, len(self.records))]
        return self._segments[record.segment].read_descriptor(record)

    @property
    def catalog(self) -> Catalog:
        """Return the state of the catalog."""
        return self._state

    def __len__(self) -> int:
        return len(self.records)

    def read_tokens(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.floating]:
        """Return tokens of the records at `rows`, (len(rows), M, D): float16, or float32 if the map stores int8.

        Safe to call from several threads.

        rows: indices into `records`.
        Raises MapError if tokens cannot be read or fail their checksum, IndexError for an invalid row, ValueError after
        the map is closed.
        """
        return self._read_tokens(rows, strict=True)[0]

    def read_intact_tokens(
        self, rows: Sequence[int] | npt.NDArray[np.integer]
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.bool_]]:
        """Return the tokens (m, M, D) of the intact records at `rows`, and a mask (len(rows),) of these rows.

        A damaged record is logged once. Otherwise as `read_tokens`.
        """
        return self._read_tokens(rows, strict=False)

    def _read_tokens(
        self, rows: Sequence[int] | npt.NDArray[np.integer], strict: bool
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.bool_]]:
        if self._closed:
            raise ValueError(f"the map {self.path} is closed")
        wanted = [self.records[_checked_row(row, len(self.records))] for row in rows]
        intact = np.ones(len(wanted), np.bool_)
        tokens = np.empty(
            (len(wanted), *self.token_shape), np.float32 if self.token_format.type == "int8" else np.float16
        )
        # In the order of files and offsets, because a disk reads forward several times as fast.
        for i in sorted(range(len(wanted)), key=lambda i: (wanted[i].segment, wanted[i].row)):
            record = wanted[i]
            try:
                tokens[i] = self._segments[record.segment].read_tokens(record).load()
            except MapError as error:
                if strict:
                    raise
                intact[i] = False
                if record.id not in self._damaged:
                    self._damaged.add(record.id)
                    log.warning("%s; it is left out of the answers", error)
        return (tokens if intact.all() else tokens[intact]), intact

    def read_thumbnail(self, record: Record) -> bytes | None:
        """Return the JPEG of a picture. Return None if the map stores none of it or it is damaged."""
        return read_thumbnail(self._segments[record.segment].path.parent, record)

    def of_segments(self, numbers: Collection[int]) -> Map:
        """Return the snapshot of some segments alone. They share their files. Close each snapshot.

        Raises ValueError if a block of records is of several segments.
        """
        entries = [entry for entry in self._state.segments if entry.number in numbers]
        held = []
        for block in self._state.records.blocks:
            found = set(RecordList([block]).column("segment").tolist())
            if found & set(numbers) and len(found) > 1:
                raise ValueError(f"{self.path}: block {block.number} is of several segments")
            held += [block] if found <= set(numbers) else []
        records = RecordList(held)
        meta = dataclasses.replace(self._state.meta, segments=len(entries), records=len(records))
        part = Map(self.path, Catalog(meta, entries, records), {n: self._segments[n].share() for n in numbers})
        part.model_path = self.model_path
        return part

    def find_misfit(self, dims: Dims) -> str | None:
        """Return the reason why the map's features cannot be those of a model with these sizes, or None."""
        wanted = (dims.descriptor, *self.token_format.stored_shape((dims.tokens, dims.token_dim)))
        held = (self._state.meta.descriptor_dim, *self.token_shape)
        return None if held == wanted else f"holds features of sizes {held}, but its model makes {wanted}"

    def info(self) -> MapInfo:
        """Return counts and sizes of this snapshot. Raises MapError if a file cannot be read."""
        stored = self._state.meta.records
        with reading(self.path):
            size = (self.path / catalog.FILE).stat().st_size
            thumbnails = thumbnail_bytes(self.path / FOLDER)
            model_size = sum(file.stat().st_size for file in self.model_path.rglob("*") if file.is_file())
        size += sum(segment.entry.bytes for segment in self._segments.values())
        return MapInfo(
            path=self.path,
            identity=self.identity,
            created_by=self._state.meta.created_by,
            pictures=len(self.records),
            with_pose=self.records.count("position"),
            with_gps=self.records.count("gps"),
            deleted=stored - len(self.records),
            segments=len(self._segments),
            descriptor_dim=self._state.meta.descriptor_dim,
            token_shape=self.token_shape,
            tokens={**asdict(self.token_format), **self.settings.get(KEY, {})},
            bytes=size,
            model_bytes=model_size,
            thumbnail_bytes=thumbnails,
            bytes_per_picture=size / stored if stored else 0.0,
            index_precision=self.index_precision,
            lists=None if self.lists is None else {**self.lists.to_json(), "unlisted": self.unlisted},
        )

    def open_newer(self) -> Map | None:
        """Open the map's present state, or return None if nothing was committed since this snapshot.

        The two snapshots share what did not change, so that the cost follows from the change. Close each of them.
        Returning None takes one `stat` of the catalog. In the two seconds after a commit it reads the catalog.
        Not safe to call from two threads at once. Raises MapError as `open` does.
        """
        stamp = _read_stamp(self.path)
        if stamp is not None and stamp == self._stamp:
            return None
        return Map._open(self.path, self, self._rows is not None)

    def close(self) -> None:
        """Close the segment files that no other snapshot uses. Tokens can no longer be read then."""
        if not self._closed:
            self._closed = True
            for segment in self._segments.values():
                segment.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked_row(row: int | np.integer, count: int) -> int:
    if not 0 <= row < count:
        raise IndexError(f"row {row} of a map of {count} pictures")
    return int(row)


def _read_stamp(path: Path) -> _Stamp | None:
    """Return inode, time and size of the catalog. Return None shortly after a commit.

    Another commit within the resolution of the file system's time would leave them the same. The file is not opened,
    because closing it would drop the locks of an SQLite connection to it in the same process.
    """
    with reading(path / catalog.FILE):
        catalog.check_is_map(path)
        status = (path / catalog.FILE).stat()
    if time.time_ns() - status.st_mtime_ns < _SETTLED:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
