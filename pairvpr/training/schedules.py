"""What learns how fast: frozen parts, parameter groups, learning rate and weight decay over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from pairvpr.errors import TrainingError
from pairvpr.model import PairVPR
from pairvpr.training.config import ALL_BLOCKS

Stage = Literal["one", "two", "descriptor"]

UNUSED: dict[Stage, tuple[str, ...]] = {
    "one": ("descriptor.", "decoder.classifier.", "decoder.class_token", "decoder.mask_token"),
    "two": ("encoder.mask_token", "decoder.mask_token", "decoder.reconstruction."),
    "descriptor": ("encoder.mask_token", "decoder."),
}
"""Parameters by prefix that take no part in a stage. They must not learn: with DDP every other one gets a gradient."""

BLOCKS = "encoder.vit.blocks."


@dataclass(frozen=True)
class Rates:
    """Learning rate and weight decay of a step, before each group's own factors."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class StageOneSchedule:
    """Linear warm-up, then half a cosine down to `min_lr`; weight decay along half a cosine (DINOv2's recipe).

    lr is the peak, warmup and steps are numbers of steps.
    """

    lr: float
    min_lr: float
    weight_decay: float
    final_weight_decay: float
    warmup: int
    steps: int

    def __call__(self, step: int) -> Rates:
        """The rates of a step, from 0 on."""
        if step < self.warmup:
            lr = self.lr * (step + 1) / self.warmup
        else:
            lr = half_cosine(self.lr, self.min_lr, (step - self.warmup) / (self.steps - self.warmup))
        return Rates(lr, half_cosine(self.weight_decay, self.final_weight_decay, step / self.steps))


@dataclass(frozen=True)
class StageTwoSchedule:
    """The learning rate falls linearly to `decay_to` of itself over `decay_steps`, then stays (recipe).

    warmup: steps over which it first rises linearly (0 in the recipe, whose encoder was trained before).
    """

    lr: float
    weight_decay: float
    decay_to: float
    decay_steps: int
    warmup: int = 0

    def __call__(self, step: int) -> Rates:
        """The rates of a step, from 0 on."""
        done, warm = min(step / self.decay_steps, 1.0), min((step + 1) / max(self.warmup, 1), 1.0)
        return Rates(self.lr * warm * (1 - (1 - self.decay_to) * done), self.weight_decay)


def half_cosine(start: float, end: float, done: float) -> float:
    """From `start` at done = 0 to `end` at done = 1 along half a cosine."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * done))


def freeze(network: PairVPR, stage: Stage, trained_blocks: int) -> None:
    """Leave to learn what takes part in the stage and does not lie before the last `trained_blocks` encoder blocks.

    -1 leaves all of the encoder. In stage one the encoder's mask token always learns: timm's DINOv2 weights come
    without one. Raises TrainingError where the encoder has fewer blocks.
    """
    depth = len(network.encoder.vit.blocks)
    if trained_blocks > depth:
        raise TrainingError(f"setting train.trained_blocks: {trained_blocks}, but the encoder has {depth} blocks")
    first = 0 if trained_blocks == ALL_BLOCKS else depth - trained_blocks
    for name, parameter in network.named_parameters():
        learns = not name.startswith(UNUSED[stage])
        if learns and trained_blocks != ALL_BLOCKS and name.startswith("encoder.vit."):
            # With no block to train the final norm, layer depth + 1, stays as it is as well.
            learns = trained_blocks > 0 and layer_of(name, depth) > first
        parameter.requires_grad_(learns)


def layer_of(name: str, depth: int) -> int:
    """A parameter's layer: 0 for what makes the tokens, 1 to `depth` for the encoder's blocks, then all the rest."""
    if name.startswith(BLOCKS):
        return int(name[len(BLOCKS) :].split(".")[0]) + 1
    tokens = name == "encoder.mask_token" or (
        name.startswith("encoder.vit.") and not name.startswith(("encoder.vit.norm.", "encoder.vit.fc_norm."))
    )
    return 0 if tokens else depth + 1


def lr_scale(name: str, depth: int, layer_decay: float, patch_embed: float) -> float:
    """A parameter's factor of the learning rate: layer_decay ** (depth + 1 - layer) (BEiT, Bao et al. 2022; DINOv2)."""
    scale = layer_decay ** (depth + 1 - layer_of(name, depth))
    return scale * patch_embed if name.startswith("encoder.vit.patch_embed.") else scale


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, not to biases, norms, layer scales, tokens and positions (MAE)."""
    return name.endswith(".weight") and parameter.ndim > 1


def parameter_groups(network: PairVPR, layer_decay: float = 1.0, patch_embed: float = 1.0) -> list[dict[str, Any]]:
    """The parameters that learn, as groups for an optimizer with their own `lr_scale` and `decay` (0 or 1).

    The order depends on names alone, so that an optimizer's state fits again after a restart.
    """
    depth = len(network.encoder.vit.blocks)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            key = (lr_scale(name, depth, layer_decay, patch_embed), decays(name, parameter))
            group = groups.setdefault(key, {"params": [], "names": [], "lr_scale": key[0], "decay": float(key[1])})
            group["params"].append(parameter)
            group["names"].append(name)
    return list(groups.values())


def apply_rates(groups: Sequence[dict[str, Any]], rates: Rates) -> None:
    """Set the rates of a step on an optimizer's groups."""
    for group in groups:
        group["lr"] = rates.lr * group["lr_scale"]
        group["weight_decay"] = rates.weight_decay * group["decay"]
