"""Stage two: train descriptor and pair classifier together, on a batch that is mined across all processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from pairvpr.data.places import PlaceDataset
from pairvpr.data.samples import PlaceBatch, PlaceSamples
from pairvpr.data.sampling import EpochOrder
from pairvpr.data.transforms import CropAndRelight, Revisit, Squash, SquashAndAugment, Transform
from pairvpr.model import Checkpoint, PairVPR
from pairvpr.training.batches import BatchFeed, StageBatches, open_all, require_places, total_steps
from pairvpr.training.config import StageTwoConfig
from pairvpr.training.distributed import World, joined_world
from pairvpr.training.initial import initial_checkpoint
from pairvpr.training.log import Progress
from pairvpr.training.loop import Loop, Plan, RunResult, StepOutcome
from pairvpr.training.losses import (
    PairChoice,
    Pairs,
    choose_pairs,
    descriptor_loss,
    nearest_is_same,
    pair_loss,
    score_distillation,
    similarity_distillation,
)
from pairvpr.training.schedules import StageTwoSchedule, freeze, parameter_groups
from pairvpr.training.settings import write_toml
from pairvpr.training.state import RunFolder
from pairvpr.training.teacher import Teacher, resized


class StageTwoObjective(nn.Module):
    """Descriptor loss of the global batch and loss of its pairs, with or replaced by a teacher's losses."""

    def __init__(
        self,
        network: PairVPR,
        world: World,
        pair_weight: float,
        labelled: bool = True,
        teacher: Teacher | None = None,
        pairs: PairChoice = "hardest",
    ) -> None:
        """Set the losses.

        pair_weight: weight of the pair loss.
        labelled: use the labels' losses.
        teacher: use the losses of distillation. Without labels there must be a teacher.
        pairs: choice of the labels' pairs.
        """
        super().__init__()
        self.network, self.world, self.pair_weight = network, world, pair_weight
        self.labelled, self.teacher, self.pairs = labelled, teacher, pairs

    def forward(self, batch: PlaceBatch) -> StepOutcome:
        """Return the process's part of the loss: the whole descriptor loss, and the pairs whose anchors it holds.

        Parts are scaled so that their mean over the processes is the loss, because DDP averages the gradients.
        """
        # Encode the pictures of this process, and share descriptors and tokens.
        images = resized(batch.images, self.network.config.image_size)
        descriptors, tokens = map(self.world.gather, self.network.encode(images))
        labels = self.world.gather(batch.labels)
        lesson = self.teacher.look(batch.images) if self.teacher else None

        measures: dict[str, Tensor] = {}
        total = descriptors.new_zeros(())
        if self.labelled:
            measures["descriptor_loss"] = descriptor_loss(descriptors, labels)
            measures["descriptor_accuracy"] = nearest_is_same(descriptors.detach(), labels)
            measures["accuracy"] = measures["descriptor_accuracy"]
            total = total + measures["descriptor_loss"]
        if not self.pair_weight and lesson is None:
            return StepOutcome(total, {"loss": total, **measures})

        # Mine in the global batch.
        pairs = choose_pairs(descriptors, labels, self.pairs) if self.labelled or lesson is None else lesson.pairs()
        scale = self.world.size / (2 * len(pairs.anchors))  # the mean is over positives and negatives
        firsts, seconds = self._mine(pairs, len(batch.images))

        # Score the pairs whose anchor is here, in one order, anchor first.
        logits = self.network.pair_logits(tokens[firsts], tokens[seconds])
        if self.labelled:
            positive, negative = logits.chunk(2)
            measures["pair_loss"] = scale * pair_loss(positive, negative)
            measures["pair_accuracy"] = 2 * scale * (positive > negative).float().sum()
            measures["accuracy"] = (measures["descriptor_accuracy"] + measures["pair_accuracy"]) / 2
            total = total + self.pair_weight * measures["pair_loss"]
        if self.teacher is not None and lesson is not None:
            taught = self.teacher.logits(lesson, firsts, seconds)
            measures["similarity_distillation"] = similarity_distillation(descriptors, lesson.descriptors)
            measures["score_distillation"] = scale * score_distillation(logits, taught)
            distilled = measures["similarity_distillation"] + measures["score_distillation"]
            total = total + self.teacher.weight * distilled
        return StepOutcome(total, {"loss": total, **measures})

    def _mine(self, pairs: Pairs, held: int) -> tuple[Tensor, Tensor]:
        """Return the first and second pictures of this process's pairs, positives then negatives.

        It holds `held` pictures.
        """
        here = pairs.anchors // held == self.world.rank
        anchors, positives, negatives = (indices[here] for indices in pairs)
        return torch.cat([anchors, anchors]), torch.cat([positives, negatives])


def train_stage_two(config: StageTwoConfig, progress: Callable[[Progress], None] | None = None) -> RunResult:
    """Train the run in `config.out`, or resume it. Raise PairVPRError on failure.

    Under torchrun every process calls this. The result is the same for any number of processes.
    progress: called every `run.log_every` steps in the first process.
    """
    with joined_world(config.run.device) as world, RunFolder(config.out, write_toml(config), world.first) as folder:
        teacher = Teacher(config.teacher, world, config.network.descriptor_dim) if config.teacher.checkpoint else None
        start = folder.checkpoint() or initial_checkpoint(config, teacher.weights if teacher else None)
        return Loop(plan_stage_two(config, world, start, teacher), config.run, folder, world, progress).run()


def plan_stage_two(config: StageTwoConfig, world: World, start: Checkpoint, teacher: Teacher | None) -> Plan:
    """Return the loop's plan of a stage-two run whose current weights are `start`."""
    train = config.train
    labelled = train.pictures_per_place > 1
    # Pictures have the larger of the teacher's and the student's size.
    side = max(network.config.image_size for network in (start.network, *([teacher.network] if teacher else [])))
    places = open_all(config.data)
    require_places(len(places), train.places, "data")
    steps = total_steps(train, len(places), train.places)
    world.share(train.places, "train.places")

    network = start.network.to(world.device)
    freeze(network, "two" if train.pair_weight or teacher else "descriptor", train.trained_blocks)
    objective = StageTwoObjective(network, world, train.pair_weight, labelled, teacher, train.pairs)

    feed = partial(_feed, config=config, world=world)
    validation = None
    if config.validation:
        held_out = open_all(config.validation)
        require_places(len(held_out), train.places, "validation")
        validation = feed(held_out, Squash(side))
    transforms: dict[str, Transform] = {
        "randaugment": SquashAndAugment(side),
        "relight": CropAndRelight(side, train.strength),
        "revisit": Revisit(side, train.strength),
    }
    transform = transforms[train.augmentation]
    batches = StageBatches(feed(places, transform), validation, steps, train.validate_steps)
    return Plan(
        network=network,
        weights=start.weights,
        objective=objective,
        batches=batches,
        groups=parameter_groups(network),
        rates=StageTwoSchedule(train.lr, train.weight_decay, train.decay_to, train.decay_steps, train.warmup_steps),
        steps=steps,
        pictures_per_step=train.places * train.pictures_per_place,
        train=train,
        seed=config.seed,
        best=("accuracy", True) if labelled else ("loss", False),
        memory="train.places, train.pictures_per_place or network.image_size",
    )


def _feed(places: PlaceDataset, transform: Transform, *, config: StageTwoConfig, world: World) -> BatchFeed:
    samples = PlaceSamples(places, transform, config.train.pictures_per_place)
    groups = places.groups if config.train.order == "groups" else [len(places)]
    return BatchFeed(samples, EpochOrder(groups, config.seed), config.train.places, world, config.run.workers)
