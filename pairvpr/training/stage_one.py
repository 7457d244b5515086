"""Stage one: masked image modelling of pairs. It is CroCo's task, and Pair-VPR trains encoder and decoder with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from pairvpr.data.places import PlaceDataset
from pairvpr.data.samples import PairBatch, PairSamples
from pairvpr.data.sampling import EpochOrder
from pairvpr.data.transforms import CropAndJitter
from pairvpr.errors import TrainingError
from pairvpr.model import Checkpoint, PairVPR
from pairvpr.training.batches import BatchFeed, StageBatches, open_all, total_steps
from pairvpr.training.config import StageOneConfig
from pairvpr.training.distributed import World, joined_world
from pairvpr.training.initial import initial_checkpoint
from pairvpr.training.log import Progress
from pairvpr.training.loop import Loop, Plan, RunResult, StepOutcome
from pairvpr.training.losses import reconstruction_loss, reconstruction_target
from pairvpr.training.reconstructions import ROWS, write_reconstructions
from pairvpr.training.schedules import StageOneSchedule, freeze, parameter_groups
from pairvpr.training.settings import write_toml
from pairvpr.training.state import RunFolder

LR_BATCH = 1024  # batch size that the learning rate is given for (recipe)


class StageOneObjective(nn.Module):
    """Predict the hidden patches of one picture from its visible patches and from the other picture of the pair."""

    def __init__(self, network: PairVPR) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: PairBatch) -> StepOutcome:
        """Return the loss of a batch, the mean over its hidden patches."""
        prediction = self.network.reconstruct(batch.masked, batch.mask, batch.reference)
        target = reconstruction_target(self.network.normalise(batch.masked), self.network.encoder.patch_size)
        loss = reconstruction_loss(prediction, target, batch.mask)
        return StepOutcome(loss, {"loss": loss})


def train_stage_one(config: StageOneConfig, progress: Callable[[Progress], None] | None = None) -> RunResult:
    """Train the run in `config.out`, or resume it. Raise PairVPRError on failure.

    Under torchrun every process calls this. The result is the same for any number of processes.
    progress: called every `run.log_every` steps in the first process.
    """
    with joined_world(config.run.device) as world, RunFolder(config.out, write_toml(config), world.first) as folder:
        start = folder.checkpoint() or initial_checkpoint(config)
        return Loop(plan_stage_one(config, world, start), config.run, folder, world, progress).run()


def plan_stage_one(config: StageOneConfig, world: World, start: Checkpoint) -> Plan:
    """Return the loop's plan of a stage-one run whose current weights are `start`."""
    train = config.train
    places = open_all(config.data)
    steps = total_steps(train, len(places), train.batch)
    warmup = round(train.warmup_epochs * len(places) / train.batch)
    if warmup >= steps:
        raise TrainingError(
            f"setting train.warmup_epochs: are {warmup} steps, but the run has {steps}; lower it or raise train.steps"
        )
    world.share(train.batch, "train.batch")

    network = start.network.to(world.device)
    freeze(network, "one", train.trained_blocks)
    objective = StageOneObjective(network)

    feed = partial(_feed, tokens=len(network.decoder.positions), config=config, world=world)
    validation = feed(open_all(config.validation)) if config.validation else None
    batches = StageBatches(feed(places), validation, steps, train.validate_steps)
    lr = train.lr * (train.batch / LR_BATCH) ** 0.5
    return Plan(
        network=network,
        weights=start.weights,
        objective=objective,
        batches=batches,
        groups=parameter_groups(network, train.layer_decay, train.patch_embed_lr),
        rates=StageOneSchedule(lr, train.min_lr, train.weight_decay, train.final_weight_decay, warmup, steps),
        steps=steps,
        pictures_per_step=2 * train.batch,
        train=train,
        seed=config.seed,
        best=("loss", False),
        memory="train.batch or network.image_size",
        show=partial(_show, network, batches, world),
    )


def _feed(places: PlaceDataset, *, tokens: int, config: StageOneConfig, world: World) -> BatchFeed:
    samples = PairSamples(places, CropAndJitter(config.network.image_size), tokens, config.train.mask_ratio)
    return BatchFeed(samples, EpochOrder([len(places)], config.seed), config.train.batch, world, config.run.workers)


def _show(network: PairVPR, batches: StageBatches, world: World, path: Path) -> None:
    """Write the network's reconstruction of a few pairs, always the same ones."""
    shown = cast(PairBatch, batches.shown()).to(world.device)
    masked, reference, mask = (x[:ROWS] for x in (shown.masked, shown.reference, shown.mask))
    network.eval()
    with torch.no_grad():
        prediction = network.reconstruct(masked, mask, reference)
        write_reconstructions(
            network.normalise(masked), network.normalise(reference), mask, prediction, path, network.config
        )
    network.train()
