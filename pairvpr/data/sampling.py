"""Order of the places in training, and the seeds of their random choices.

Everything is a function of the run's seed and the position in the stream of places, so there is no state to save. A run
resumes from a step number, and neither the number of workers nor the number of processes changes a picture. The stream
is cut into batches across all processes: process r of n takes the r-th n-th of each batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

ORDER, TRAINING, VALIDATION, SHOW = range(4)
"""Purposes of a seed, so that no seed is used twice."""


@dataclass(frozen=True)
class Draw:
    """A place to read, and the seed of every random choice about it."""

    place: int
    seed: tuple[int, ...]

    def rng(self) -> np.random.Generator:
        """Return a fresh generator of this draw."""
        return np.random.default_rng(self.seed)


class EpochOrder:
    """An endless stream of places: each place once an epoch, groups in random order, shuffled inside."""

    def __init__(self, groups: Sequence[int], seed: int) -> None:
        """Set the groups and the seed.

        groups: sizes of the runs of consecutive places. A single run shuffles all places.
        """
        self.sizes = tuple(groups)
        self.places = sum(self.sizes)
        self.seed = seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def place(self, position: int) -> int:
        """Return the place at a position of the stream, counted from 0."""
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
    """Draws of this process, one list for each step."""

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
        """Set the steps and this process's share of each.

        batch: places of a step over all `processes`, which must divide it.
        steps: the steps to yield.
        purpose: part of the seeds, see TRAINING.
        rank: number of this process.
        Raises ValueError if the batch cannot be divided.
        """
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
        """Return the draw at a position of the stream."""
        return Draw(self.order.place(position), (self.order.seed, self.purpose, position))
