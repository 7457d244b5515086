"""What is intact in a map's segments, whatever became of the rest."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError
from pairvpr.runtime.map.catalog import Meta
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import FOLDER, Segment, SegmentEntry
from pairvpr.runtime.map.tokens import StoredTokens


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

    def __enter__(self) -> Salvage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
