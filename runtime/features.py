"""Hold the encoder's output: descriptors for the search and tokens for the pair classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, repr=False)
class Features:
    """Hold the features of n pictures. `features[i]` and `features[i:j]` are Features too.

    descriptors: (n, G) float32, L2-normalised global descriptors.
    tokens: (n, T, D) float32 or float16, decoder-ready: embedded and with positions added. (n, 0, 0) from a model
    without a pair classifier.
    """

    descriptors: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.floating]

    def __repr__(self) -> str:
        return f"Features(descriptors {self.descriptors.shape}, tokens {self.tokens.shape})"

    def __len__(self) -> int:
        return len(self.descriptors)

    def __getitem__(self, which: int | slice) -> Features:
        if not isinstance(which, slice):
            index = range(len(self))[which]  # raises IndexError, so that iteration ends
            which = slice(index, index + 1)
        return Features(self.descriptors[which], self.tokens[which])

    @staticmethod
    def concatenate(parts: Sequence[Features]) -> Features:
        """Join the pictures of `parts`, in order. `parts` must not be empty."""
        return Features(
            np.concatenate([part.descriptors for part in parts]),
            np.concatenate([part.tokens for part in parts]),
        )


def similarities_of(descriptor: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the similarities (n,) of one descriptor (G,) with others (n, G).

    Each is summed by itself, so its last bits do not depend on the others, as in a product of matrices.
    """
    similarities: npt.NDArray[np.float32] = (others * descriptor).sum(axis=1, dtype=np.float32)
    return similarities
