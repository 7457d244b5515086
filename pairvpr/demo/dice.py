"""Random numbers that are the same on every machine and with every numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


class Dice:
    """Draws from numpy's Philox, keyed by two numbers of 0 or more.

    Only its raw 64-bit words are used, whose order numpy guarantees, and only arithmetic that IEEE 754 rounds
    in one way follows them: numpy's own distributions may change between versions, and libm between machines.
    """

    def __init__(self, place: int, stream: int) -> None:
        self._words = np.random.Philox(key=np.array([place, stream], np.uint64))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number of low to high."""
        return low + (high - low) * ((int(self._words.random_raw()) >> 11) / 2**53)

    def integer(self, low: int, high: int) -> int:
        """A whole number of low to high, both included."""
        return low + int(self._words.random_raw()) % (high - low + 1)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.integer(0, len(options) - 1)]

    def noise(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Independent numbers of -1 to 1, triangular around 0."""
        count = int(np.prod(shape))
        words: npt.NDArray[np.uint64] = self._words.random_raw(-(-count // 4))
        halves = words.astype("<u8").view(np.uint8).reshape(-1, 2)[:count]
        total = halves[:, 0].astype(np.float32) + halves[:, 1]
        return ((total - np.float32(255)) / np.float32(255)).reshape(shape)
