"""Configurations of the networks: a dataclass, and the presets by name. Can be imported without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

PositionResize = Literal["antialias", "offset"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class NetworkConfig:
    """All that is needed to build a `PairVPR` network.

    encoder: name of a timm vision transformer with a class token, or of an EfficientNet-Lite; `encoder_args` are passed
        to timm.
    stem: channels of the convolutions that stand in for its patch embedding, each halving the picture; () for none.
    position_grid: rows (= columns) of the encoder's learned position table, resized to the picture's grid; of no
        meaning for a convolutional encoder.
    position_resize: how: "antialias" (bicubic with antialiasing, as DINOv2 with registers and timm) or
        "offset" (bicubic without, sizes enlarged by 0.1 token, as DINOv2 without registers).
    image_size: side in pixels of the square picture the network sees.
    descriptor_dim: length G of the global descriptor.
    decoder_dim, decoder_depth: width D and number of blocks of the pair decoder; heads are 64 wide.
    classifier_dim: hidden width of the pair classifier.
    pair_classifier: false for stage-one checkpoints, which have no class token yet.
    top_k: how many candidates are re-ranked by default.
    late_interaction: the pair score is the sum of the decoder's logit and a weighted similarity of the tokens; not in
        the published network.
    mean, std: of the pictures that the encoder was pretrained on, for colours of 0 to 1.
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
    late_interaction: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("stem", "mean", "std"):  # JSON has lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def split(self) -> int:
        """Number of decoder blocks in the pair prefix: a sixth of the depth, at least 1."""
        return max(1, self.decoder_depth // 6)

    @property
    def look_dim(self) -> int:
        """How many numbers the first look gives for a pair; see `pairvpr.export.graphs.PairLook`."""
        return 2 if self.late_interaction else 2 * self.decoder_dim


HEAD_DIM = 64
"""Width of one attention head of the decoder (Pair-VPR)."""

PRESETS: Mapping[str, NetworkConfig] = MappingProxyType(
    {
        config.preset: config
        for config in (
            NetworkConfig(
                preset="nano",
                encoder="tf_efficientnet_lite0",
                image_size=224,
                position_grid=7,
                descriptor_dim=1024,
                decoder_dim=192,
                decoder_depth=2,
                late_interaction=True,
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
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
