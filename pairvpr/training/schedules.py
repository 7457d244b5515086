"""Schedule the training: frozen parts, parameter groups, learning rate and weight decay of each step."""

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
"""Prefixes of the parameters that take no part in a stage.

They must not learn, because DDP waits for every gradient.
"""

BLOCKS = ("encoder.vit.blocks.", "encoder.cnn.blocks.")
BACKBONES = ("encoder.vit.", "encoder.cnn.")


@dataclass(frozen=True)
class Rates:
    """Learning rate and weight decay of a step, before each group's own factors."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class StageOneSchedule:
    """Linear warm-up, then half a cosine down to `min_lr`. Weight decay follows half a cosine (DINOv2's recipe).

    lr: the peak.
    warmup, steps: numbers of steps.
    """

    lr: float
    min_lr: float
    weight_decay: float
    final_weight_decay: float
    warmup: int
    steps: int

    def __call__(self, step: int) -> Rates:
        """Return the rates of a step, counted from 0."""
        if step < self.warmup:
            lr = self.lr * (step + 1) / self.warmup
        else:
            lr = half_cosine(self.lr, self.min_lr, (step - self.warmup) / (self.steps - self.warmup))
        return Rates(lr, half_cosine(self.weight_decay, self.final_weight_decay, step / self.steps))


@dataclass(frozen=True)
class StageTwoSchedule:
    """The learning rate falls linearly to the factor `decay_to` over `decay_steps` steps, then stays (recipe).

    warmup: steps over which it first rises linearly (0 in the recipe, whose encoder is pretrained).
    """

    lr: float
    weight_decay: float
    decay_to: float
    decay_steps: int
    warmup: int = 0

    def __call__(self, step: int) -> Rates:
        """Return the rates of a step, counted from 0."""
        done, warm = min(step / self.decay_steps, 1.0), min((step + 1) / max(self.warmup, 1), 1.0)
        return Rates(self.lr * warm * (1 - (1 - self.decay_to) * done), self.weight_decay)


def half_cosine(start: float, end: float, done: float) -> float:
    """Return a value on half a cosine from `start` at done = 0 to `end` at done = 1."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * done))


def freeze(network: PairVPR, stage: Stage, trained_blocks: int) -> None:
    """Freeze parameters that take no part in the stage, or lie before the last `trained_blocks` encoder blocks.

    -1 trains the whole encoder. In stage one the encoder's mask token always learns, because timm's DINOv2 weights have
    none.
    Raises TrainingError if the encoder has fewer blocks.
    """
    depth = network.encoder.depth
    if trained_blocks > depth:
        raise TrainingError(
            f"setting train.trained_blocks: is {trained_blocks}, but the encoder has {depth} blocks; lower it, or set "
            "-1 for all"
        )
    first = 0 if trained_blocks == ALL_BLOCKS else depth - trained_blocks
    for name, parameter in network.named_parameters():
        learns = not name.startswith(UNUSED[stage])
        if learns and trained_blocks != ALL_BLOCKS and name.startswith(BACKBONES):
            # If no block learns, the final norm (layer depth + 1) stays as it is, too.
            learns = trained_blocks > 0 and layer_of(name, depth) > first
        parameter.requires_grad_(learns)


def layer_of(name: str, depth: int) -> int:
    """Return a parameter's layer.

    Layer 0 makes the tokens, layers 1 to `depth` are the encoder's blocks, and layer depth + 1 is the rest.
    """
    if name.startswith(BLOCKS):
        return int(name.split(".")[3]) + 1
    tokens = name == "encoder.mask_token" or (
        name.startswith(BACKBONES) and not name.startswith(("encoder.vit.norm.", "encoder.vit.fc_norm."))
    )
    return 0 if tokens else depth + 1


def lr_scale(name: str, depth: int, layer_decay: float, patch_embed: float) -> float:
    """Return a parameter's factor of the learning rate.

    It is layer_decay ** (depth + 1 - layer) (BEiT, Bao et al. 2022; DINOv2), times `patch_embed` for the patch
    embedding.
    """
    scale = layer_decay ** (depth + 1 - layer_of(name, depth))
    return scale * patch_embed if name.startswith("encoder.vit.patch_embed.") else scale


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Return true for parameters with weight decay.

    These are matrices, but not biases, norms, layer scales, tokens and positions (MAE).
    """
    return name.endswith(".weight") and parameter.ndim > 1


def parameter_groups(network: PairVPR, layer_decay: float = 1.0, patch_embed: float = 1.0) -> list[dict[str, Any]]:
    """Return the parameters that learn as groups for an optimizer, with their own `lr_scale` and `decay` (0 or 1).

    The order depends on names alone, so that an optimizer's state fits after a restart.
    """
    depth = network.encoder.depth
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
