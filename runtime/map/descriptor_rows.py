"""The descriptors of a map's pictures in memory, in pieces that its snapshots share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.map.record_list import RecordList
from pairvpr.runtime.map.segments import Segment, find_damaged


class DescriptorRows:
    """Descriptors (n, G) float32 by row. Removed ones stay in their piece until all are asked for."""

    def __init__(self, pieces: Sequence[npt.NDArray[np.float32]], kept: npt.NDArray[np.int64] | None = None) -> None:
        """Take over pieces, of which only the places `kept` (n,), ascending, are rows. None keeps all."""
        self._held = tuple(pieces), kept

    def array(self) -> npt.NDArray[np.float32]:
        """Return all rows (n, G). After changes they are brought together once."""
        pieces, kept = self._held
        if len(pieces) > 1 or kept is not None:
            count = sum(map(len, pieces)) if kept is None else len(kept)
            self._held = ((self.take(np.arange(count)),), None)
        return self._held[0][0]

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the descriptors of some rows, (len(rows), G)."""
        pieces, kept = self._held
        places = rows if kept is None else kept[rows]
        starts = np.cumsum([0, *map(len, pieces[:-1])])
        which = np.searchsorted(starts, places, "right") - 1
        found = np.empty((len(rows), pieces[0].shape[1]), np.float32)
        for number in np.unique(which):
            here = which == number
            found[here] = pieces[number][places[here] - starts[number]]
        return found

    def updated(self, removed: npt.NDArray[np.int64], added: npt.NDArray[np.float32]) -> DescriptorRows:
        """Return the rows without those `removed` and with `added` (m, G) at their end."""
        pieces, kept = list(self._held[0]), self._held[1]
        held = sum(map(len, pieces))
        if len(removed):
            kept = np.delete(np.arange(held) if kept is None else kept, removed)
        if kept is not None:
            kept = np.concatenate([kept, np.arange(held, held + len(added))])
        if len(added):
            pieces.append(added)
        while len(pieces) > 1 and 2 * len(pieces[-1]) >= len(pieces[-2]):
            pieces[-2:] = [np.concatenate(pieces[-2:])]
        return DescriptorRows(pieces, kept)


def gather_descriptors(
    records: RecordList, first: int, segments: dict[int, Segment], dim: int
) -> npt.NDArray[np.float32]:
    """Read and check the descriptors of the records from `first` on, (n, G), one segment at a time."""
    numbers, rows, crcs = (records.column(name)[first:] for name in ("segment", "row", "descriptor_crc"))
    descriptors = np.empty((len(numbers), dim), np.float32)
    order = np.argsort(numbers, kind="stable")
    held, starts = np.unique(numbers[order], return_index=True)
    for number, here in zip(held.tolist(), np.split(order, starts[1:]), strict=False):
        segment = segments[number]
        stored = segment.read_descriptors()
        damaged = find_damaged(stored, rows[here], crcs[here])
        if damaged is not None:
            segment.check_descriptor(stored, records[first + int(here[damaged])])
        first_row, last_row = here[0], here[-1]
        if last_row - first_row + 1 == len(here) == len(stored) and (np.diff(rows[here]) == 1).all():
            descriptors[first_row : last_row + 1] = stored  # several times as fast as row by row
        else:
            descriptors[here] = stored[rows[here]]
    return descriptors
