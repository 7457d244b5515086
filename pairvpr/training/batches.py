"""Open data sets and read them as batches in worker processes, in an order that can be resumed at any step."""

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
class BatchFeed:
    """A data set read as batches.

    samples: turns draws into tensors.
    order: of the places.
    batch: places of a step over all processes.
    workers: number of reading processes, limited to the number of cores.
    """

    samples: Samples
    order: EpochOrder
    batch: int
    world: World
    workers: int

    def steps(self, steps: range, purpose: int) -> Stream:
        """Yield this process's share of the batches of some steps."""
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
            # Stop them now. A traceback may hold the last reference until Python exits, and Python then sends the
            # workers a SIGTERM, which they ignore.
            if workers:
                iterator._shutdown_workers()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class StageBatches:
    """Training and validation batches of a run.

    total: steps of the run.
    validate_steps: batches of one validation.
    """

    feed: BatchFeed
    validation_feed: BatchFeed | None
    total: int
    validate_steps: int

    def training(self, first: int) -> Stream:
        """Yield this process's share of the batches from step `first` to the end of the run."""
        return self.feed.steps(range(first, self.total), TRAINING)

    def validation(self) -> Stream:
        """Yield the validation batches, the same each time. Without validation data there are none."""
        if self.validation_feed:
            yield from self.validation_feed.steps(range(self.validate_steps), VALIDATION)

    def shown(self) -> Batch:
        """Return one batch, always the same: of the validation data if there is any."""
        with closing((self.validation_feed or self.feed).steps(range(1), SHOW)) as batches:
            return next(batches)


def open_all(sources: Sequence[SourceConfig]) -> JoinedPlaces:
    """Open the data sets of a configuration as one data set."""
    return JoinedPlaces([open_places(source.places, source.arguments) for source in sources])


def total_steps(train: OptimizerConfig, places: int, batch: int) -> int:
    """Return the length of a run in steps: the setting `steps`, or the number of batches in its epochs."""
    return train.steps or max(1, math.ceil(train.epochs * places / batch))


def require_places(places: int, batch: int, what: str) -> None:
    """Raise TrainingError if a batch would hold a place twice.

    what: name of the setting, for messages.
    """
    if places < batch:
        raise TrainingError(
            f"setting {what}: has {places} places, but a batch takes {batch}; add pictures or lower train.places"
        )


def _leave_signals_to_the_loop(worker: int) -> None:
    """Ignore signals in a worker, because the loop answers them and needs its workers until it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
