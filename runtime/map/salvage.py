"""Read the intact parts of a damaged map."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError
from pairvpr.runtime.map import catalog
from pairvpr.runtime.map.catalog import Catalog
from pairvpr.runtime.map.meta import Meta
from pairvpr.runtime.map.record_list import RecordList
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import FOLDER, Segment, SegmentEntry, find_segment, segment_name
from pairvpr.runtime.map.tokens import StoredTokens


def salvage_catalog(path: Path) -> Catalog:
    """Read the intact part of a damaged map's catalog. Lost entries of segments are restored from their files.

    The result's `meta` has the original counts.
    Raises MapError if the catalog cannot be opened or the map's settings are damaged.
    """
    meta, entries, intact = catalog.read_intact(path)
    segments = {entry.number: entry for entry in entries if entry.file == segment_name(entry.number)}
    for number in {record.segment for record in intact} - set(segments):
        with suppress(MapError):  # the segment is lost, and the caller reports each of its pictures
            segments[number] = find_segment(path / FOLDER, number)
    records: dict[tuple[int, int], Record] = {}
    names: set[str] = set()
    for record in intact:
        if (record.segment, record.row) not in records and (record.deleted or record.name not in names):
            records[record.segment, record.row] = record
            names |= set() if record.deleted else {record.name}
    found = sorted(segments.values(), key=lambda entry: entry.number)
    return Catalog(meta, found, RecordList.of(records.values()))


class Salvage:
    """The open segment files of a map, including damaged ones.

    sound: numbers of the segments with the size and header that were written. Their rows may be damaged.
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
        try:
            segment = Segment(folder, entry, meta)
        except MapError:
            return Segment(folder, entry, meta, salvage=True)
        self.sound.add(entry.number)
        return segment

    def read(self, record: Record) -> tuple[npt.NDArray[np.float32], StoredTokens]:
        """Read the record's descriptor (G,) and tokens (M, D). Raises MapError unless they are as they were written."""
        if record.segment in self._lost:
            raise self._lost[record.segment]
        return self._segments[record.segment].read_picture(record)

    def close(self) -> None:
        """Close the files."""
        self._stack.close()
