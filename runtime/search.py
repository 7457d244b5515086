"""Search descriptors: find the database pictures worth comparing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from pairvpr.runtime.inverted_lists import InvertedLists

_SPARE = 8  # pictures searched beyond k, so that equal ones at the edge mostly show in one search

Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


class DescriptorIndex(Protocol):
    """Find the nearest descriptors. Any search library can implement this."""

    def search(self, descriptor: npt.NDArray[np.float32], k: int) -> Found:
        """Return similarities (k,), best first, and rows (k,) of the k rows nearest to one descriptor (1, G)."""
        ...


class FaissIndex:
    """Search L2-normalised descriptors (n, G) float32 by inner product, exhaustively unless there are lists.

    Equal similarities are in the order of their rows, also at the edge of the k nearest.
    """

    def __init__(
        self, descriptors: npt.NDArray[np.float32], precision: str = "float32", lists: InvertedLists | None = None
    ) -> None:
        """Build the index.

        precision: "float32", or "float16" for half the memory and the same order except for near-ties.
        lists: lists of the first descriptors, of which a search then compares only some, in float16. It compares all
        descriptors after them.
        """
        self._precision, parts = precision, []
        if lists is not None and (listed := len(lists.assigned)):
            parts = [_Part(lists.build(descriptors[:listed]), listed, lists.probes)]
            descriptors = descriptors[listed:]
        if len(descriptors) or not parts:
            parts.append(_Part.of(descriptors, precision))
        self._parts: tuple[_Part, ...] = tuple(parts)

    def __len__(self) -> int:
        return sum(part.count for part in self._parts)

    def search(self, descriptor: npt.NDArray[np.float32], k: int) -> Found:
        """Return similarities and rows as `DescriptorIndex` does. k must not exceed the number of descriptors."""
        first, found = 0, []
        for part in self._parts:
            similarities, rows = part.search(descriptor, min(k, part.count))
            found.append((similarities, rows + first))
            first += part.count
        similarities, rows = (np.concatenate(each) for each in zip(*found, strict=True))
        order = np.lexsort((rows, -similarities))[:k]
        return similarities[order], rows[order]

    def updated(self, removed: npt.NDArray[np.int64], added: npt.NDArray[np.float32]) -> FaissIndex:
        """Return the index without the rows `removed` (ascending) and with the descriptors `added` (m, G) at its end.

        Both indices can be searched, and share what did not change. The cost follows from the change: parts are
        joined only when the later one has half the size of the earlier one. Lists stay as they are.
        """
        parts, first = [], 0
        for part in self._parts:
            here = removed[(removed >= first) & (removed < first + part.count)] - first
            first += part.count
            parts.append(part.without(here) if len(here) else part)
        if len(added):
            parts.append(_Part.of(added, self._precision))
        while len(parts) > 1 and not parts[-2].probes and 2 * parts[-1].count >= parts[-2].count:
            last = [part.descriptors() for part in parts[-2:]]
            parts[-2:] = [_Part.of(np.concatenate(last), self._precision)]
        index = FaissIndex.__new__(FaissIndex)
        index._precision, index._parts = self._precision, tuple(parts)
        return index


@dataclass(frozen=True)
class _Part:
    """A faiss index that never changes, and those of its places that are still in the map.

    count: number of these places.
    probes: number of lists that a search compares, 0 for an index without lists.
    places: (count,) int64, ascending, or None for all.
    bits: the same as a bit for each place of the index.
    """

    index: faiss.Index
    count: int
    probes: int = 0
    places: npt.NDArray[np.int64] | None = None
    bits: npt.NDArray[np.uint8] | None = None

    @staticmethod
    def of(descriptors: npt.NDArray[np.float32], precision: str) -> _Part:
        count, dim = descriptors.shape
        if precision == "float32":
            index: faiss.Index = faiss.IndexFlatIP(dim)
        elif precision == "float16":
            index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
            index.train(descriptors)
        else:
            raise ValueError(f"precision {precision!r}")
        index.add(descriptors)
        return _Part(index, count)

    def without(self, rows: npt.NDArray[np.int64]) -> _Part:
        """Return the part without some of its rows."""
        places = np.delete(np.arange(self.count) if self.places is None else self.places, rows)
        held = np.zeros(self.index.ntotal, np.bool_)
        held[places] = True
        return _Part(self.index, len(places), self.probes, places, np.packbits(held, bitorder="little"))

    def descriptors(self) -> npt.NDArray[np.float32]:
        """Return the descriptors (count, G) as an index without lists stores them."""
        stored: npt.NDArray[np.float32] = self.index.reconstruct_n(0, self.index.ntotal)
        return stored if self.places is None else stored[self.places]

    def search(self, descriptor: npt.NDArray[np.float32], k: int) -> Found:
        """Return similarities (k,) and rows (k,) of the k nearest, best first, equal ones by row."""
        if not k:
            return np.zeros(0, np.float32), np.zeros(0, np.int64)
        depth, probes = min(k + _SPARE, self.count), self.probes
        while True:
            similarities, places = self._search(descriptor, depth, probes)
            if len(places) < min(k, self.count) and probes < self._lists:
                probes = min(2 * probes, self._lists)  # those lists hold too few
                continue
            if depth == self.count or len(places) < depth or similarities[k - 1] > similarities[-1]:
                break
            depth = min(2 * depth, self.count)  # more may be equal to the last
        order = np.lexsort((places, -similarities))[:k]
        rows = places if self.places is None else np.searchsorted(self.places, places)
        return similarities[order], rows[order]

    @property
    def _lists(self) -> int:
        """Return the number of lists, 0 without lists."""
        return self.index.nlist if isinstance(self.index, faiss.IndexIVF) else 0

    def _search(self, descriptor: npt.NDArray[np.float32], depth: int, probes: int) -> Found:
        """Return similarities and places of the nearest ones, at most `depth`, as faiss orders them."""
        how: dict[str, Any] = {"nprobe": probes} if probes else {}
        if self.bits is not None:
            how["sel"] = faiss.IDSelectorBitmap(len(self.bits), faiss.swig_ptr(self.bits))
        if how:
            kind = faiss.SearchParametersIVF if probes else faiss.SearchParameters
            how = {"params": kind(**how)}
        similarities, places = (each[0] for each in self.index.search(descriptor, depth, **how))
        found = places >= 0  # faiss gives -1 in place of those that it did not find
        return similarities[found], places[found]


def search_among(
    descriptors: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    descriptor: npt.NDArray[np.float32],
    k: int,
    precision: str = "float32",
) -> Found:
    """Search only some rows of a map, as a map of these pictures alone would be searched.

    descriptors: (m, G), those of the `rows` (m,), which ascend.

    Return similarities and rows of the nearest ones to one descriptor (1, G), at most k, best first. Equal ones are in
    the order of their rows.
    """
    similarities, found = FaissIndex(descriptors, precision).search(descriptor, min(k, len(rows)))
    return similarities, rows[found]
