"""Distillation: answers of a trained network for a batch, for a smaller network to learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pairvpr.errors import TrainingError
from pairvpr.model import WeightsInfo, load_checkpoint
from pairvpr.training.config import TeacherConfig
from pairvpr.training.distributed import World
from pairvpr.training.losses import Pairs, off_diagonal_order


@dataclass(frozen=True)
class Lesson:
    """The teacher's features of the global batch.

    descriptors: (B, G), where G is the student's width. The similarities of the teacher's own descriptors are nearly
        kept.
    tokens: decoder-ready (B, T', D').
    """

    descriptors: Tensor
    tokens: Tensor

    def pairs(self) -> Pairs:
        """Return pairs to score without labels: each picture with its most similar one, and with another one.

        The other one has a different rank of similarity for each picture, so that all ranks occur equally often.
        """
        order = off_diagonal_order(self.descriptors)  # (B, B - 1)
        anchors = torch.arange(len(order), device=order.device)
        return Pairs(anchors, order[:, 0], order[anchors, anchors % order.shape[1]])


class Teacher:
    """A frozen network. It is not a submodule of the student, so that neither DDP nor a checkpoint includes it."""

    def __init__(self, config: TeacherConfig, world: World, width: int) -> None:
        """Load the teacher.

        width: of the student's descriptors.
        Raises CheckpointError, or TrainingError for a stage-one checkpoint, which scores no pairs.
        """
        checkpoint = load_checkpoint(config.checkpoint)
        if not checkpoint.network.config.pair_classifier:
            raise TrainingError(
                f"setting teacher.checkpoint: {config.checkpoint} is a stage-one checkpoint and scores no pairs; "
                "give a stage-two checkpoint"
            )
        self.network = checkpoint.network.to(world.device).requires_grad_(False)
        self.weights: WeightsInfo = checkpoint.weights
        self.weight, self.world = config.weight, world
        self.rotation = rotation(self.network.config.descriptor_dim, width).to(world.device)

    @torch.no_grad()
    def look(self, images: Tensor) -> Lesson:
        """Return the lesson of the global batch.

        images: this process's pictures uint8 (b, S, S, 3). They are resized to the teacher's size.
        """
        descriptors, tokens = self.network.encode(resized(images, self.network.config.image_size))
        descriptors = F.normalize(descriptors @ self.rotation, dim=-1)
        return Lesson(self.world.gather(descriptors), self.world.gather(tokens))

    @torch.no_grad()
    def logits(self, lesson: Lesson, firsts: Tensor, seconds: Tensor) -> Tensor:
        """Return pair logits (N,) in one order, of pictures given by their indices (N,) in the global batch."""
        return self.network.pair_logits(lesson.tokens[firsts], lesson.tokens[seconds]).float()


def resized(images: Tensor, side: int) -> Tensor:
    """Resize pictures uint8 (B, S, S, 3) to uint8 (B, side, side, 3)."""
    if images.shape[1] == side:
        return images
    scaled = F.interpolate(images.permute(0, 3, 1, 2).float(), (side, side), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def rotation(taught: int, learnt: int) -> Tensor:
    """Return (taught, learnt) orthonormal rows or columns that map descriptors of one width to another.

    They are always the same. More dimensions keep all similarities. Fewer keep them to about 1 / sqrt(learnt) (Johnson
    & Lindenstrauss 1984). Equal widths give the identity.
    """
    if taught == learnt:
        return torch.eye(taught)
    turn: Tensor = torch.linalg.qr(
        torch.randn(max(taught, learnt), min(taught, learnt), generator=torch.Generator().manual_seed(0))
    ).Q
    return turn if taught > learnt else turn.T
