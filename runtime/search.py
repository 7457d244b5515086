"""Search descriptors: find the database pictures worth comparing."""

from __future__ import annotations

from typing import Protocol

import faiss
import numpy as np
import numpy.typing as npt

HALF_PRECISION_FROM = 50_000
"""Number of pictures from which the index stores float16: half the memory, the same order except near-ties."""


class DescriptorIndex(Protocol):
    """Find the nearest descriptors. Any search library can implement this."""

    def search(
        self, descriptor: npt.NDArray[np.float32], k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return similarities (k,), best first, and rows (k,) of the k rows nearest to one descriptor (1, G)."""
        ...


class FaissIndex:
    """Search L2-normalised descriptors (n, G) float32 exhaustively by inner product."""

    def __init__(self, descriptors: npt.NDArray[np.float32]) -> None:
        count, dim = descriptors.shape
        if count < HALF_PRECISION_FROM:
            self._index: faiss.Index = faiss.IndexFlatIP(dim)
        else:
            self._index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
            self._index.train(descriptors)
        self._index.add(descriptors)

    def search(
        self, descriptor: npt.NDArray[np.float32], k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return similarities and rows as `DescriptorIndex` does. k must not exceed the number of descriptors."""
        similarities, rows = self._index.search(descriptor, k)
        found = rows[0] >= 0  # faiss gives -1 in place of rows that it did not find
        return similarities[0][found], rows[0][found]


def search_among(
    descriptors: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    descriptor: npt.NDArray[np.float32],
    k: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Search only some `rows` of the descriptors (n, G), as a map of these pictures alone would be searched.

    Return similarities and rows of the nearest ones to one descriptor (1, G), at most k, best first. Equal ones are in
    the order of their rows.
    """
    similarities = descriptors[rows] @ descriptor[0]
    order = np.lexsort((rows, -similarities))[:k]
    return similarities[order], rows[order]
