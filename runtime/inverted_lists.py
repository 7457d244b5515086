"""Sort descriptors into lists around centroids, so that a search compares only the nearest lists (faiss IVF)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import faiss
import numpy as np
import numpy.typing as npt

LEAST = 1000
"""Fewest descriptors that are sorted. Fewer are compared about as fast as centroids."""
WANTED = 0.99
"""Share of the exact search's nearest descriptors that a search of the lists must find."""
DEPTH = 100
"""Number of nearest descriptors that are looked at for this share."""
MOST_COMPARED = 0.5
"""Largest share of the descriptors that a search may compare. Beyond it, lists do not pay."""

_QUERIES = 500  # held out of the training, half of them to choose the probes and half to measure
_PER_LIST = 64  # descriptors that train a centroid
_ROUNDS = 10
_BLOCK = 1 << 16  # descriptors that are assigned at once

_Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class InvertedLists:
    """The lists of a map's first n descriptors.

    centroids: (L, G) float32.
    assigned: (n,) int64, the list of each descriptor.
    probes: number of lists that a search compares.
    """

    centroids: _Array
    assigned: npt.NDArray[np.int64]
    probes: int

    def build(self, descriptors: _Array) -> faiss.Index:
        """Return the faiss index of the descriptors (n, G), which it stores in float16."""
        count, dim = self.centroids.shape
        quantizer = faiss.IndexFlatIP(dim)
        quantizer.add(self.centroids)
        # Without residuals the stored numbers are those of the exact float16 search, and so are the similarities.
        kind = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(quantizer, dim, count, kind, faiss.METRIC_INNER_PRODUCT, False)
        index.train(self.centroids)  # fp16 learns nothing, and the quantizer has its centroids
        descriptors = np.ascontiguousarray(descriptors, np.float32)
        assigned = np.ascontiguousarray(self.assigned, np.int64)
        index.add_core(len(descriptors), faiss.swig_ptr(descriptors), None, faiss.swig_ptr(assigned))
        return index


@dataclass(frozen=True)
class ListRecall:
    """How much of the exact float32 search a search of the lists finds.

    The queries are descriptors of the map that did not train the centroids. A query's own descriptor is no result.

    at_1, at_100: shares of the nearest one and of the nearest DEPTH that are found.
    compared: mean share of the descriptors that are compared.
    queries: number of queries.
    """

    at_1: float
    at_100: float
    compared: float
    queries: int


def sort_into_lists(descriptors: _Array) -> tuple[InvertedLists, ListRecall] | None:
    """Sort descriptors (n, G), at least LEAST, into lists, and measure the recall of their search.

    The fewest lists are compared that find WANTED of the nearest. One half of the queries chooses their number, and the
    other half measures. Return None if more than MOST_COMPARED of the descriptors would have to be compared.
    """
    count = len(descriptors)
    queries = np.linspace(0, count - 1, min(_QUERIES, count // 4)).round().astype(np.int64)
    centroids = _find_centroids(descriptors, np.delete(np.arange(count), queries))
    exact = _Exact(descriptors, queries)
    lists = exact.choose_probes(InvertedLists(centroids, _assign(descriptors, centroids), len(centroids)))
    recall = exact.measure(lists)
    return (lists, recall) if recall.compared <= MOST_COMPARED else None


def _find_centroids(descriptors: _Array, rows: npt.NDArray[np.int64]) -> _Array:
    """Return about as many centroids (L, G) as minimise the work of a search, trained on some of the rows."""
    lists = round(len(descriptors) ** 0.5)
    chosen = rows[np.linspace(0, len(rows) - 1, min(_PER_LIST * lists, len(rows))).round().astype(np.int64)]
    means = faiss.Kmeans(descriptors.shape[1], lists, niter=_ROUNDS, spherical=True, seed=1, min_points_per_centroid=1)
    means.train(np.ascontiguousarray(descriptors[chosen]))
    assert means.centroids is not None  # it was trained
    return means.centroids


def _assign(descriptors: _Array, centroids: _Array) -> npt.NDArray[np.int64]:
    """Return the list (n,) of each descriptor."""
    quantizer = faiss.IndexFlatIP(centroids.shape[1])
    quantizer.add(centroids)
    blocks = (descriptors[first : first + _BLOCK] for first in range(0, len(descriptors), _BLOCK))
    return np.concatenate([quantizer.search(block, 1)[1][:, 0] for block in blocks])


class _Exact:
    """The exact nearest descriptors of some queries, which are rows of the descriptors themselves."""

    def __init__(self, descriptors: _Array, queries: npt.NDArray[np.int64]) -> None:
        self._descriptors, self._queries = descriptors, queries
        similarities, rows = faiss.knn(
            descriptors[queries], descriptors, min(DEPTH + 1, len(descriptors)), metric=faiss.METRIC_INNER_PRODUCT
        )
        others = rows != queries[:, None]
        others[others.all(axis=1), -1] = False  # its own row came after others with the same similarity
        self._similarities = similarities[others].reshape(len(queries), -1)
        self._rows = rows[others].reshape(len(queries), -1)

    def choose_probes(self, lists: InvertedLists) -> InvertedLists:
        """Return the lists with the fewest probes that find WANTED of the nearest of every other query."""
        ranks = np.argsort(self._order(lists, self._queries[::2]), axis=1)
        ranks = np.take_along_axis(ranks, lists.assigned[self._rows[::2]], axis=1)
        found = np.cumsum(np.bincount(ranks.ravel(), minlength=len(lists.centroids))) / ranks.size
        return replace(lists, probes=int(np.argmax(found >= WANTED)) + 1)

    def measure(self, lists: InvertedLists) -> ListRecall:
        """Measure the search with the other queries.

        A result counts if it is as similar as the last exact one, so that equal descriptors are worth the same.
        """
        index = lists.build(self._descriptors)
        queries = self._queries[1::2]
        _, found = index.search(
            self._descriptors[queries],
            self._similarities.shape[1] + 1,
            params=faiss.SearchParametersIVF(**{"nprobe": lists.probes}),
        )
        probed = self._order(lists, queries)[:, : lists.probes]
        sizes = np.bincount(lists.assigned, minlength=len(lists.centroids))
        at_1, at_depth = np.mean(list(self._shares(queries, found, self._similarities[1::2])), axis=0).tolist()
        compared = float(sizes[probed].sum(axis=1).mean()) / len(self._descriptors)
        return ListRecall(at_1, at_depth, compared, len(queries))

    def _order(self, lists: InvertedLists, queries: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the lists in the order of their nearness to each query, (len(queries), L)."""
        return np.argsort(-(self._descriptors[queries] @ lists.centroids.T), axis=1, kind="stable")

    def _shares(
        self, queries: npt.NDArray[np.int64], found: npt.NDArray[np.int64], exact: _Array
    ) -> Iterator[tuple[bool, float]]:
        for query, rows, wanted in zip(queries, found, exact, strict=True):
            rows = rows[(rows >= 0) & (rows != query)]
            similarities = self._descriptors[rows] @ self._descriptors[query] + 1e-6  # summed in another order
            depth = len(wanted)
            right = min(int((similarities >= wanted[-1]).sum()), depth)
            yield bool((similarities >= wanted[0]).any()), right / depth
