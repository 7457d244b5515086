"""The convolutional encoder: a pretrained EfficientNet-Lite, its last maps as tokens and as one long aggregate."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from pairvpr.errors import CheckpointError, one_line
from pairvpr.model.presets import NetworkConfig

STAGES = 6
"""Stages of the network that are used: the last one has half the width of what classification needs."""
MIDDLE, LAST = 4, 5
"""Stages whose maps are read: stride 16 and stride 32."""
GEM_POWER = 3.0
GRIDS = (3, 7)
"""Cells a side of the aggregate's grids over the middle map."""
CLUSTERS, RESIDUAL_DIM = 64, 48
"""Size of the codebook, and numbers kept of a residual."""
CELL_DIM = 48
"""Numbers kept of a grid's cell."""
SHARPNESS = 30.0
"""Of the assignment of tokens to clusters: the factor of their cosines."""
EPS = 1e-6
UNFIT = "not a timm EfficientNet of seven stages; choose a tf_efficientnet_lite model"


class ConvolutionalEncoder(nn.Module):
    """Turn normalised pictures (B, 3, H, W) into an aggregate (B, A) and tokens (B, N, C).

    A token is a cell of the stride-32 map: the last stage's channels beside the middle stage's, averaged over the
    cell. Each picture's mean is subtracted and each part is scaled to the same length, which keeps a token steady under
    a change of light. The descriptor is projected from the aggregate, whose parts bear different changes:

    - generalised means (GeM, Radenovic et al., TPAMI 2019) of both maps, and residuals of the tokens from a codebook
      (NetVLAD, Arandjelovic et al., CVPR 2016): a change of view;
    - grids of the middle map: a change of light or season.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.cnn = create_cnn(config)
        middle, last = (self.cnn.blocks[stage][-1].conv_pwl.out_channels for stage in (MIDDLE, LAST))
        self.width = middle + last
        self.summary_width = middle + last + CELL_DIM * sum(side * side for side in GRIDS) + CLUSTERS * RESIDUAL_DIM
        self.patch_size = 32
        self.depth = STAGES
        self.codebook = nn.Linear(self.width, CLUSTERS, bias=False)
        self.residual = nn.Linear(self.width, RESIDUAL_DIM, bias=False)
        self.cell = nn.Linear(middle, CELL_DIM, bias=False)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode pictures. Stage one hides the pixels of tokens where `mask` (B, N) is true."""
        if mask is not None:
            side = images.shape[-1] // self.patch_size
            hidden = mask.view(-1, 1, side, side).repeat_interleave(self.patch_size, 2)
            images = images.masked_fill(hidden.repeat_interleave(self.patch_size, 3), 0.0)
        middle, last = self.maps(images)
        dense = tokens(middle, last)
        return self.aggregate(middle, last, dense), dense

    def aggregate(self, middle: Tensor, last: Tensor, dense: Tensor) -> Tensor:
        """Turn maps of stride 16 and 32 and tokens (B, N, C) into one vector (B, A).

        Residuals weigh as much as the other four parts together.
        """
        parts = [gem(last), gem(middle)]
        for side in GRIDS:
            parts.append(self.cell(cells(F.adaptive_avg_pool2d(middle, side))).flatten(1) / side)
        parts.append(2 * self.residuals(dense))
        return torch.cat(parts, dim=-1) / 8**0.5

    def residuals(self, dense: Tensor) -> Tensor:
        """Return the residuals (B, CLUSTERS * RESIDUAL_DIM) of tokens (B, N, C) of unit length, cluster by cluster."""
        share = (SHARPNESS * self.codebook(dense)).softmax(dim=-1)  # (B, N, CLUSTERS)
        seen = share.transpose(1, 2) @ self.residual(dense)
        expected = share.sum(dim=1).unsqueeze(-1) * self.residual(self.codebook.weight)
        return F.normalize(seen - expected, dim=-1, eps=EPS).flatten(1) / CLUSTERS**0.5

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of stride 16 and of stride 32, (B, C, rows, columns) each."""
        x = self.cnn.bn1(self.cnn.conv_stem(images))
        for stage in self.cnn.blocks[: MIDDLE + 1]:
            x = stage(x)
        return x, self.cnn.blocks[LAST](x)


def tokens(middle: Tensor, last: Tensor) -> Tensor:
    """Turn maps of stride 16 and 32 into tokens (B, N, C) of unit length, one for each cell of the second map."""
    return F.normalize(torch.cat([cells(F.avg_pool2d(middle, 2)), cells(last)], dim=-1), dim=-1, eps=EPS)


def cells(grid: Tensor) -> Tensor:
    """Turn a map (B, C, rows, columns) into cells (B, N, C) of unit length, the picture's mean subtracted."""
    flat = grid.flatten(2).transpose(1, 2)
    return F.normalize(flat - flat.mean(dim=1, keepdim=True), dim=-1, eps=EPS)


def gem(grid: Tensor) -> Tensor:
    """Return the generalised mean (B, C) of a map (B, C, rows, columns), of unit length."""
    return F.normalize(grid.clamp(min=EPS).pow(GEM_POWER).mean(dim=(2, 3)).pow(1 / GEM_POWER), dim=-1, eps=EPS)


def is_convolutional(encoder: str) -> bool:
    """Return whether an encoder's name is one of an EfficientNet-Lite."""
    return encoder.startswith("tf_efficientnet_lite")


def create_cnn(config: NetworkConfig) -> Any:
    """Make the timm network of a configuration without classifier, batch norms folded. Raises CheckpointError."""
    if not timm.is_model(config.encoder):
        raise CheckpointError(f"encoder {config.encoder}: timm {timm.__version__} has no such model")
    try:
        cnn = timm.create_model(config.encoder, pretrained=False, **config.encoder_args)
    except (TypeError, AssertionError) as error:
        given = dict(config.encoder_args)
        raise CheckpointError(
            f"encoder {config.encoder}: timm takes no such encoder_args {given} ({one_line(error)}); correct them"
        ) from error
    return folded(cut(cnn))


def cut(cnn: Any) -> Any:
    """Remove the last stage and the classifier of a network, and return it. Raises CheckpointError."""
    if not isinstance(cnn, EfficientNet) or len(cnn.blocks) != STAGES + 1:
        raise CheckpointError(f"encoder {type(cnn).__name__}: {UNFIT}")
    del cnn.blocks[STAGES:], cnn.conv_head, cnn.bn2, cnn.global_pool, cnn.classifier
    return cnn


def folded(module: Any) -> Any:
    """Fold every batch norm of a module into the convolution before it, keep its activation, and return the module."""
    convolution: nn.Conv2d | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            convolution = child
        elif isinstance(child, BatchNormAct2d):
            assert convolution is not None
            fold(convolution, child)
            setattr(module, name, child.act)
        else:
            folded(child)
    return module


def fold(convolution: nn.Conv2d, norm: BatchNormAct2d) -> None:
    """Fold the batch norm behind a convolution without bias into it, as in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
        convolution.weight.mul_(gain[:, None, None, None])
        convolution.bias = nn.Parameter(norm.bias - norm.running_mean * gain)
