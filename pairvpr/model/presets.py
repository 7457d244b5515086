"""Configurations of the networks: a dataclass, and the presets by name. Can be imported without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

PositionResize = Literal["antialias", "offset"]


@dataclass(frozen=True)
class NetworkConfig:
    """All that is needed to build a `PairVPR` network.

    encoder: name of a timm vision transformer with a class token; `encoder_args` are passed to timm.
    stem: channels of the convolutions that stand in for its patch embedding, each halving the picture; () for none.
    position_grid: rows (= columns) of the encoder's learned position table, resized to the picture's grid.
    position_resize: how: "antialias" (bicubic with antialiasing, as DINOv2 with registers and timm) or
        "offset" (bicubic without, sizes enlarged by 0.1 token, as DINOv2 without registers).
    image_size: side in pixels of the square picture the network sees.
    descriptor_dim: length G of the global descriptor.
    decoder_dim, decoder_depth: width D and number of blocks of the pair decoder; heads are 64 wide.
    classifier_dim: hidden width of the pair classifier.
    pair_classifier: false for stage-one checkpoints, which have no class token yet.
    top_k: how many candidates are re-ranked by default.
    """

    preset: str
    encoder: str
    image_size: int
    position_grid: int
    descriptor_dim: int
    decoder_dim: int
    decoder_depth: int
    encoder_args: Mapping[str, Any] = field(default_factory=dict)
    stem: tuple[int, ...] = ()
    position_resize: PositionResize = "antialias"
    classifier_dim: int = 512
    pair_classifier: bool = True
    top_k: int = 100

    def __post_init__(self) -> None:
        object.__setattr__(self, "stem", tuple(self.stem))  # JSON has lists only

    @property
    def split(self) -> int:
        """Number of decoder blocks in the pair prefix: a sixth of the depth, at least 1."""
        return max(1, self.decoder_depth // 6)


HEAD_DIM = 64
"""Width of one attention head of the decoder (Pair-VPR)."""

PRESETS: Mapping[str, NetworkConfig] = MappingProxyType(
    {
        config.preset: config
        for config in (
            NetworkConfig(
                preset="nano",
                encoder="vit_tiny_patch16_224",
                encoder_args={"depth": 6, "num_heads": 6},
                stem=(32, 64, 128, 192),
                image_size=112,
                position_grid=7,
                descriptor_dim=256,
                decoder_dim=192,
                decoder_depth=4,
            ),
            NetworkConfig(
                preset="edge",
                encoder="vit_small_patch14_reg4_dinov2",
                image_size=224,
                position_grid=37,
                descriptor_dim=512,
                decoder_dim=384,
                decoder_depth=6,
            ),
            NetworkConfig(
                preset="speed",
                encoder="vit_base_patch14_reg4_dinov2",
                image_size=322,
                position_grid=37,
                descriptor_dim=512,
                decoder_dim=768,
                decoder_depth=12,
            ),
            NetworkConfig(
                preset="performance",
                encoder="vit_giant_patch14_reg4_dinov2",
                image_size=322,
                position_grid=37,
                descriptor_dim=512,
                decoder_dim=768,
                decoder_depth=12,
                top_k=500,
            ),
        )
    }
)
