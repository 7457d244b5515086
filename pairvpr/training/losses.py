"""Losses of both stages. Everything is computed in float32, also if the network runs in another precision."""

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
"""Temperature of the similarities that a teacher passes on (our choice).

At 0.1, a picture of the same place (similarity about 0.8) outweighs hundreds of others (about 0.2), which still count.
"""


PairChoice = Literal["hardest", "ranked", "easy"]


class Pairs(NamedTuple):
    """Indices (A,) into a batch: each anchor with its positive and its negative."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor


def patches(images: Tensor, patch: int) -> Tensor:
    """Cut pictures (B, 3, H, W) into the pixels of their patches (B, T, patch * patch * 3), colour last (as in MAE)."""
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatch(pixels: Tensor, patch: int) -> Tensor:
    """Join pixels of patches (B, T, patch * patch * 3) to square pictures (B, 3, H, W): the inverse of `patches`."""
    side = round(pixels.shape[1] ** 0.5)
    grid = pixels.reshape(len(pixels), side, side, patch, patch, 3)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(pixels), 3, side * patch, side * patch)


def patch_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation (B, T, 1) of each patch's pixels (B, T, P).

    The variance is unbiased, plus PATCH_EPS (recipe).
    """
    return pixels.mean(-1, keepdim=True), (pixels.var(-1, keepdim=True) + PATCH_EPS).sqrt()


def reconstruction_target(images: Tensor, patch: int) -> Tensor:
    """Return the target of stage one: normalised pixels (B, T, P) of each patch of normalised pictures (B, 3, H, W)."""
    pixels = patches(images, patch)
    mean, deviation = patch_statistics(pixels)
    return (pixels - mean) / deviation


def reconstruction_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error over the patches (B, T) that `mask` hides. Prediction and target are (B, T, P)."""
    error = (prediction.float() - target).square().mean(-1)
    return (error * mask).sum() / mask.sum()


def descriptor_loss(descriptors: Tensor, labels: Tensor) -> Tensor:
    """Return the multi-similarity loss with its miner, a scalar, of L2-normalised descriptors (B, G) of places (B,)."""
    with torch.autocast(descriptors.device.type, enabled=False):
        mined = MultiSimilarityMiner(epsilon=MINER_EPSILON)(descriptors, labels)
        loss: Tensor = MultiSimilarityLoss(alpha=ALPHA, beta=BETA, base=BASE)(descriptors, labels, mined)
        return loss


def choose_pairs(descriptors: Tensor, labels: Tensor, choice: PairChoice) -> Pairs:
    """Return a positive and a negative for each picture of a batch. Labels are as in `easy_pairs`."""
    if choice == "easy":
        return easy_pairs(labels)
    return hardest_pairs(descriptors, labels) if choice == "hardest" else ranked_pairs(descriptors, labels)


def ranked_pairs(descriptors: Tensor, labels: Tensor) -> Pairs:
    """Pair as `easy_pairs`, but choose negatives by their similarity, as in re-ranking.

    The logarithm of a negative's rank is spread evenly over the anchors. So rank 1 is as frequent as ranks 2 and 3
    together.
    """
    anchors, positives, _ = easy_pairs(labels)
    with torch.no_grad(), torch.autocast(descriptors.device.type, enabled=False):
        similarities = descriptors.float() @ descriptors.float().T
        same = labels[:, None] == labels
        order = similarities.masked_fill(same, -torch.inf).argsort(dim=1, descending=True, stable=True)
    others = (~same).sum(dim=1)
    even = anchors * ((5**0.5 - 1) / 2) % 1  # any number of multiples of the golden ratio fills 0 to 1 evenly
    return Pairs(anchors, positives, order[anchors, (others**even).long() - 1])


def hardest_pairs(descriptors: Tensor, labels: Tensor) -> Pairs:
    """Return batch-hard pairs (Hermans et al. 2017).

    The positive is the least similar picture of the same place, the negative the most similar picture of another place.
    """
    with torch.no_grad(), torch.autocast(descriptors.device.type, enabled=False):
        return Pairs(*BatchHardMiner()(descriptors, labels))


def easy_pairs(labels: Tensor) -> Pairs:
    """Pair each picture with the next one of its place, and with one of the next place of the batch.

    labels (B,): place by place, equally many pictures of each. The order of the places in a batch is random.
    """
    number, count = torch.arange(len(labels), device=labels.device), int((labels == labels[0]).sum())
    first = number - number % count
    return Pairs(number, first + (number + 1) % count, (number + count) % len(labels))


def pair_loss(positive_logits: Tensor, negative_logits: Tensor) -> Tensor:
    """Return the summed binary cross-entropy of pair logits (A,) each.

    Divide it by their number for the recipe's mean.
    """
    logits = torch.cat([positive_logits, negative_logits]).float()
    same = torch.cat([torch.ones_like(positive_logits), torch.zeros_like(negative_logits)]).float()
    return F.binary_cross_entropy_with_logits(logits, same, reduction="sum")


def similarity_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the distance between the student's and the teacher's view of a batch, as a scalar.

    Both descriptors are (B, G).
    It is the Kullback-Leibler divergence of the softmax over each picture's similarities to the teacher's descriptors
    of the whole batch, the picture itself included (as SEED, Fang et al., ICLR 2021). Similarities to the student's own
    descriptors are not used: an untrained student finds all pictures alike, and would stay there for long.
    """
    with torch.autocast(student.device.type, enabled=False):

        def neighbourhood(descriptors: Tensor) -> Tensor:
            return F.log_softmax(descriptors.float() @ teacher.float().T / TEMPERATURE, dim=-1)

        return F.kl_div(neighbourhood(student), neighbourhood(teacher), reduction="batchmean", log_target=True)


def score_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the summed smooth L1 distance of pair logits (N,): regression of logits (Ba & Caruana 2014).

    Probabilities are not used because they saturate, and re-ranking needs the order among confident pairs.
    """
    return F.smooth_l1_loss(student.float(), teacher.float(), reduction="sum")


def off_diagonal_order(descriptors: Tensor) -> Tensor:
    """Return indices (B, B - 1) of each picture's others, most similar first, of descriptors (B, G)."""
    with torch.no_grad(), torch.autocast(descriptors.device.type, enabled=False):
        similarities = descriptors.float() @ descriptors.float().T
        similarities.fill_diagonal_(-torch.inf)
        return similarities.argsort(dim=1, descending=True, stable=True)[:, :-1]


def nearest_is_same(descriptors: Tensor, labels: Tensor) -> Tensor:
    """Return the share of pictures whose most similar other picture of the batch shows the same place, a scalar."""
    return (labels[off_diagonal_order(descriptors)[:, 0]] == labels).float().mean()
