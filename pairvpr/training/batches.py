"""Batches of either stage: data sets opened, read by workers, in an order that resumes from any step."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from pairvpr.data.places import JoinedPlaces, open_places
from pairvpr.data.samples import PairSamples, PlaceSamples
from pairvpr.data.sampling import SHOW, TRAINING, VALIDATION, EpochOrder, StepBatches
from pairvpr.errors import TrainingError
from pairvpr.machine import usable_cores
from pairvpr.training.config import OptimizerConfig, SourceConfig
from pairvpr.training.distributed import World
from pairvpr.training.loop import Batch, Stream

Samples = PairSamples | PlaceSamples


@dataclass(frozen=True)
class Feed:
    """A data set as batches.

    samples: draws to tensors. order: of the places. batch: places of a step over all processes. workers: processes
    that read, at most as many as there are cores.
    """

    samples: Samples
    order: EpochOrder
    batch: int
    world: World
    workers: int

    def steps(self, steps: range, purpose: int) -> Stream:
        """Batches of some steps, as far as they are this process' own."""
        draws = StepBatches(
            self.order, self.batch, steps, purpose=purpose, rank=self.world.rank, processes=self.world.size
        )
        workers = min(self.workers, usable_cores())
        loader: DataLoader[Batch] = DataLoader(
            self.samples,
            batch_sampler=draws,
            num_workers=workers,
            collate_fn=self.samples.collate,
            worker_init_fn=_leave_signals_to_the_loop,
            pin_memory=self.world.device.type == "cuda",
        )
        iterator = iter(loader)
        try:
            yield from iterator
        finally:
            # Now, not when the last reference goes, which a traceback may hold until Python exits: Python then
            # asks workers to stop with a SIGTERM, which they ignore.
            if workers:
                iterator._shutdown_workers()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class StageBatches:
    """Training and validation batches of a run of `total` steps; `validate_steps` batches are a validation."""

    feed: Feed
    validation_feed: Feed | None
    total: int
    validate_steps: int

    def training(self, first: int) -> Stream:
        """Batches from step `first` to the end of the run, this process' share of each."""
        return self.feed.steps(range(first, self.total), TRAINING)

    def validation(self) -> Stream:
        """The same batches each time; none without validation data."""
        if self.validation_feed:
            yield from self.validation_feed.steps(range(self.validate_steps), VALIDATION)

    def shown(self) -> Batch:
        """One batch, always the same: of the validation data if there are some."""
        with closing((self.validation_feed or self.feed).steps(range(1), SHOW)) as batches:
            return next(batches)


def open_all(sources: Sequence[SourceConfig]) -> JoinedPlaces:
    """The data sets of a configuration as one."""
    return JoinedPlaces([open_places(source.places, source.arguments) for source in sources])


def total_steps(train: OptimizerConfig, places: int, batch: int) -> int:
    """The length of a run: its own setting, or as many batches as its epochs have."""
    return train.steps or max(1, math.ceil(train.epochs * places / batch))


def require_places(places: int, batch: int, what: str) -> None:
    """Raises TrainingError where a batch would hold a place twice."""
    if places < batch:
        raise TrainingError(
            f"setting {what}: holds {places} places, a batch takes {batch}; add pictures or lower train.places"
        )


def _leave_signals_to_the_loop(worker: int) -> None:
    """Workers live until the loop has saved: a signal to the whole process group is the loop's to answer."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
