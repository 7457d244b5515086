"""What is intact in a map, whatever became of the rest."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError
from pairvpr.runtime.map import catalog
from pairvpr.runtime.map.catalog import Catalog, Meta
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import FOLDER, Segment, SegmentEntry, find_segment, segment_file
from pairvpr.runtime.map.tokens import StoredTokens


def salvage_catalog(path: Path) -> Catalog:
    """What is intact in the catalog of a damaged map, its segments found again where their entries were lost.

    `meta` counts what was written. Raises MapError where it cannot be opened or does not give the map's settings.
    """
    found = catalog.salvage(path)
    segments = {entry.number: entry for entry in found.segments if entry.file == segment_file(entry.number)}
    for number in {record.segment for record in found.records} - set(segments):
        with suppress(MapError):  # it is gone or no segment: so are its pictures, and each is named
            segments[number] = find_segment(path / FOLDER, number)
    records: dict[tuple[int, int], Record] = {}
    names: set[str] = set()
    for record in found.records:
        if (record.segment, record.row) not in records and (record.deleted or record.name not in names):
            records[record.segment, record.row] = record
            names |= set() if record.deleted else {record.name}
    return Catalog(found.meta, sorted(segments.values(), key=lambda entry: entry.number), list(records.values()))


class Salvage:
    """The open segment files of a map, damaged ones too.

    sound: the numbers of those whose size and header are as they were written; their rows may be damaged all the same.
    """

    def __init__(self, path: Path, meta: Meta, entries: Iterable[SegmentEntry]):
        self.sound: set[int] = set()
        self._segments: dict[int, Segment] = {}
        self._lost: dict[int, MapError] = {}
        with ExitStack() as stack:
            for entry in entries:
                try:
                    segment = self._open(path / FOLDER, meta, entry)
                except MapError as error:
                    self._lost[entry.number] = error
                else:
                    stack.callback(segment.close)
                    self._segments[entry.number] = segment
            self._stack = stack.pop_all()

    def _open(self, folder: Path, meta: Meta, entry: SegmentEntry) -> Segment:
        how = (folder, entry, meta.descriptor_dim, meta.token_shape, meta.token_format.type)
        try:
            segment = Segment(*how)
        except MapError:
            return Segment(*how, salvage=True)
        self.sound.add(entry.number)
        return segment

    def read(self, record: Record) -> tuple[npt.NDArray[np.float32], StoredTokens]:
        """The record's descriptor (G,) and tokens (M, D); raises MapError unless they are as they were written."""
        if record.segment in self._lost:
            raise self._lost[record.segment]
        return self._segments[record.segment].read_picture(record)

    def close(self) -> None:
        """Close the files."""
        self._stack.close()
