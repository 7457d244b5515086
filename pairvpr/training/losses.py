"""What both stages minimise. Everything is computed in float32, whatever the network ran in."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import BatchHardMiner, MultiSimilarityMiner
from torch import Tensor

PATCH_EPS = 1e-6  # added to a patch's variance (recipe)
ALPHA, BETA, BASE = 1.0, 50.0, 0.0  # of the multi-similarity loss (recipe; Wang et al., CVPR 2019)
MINER_EPSILON = 0.1  # margin of its miner (recipe)
TEMPERATURE = 0.1
"""Of the similarities that a teacher passes on. Our choice: at 0.1, a picture of the same place (similarity 0.8 or so)
outweighs hundreds of others (0.2 or so), while these still count."""


PairChoice = Literal["hardest", "ranked", "easy"]


class Pairs(NamedTuple):
    """Indices (A,) into a batch: every anchor with its positive and its negative."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor


def patches(images: Tensor, patch: int) -> Tensor:
    """Pictures (B, 3, H, W) -> the pixels of their patches (B, T, patch * patch * 3), colour last (as in MAE)."""
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatch(pixels: Tensor, patch: int) -> Tensor:
    """Pixels of patches (B, T, patch * patch * 3) of square pictures -> pictures (B, 3, H, W): `patches` backwards."""
    side = round(pixels.shape[1] ** 0.5)
    grid = pixels.reshape(len(pixels), side, side, patch, patch, 3)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(pixels), 3, side * patch, side * patch)


def patch_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (B, T, 1) of each patch's pixels (B, T, P): unbiased variance, PATCH_EPS added (recipe)."""
    return pixels.mean(-1, keepdim=True), (pixels.var(-1, keepdim=True) + PATCH_EPS).sqrt()


def reconstruction_target(images: Tensor, patch: int) -> Tensor:
    """Normalised pictures (B, 3, H, W) -> per-patch normalised pixels (B, T, P), what stage one predicts."""
    pixels = patches(images, patch)
    mean, deviation = patch_statistics(pixels)
    return (pixels - mean) / deviation


def reconstruction_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the patches (B, T) that `mask` hid; prediction and target (B, T, P)."""
    error = (prediction.float() - target).square().mean(-1)
    return (error * mask).sum() / mask.sum()


def descriptor_loss(descriptors: Tensor, labels: Tensor) -> Tensor:
    """Multi-similarity loss with its miner: L2-normalised descriptors (B, G), places (B,) -> a scalar."""
    with torch.autocast(descriptors.device.type, enabled=False):
        mined = MultiSimilarityMiner(epsilon=MINER_EPSILON)(descriptors, labels)
        return MultiSimilarityLoss(alpha=ALPHA, beta=BETA, base=BASE)(descriptors, labels, mined)


def choose_pairs(descriptors: Tensor, labels: Tensor, choice: PairChoice) -> Pairs:
    """A positive and a negative for every picture of a batch; labels as in `easy_pairs`."""
    choose = {"hardest": hardest_pairs, "ranked": ranked_pairs, "easy": lambda _, labels: easy_pairs(labels)}
    return choose[choice](descriptors, labels)


def ranked_pairs(descriptors: Tensor, labels: Tensor) -> Pairs:
    """As `easy_pairs`, but negatives by their similarity, as re-ranking meets them.

    The logarithm of a negative's rank is spread evenly over the anchors: as many of the first as of ranks 2 and 3.
    """
    anchors, positives, _ = easy_pairs(labels)
    with torch.no_grad(), torch.autocast(descriptors.device.type, enabled=False):
        similarities = descriptors.float() @ descriptors.float().T
        same = labels[:, None] == labels
        order = similarities.masked_fill(same, -torch.inf).argsort(dim=1, descending=True, stable=True)
    others = (~same).sum(dim=1)
    even = anchors * ((5**0.5 - 1) / 2) % 1  # multiples of the golden ratio fill 0 to 1 evenly, however many
    return Pairs(anchors, positives, order[anchors, (others**even).long() - 1])


def hardest_pairs(descriptors: Tensor, labels: Tensor) -> Pairs:
    """Batch-hard pairs (Hermans et al. 2017): the least similar of each picture's place, the most similar of others."""
    with torch.no_grad(), torch.autocast(descriptors.device.type, enabled=False):
        return Pairs(*BatchHardMiner()(descriptors, labels))


def easy_pairs(labels: Tensor) -> Pairs:
    """Every picture with the next one of its place, and with one of the next place of the batch.

    labels (B,): place by place, as many pictures of each. What lies side by side in a batch is left to chance.
    """
    number, count = torch.arange(len(labels), device=labels.device), int((labels == labels[0]).sum())
    first = number - number % count
    return Pairs(number, first + (number + 1) % count, (number + count) % len(labels))


def pair_loss(positive_logits: Tensor, negative_logits: Tensor) -> Tensor:
    """Binary cross-entropy of pair logits (A,) each, summed: divide by their number for the recipe's mean."""
    logits = torch.cat([positive_logits, negative_logits]).float()
    same = torch.cat([torch.ones_like(positive_logits), torch.zeros_like(negative_logits)]).float()
    return F.binary_cross_entropy_with_logits(logits, same, reduction="sum")


def similarity_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """How far the student's places among the teacher's descriptors are from the teacher's own; both (B, G).

    Kullback-Leibler divergence of the softmax over each picture's similarities to what the teacher makes of all of the
    batch, itself included (as SEED, Fang et al., ICLR 2021). Not to what the student makes of them: a student that
    knows nothing finds all pictures alike, and stays there for long.
    """
    with torch.autocast(student.device.type, enabled=False):

        def neighbourhood(descriptors: Tensor) -> Tensor:
            return F.log_softmax(descriptors.float() @ teacher.float().T / TEMPERATURE, dim=-1)

        return F.kl_div(neighbourhood(student), neighbourhood(teacher), reduction="batchmean", log_target=True)


def score_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 distance of pair logits (N,), summed: regression of logits (Ba & Caruana 2014).

    Not of probabilities: those saturate, and re-ranking needs the order among confident pairs.
    """
    return F.smooth_l1_loss(student.float(), teacher.float(), reduction="sum")


def off_diagonal_order(descriptors: Tensor) -> Tensor:
    """Indices (B, B - 1) of each picture's others, most similar first; descriptors (B, G)."""
    with torch.no_grad(), torch.autocast(descriptors.device.type, enabled=False):
        similarities = descriptors.float() @ descriptors.float().T
        similarities.fill_diagonal_(-torch.inf)
        return similarities.argsort(dim=1, descending=True, stable=True)[:, :-1]


def nearest_is_same(descriptors: Tensor, labels: Tensor) -> Tensor:
    """Share of pictures whose most similar other picture of the batch shows the same place: a scalar."""
    return (labels[off_diagonal_order(descriptors)[:, 0]] == labels).float().mean()
