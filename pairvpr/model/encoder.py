"""The picture encoder: a timm vision transformer whose position table fits any picture size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pairvpr.errors import CheckpointError, one_line
from pairvpr.model.presets import NetworkConfig, PositionResize

UNFIT = "not a timm vision transformer with a class token and a position table; choose another timm model"


class ConvolutionalStem(PatchEmbed):
    """A patch embedding of 3 x 3 convolutions with stride 2 (Xiao et al., NeurIPS 2021), without norms.

    Small transformers learn faster from scratch with it. It has no norms, so that a picture's tokens depend only on
    this picture, in training too.
    """

    proj: nn.Module  # type: ignore[assignment]  # a single convolution in timm

    def __init__(self, *, channels: Sequence[int], embed_dim: int, **kwargs: Any) -> None:
        super().__init__(embed_dim=embed_dim, **kwargs)
        if 2 ** len(channels) != self.patch_size[0]:
            raise CheckpointError(
                f"a stem of {len(channels)} convolutions makes patches of {2 ** len(channels)} pixels, not of "
                f"{self.patch_size[0]}; give as many channels as halvings"
            )
        layers: list[nn.Module] = []
        for before, after in pairwise((3, *channels)):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)
            nn.init.kaiming_normal_(convolution.weight)
            layers += [convolution, nn.GELU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(channels[-1], embed_dim, 1))


class Encoder(nn.Module):
    """Encode normalised pictures (B, 3, H, W) into class tokens (B, C) and patch tokens (B, N, C)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.vit: Any = create_vit(config)  # timm's annotations include models without class token or table
        self.mask_token = nn.Parameter(torch.zeros(1, self.width))
        self.position_resize: PositionResize = config.position_resize

    @property
    def width(self) -> int:
        """Width C of the tokens."""
        return int(self.vit.embed_dim)

    @property
    def summary_width(self) -> int:
        """Length of what the descriptor is projected from: the class token."""
        return self.width

    @property
    def depth(self) -> int:
        """Number of blocks, which can be frozen from the first one on."""
        return len(self.vit.blocks)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.vit.patch_embed.patch_size[0])

    def forward(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode pictures. Where `mask` (B, N) is true, the mask token replaces the patch embedding (stage one)."""
        vit = self.vit
        x = vit.patch_embed(images)  # (B, rows, columns, C)
        rows, columns = x.shape[1], x.shape[2]
        x = x.flatten(1, 2)  # (B, N, C)
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), self.mask_token.to(x.dtype), x)

        # Class token and registers. Only the class token has a position, and not in every model.
        class_position, positions = self.positions(rows, columns)
        prefix = vit.cls_token if class_position is None else vit.cls_token + class_position
        if vit.reg_token is not None:
            prefix = torch.cat([prefix, vit.reg_token], dim=1)
        x = torch.cat([prefix.expand(x.shape[0], -1, -1), x + positions], dim=1)

        x = vit.norm(vit.blocks(vit.norm_pre(x)))
        return x[:, 0], x[:, vit.num_prefix_tokens :]

    def positions(self, rows: int, columns: int) -> tuple[Tensor | None, Tensor]:
        """Return the positions of the class token (1, 1, C) and of the patches (1, N, C).

        The class token's is None if the model has none.
        """
        table = self.vit.pos_embed
        class_position = None
        if not self.vit.no_embed_class:
            class_position, table = table[:, :1], table[:, 1:]
        return class_position, resize_positions(table, rows, columns, self.position_resize)


def create_vit(config: NetworkConfig, pretrained: bool = False) -> VisionTransformer:
    """Create the timm model of a configuration, with a position table of `position_grid` patches a side.

    pretrained: fetch timm's weights.
    Raises CheckpointError if timm has no such model or the model does not fit.
    """
    if not timm.is_model(config.encoder):
        raise CheckpointError(
            f"encoder {config.encoder}: timm {timm.__version__} has no such model; choose another timm model"
        )
    patch = dict(config.encoder_args).get("patch_size")
    side = config.position_grid * (patch or _patch_size(config.encoder))
    args = {"num_classes": 0, "img_size": side, "dynamic_img_size": True, **config.encoder_args}
    if config.stem:
        args["embed_layer"] = partial(ConvolutionalStem, channels=config.stem)
    try:
        vit = timm.create_model(config.encoder, pretrained=pretrained, **args)
    except (TypeError, AssertionError) as error:
        given = dict(config.encoder_args)
        raise CheckpointError(
            f"encoder {config.encoder}: timm does not take encoder_args {given} ({one_line(error)}); correct them"
        ) from error
    if not isinstance(vit, VisionTransformer) or vit.cls_token is None or vit.pos_embed is None:
        raise CheckpointError(f"encoder {config.encoder}: {UNFIT}")
    return vit


def resize_positions(table: Tensor, rows: int, columns: int, how: PositionResize) -> Tensor:
    """Resize a square position table (1, g * g, C) bicubically to (1, rows * columns, C).

    how: "antialias" resizes to the exact size with antialiasing. "offset" scales by (size + 0.1) / g without
        antialiasing, which samples slightly other positions. These are the two conventions of the published DINOv2
        encoders.
    """
    grid = round(table.shape[1] ** 0.5)
    if (rows, columns) == (grid, grid):
        return table
    square = table.reshape(1, grid, grid, -1).permute(0, 3, 1, 2).float()
    if how == "antialias":
        resized = F.interpolate(square, size=(rows, columns), mode="bicubic", antialias=True)
    else:
        scale = ((rows + 0.1) / grid, (columns + 0.1) / grid)
        resized = F.interpolate(square, scale_factor=scale, mode="bicubic")
    return resized.permute(0, 2, 3, 1).reshape(1, rows * columns, -1).to(table.dtype)


def _patch_size(name: str) -> int:
    """Return the patch size of a timm vision transformer, from its registered configuration."""
    with torch.device("meta"):
        model: Any = timm.create_model(name, pretrained=False)
    if not isinstance(model, VisionTransformer):
        raise CheckpointError(f"encoder {name}: {UNFIT}")
    return int(model.patch_embed.patch_size[0])
