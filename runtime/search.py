"""Descriptor search: which database pictures are worth comparing."""

from __future__ import annotations

from typing import Protocol

import faiss
import numpy as np
import numpy.typing as npt

HALF_PRECISION_FROM = 50_000
"""Pictures from which the index stores descriptors in float16: half the memory, the same order but for near-ties."""


class DescriptorIndex(Protocol):
    """Something that finds the nearest descriptors; another library can stand behind it."""

    def search(
        self, descriptor: npt.NDArray[np.float32], k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k best rows for one descriptor (1, G): similarities (k,), best first, and rows (k,)."""
        ...


class FaissIndex:
    """Exhaustive inner-product search over L2-normalised descriptors (n, G) float32."""

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
        """See `DescriptorIndex`; k must not exceed the number of descriptors."""
        similarities, rows = self._index.search(descriptor, k)
        return similarities[0], rows[0]
