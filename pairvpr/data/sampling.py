"""Which places are seen in which order, and the seed of everything random about them.

All of it is a function of the run's seed and the position in the stream of places: there is no state to
save. A run resumes from a step number, and neither the number of workers nor that of processes changes a
picture. The stream is cut into batches across all processes: process r of n takes the r-th n-th of each batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

ORDER, TRAINING, VALIDATION, SHOW = range(4)
"""What a seed is for, so that none serves twice."""


@dataclass(frozen=True)
class Draw:
    """A place to look at, and the seed of all that is random about it."""

    place: int
    seed: tuple[int, ...]

    def rng(self) -> np.random.Generator:
        """A fresh generator of this draw."""
        return np.random.default_rng(self.seed)


class EpochOrder:
    """An endless stream of places: every place once an epoch, groups in random order, shuffled inside."""

    def __init__(self, groups: Sequence[int], seed: int) -> None:
        """`groups`: sizes of runs of consecutive places; a single one shuffles everything."""
        self.sizes = tuple(groups)
        self.places = sum(self.sizes)
        self.seed = seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def place(self, position: int) -> int:
        """The place at a position of the stream, from 0 on."""
        epoch, offset = divmod(position, self.places)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return int(self._order[offset])

    def _shuffled(self, epoch: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng((self.seed, ORDER, epoch))
        starts = np.cumsum([0, *self.sizes])
        groups = rng.permutation(len(self.sizes))
        return np.concatenate([starts[group] + rng.permutation(self.sizes[group]) for group in groups])


class StepBatches(Sampler[list[Draw]]):
    """The draws of this process, step by step."""

    def __init__(
        self,
        order: EpochOrder,
        batch: int,
        steps: range,
        *,
        purpose: int = TRAINING,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """`batch`: places of a step over all `processes`, which must divide it; `steps`: those to yield."""
        if batch % processes:
            raise ValueError(f"a batch of {batch} cannot be shared among {processes} processes")
        self.order, self.batch, self.steps, self.purpose = order, batch, steps, purpose
        self.share = batch // processes
        self.first = rank * self.share

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in self.steps:
            start = step * self.batch + self.first
            yield [self.draw(position) for position in range(start, start + self.share)]

    def draw(self, position: int) -> Draw:
        """The draw at a position of the stream."""
        return Draw(self.order.place(position), (self.order.seed, self.purpose, position))
