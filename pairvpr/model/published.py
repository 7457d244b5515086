"""The published checkpoint format: its tensor names, and the network that its tensors' shapes describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pairvpr.errors import CheckpointError
from pairvpr.model.presets import PRESETS, NetworkConfig

Shapes = Mapping[str, Sequence[int]]

# Published name -> ours, by prefix. The first match is used.
PREFIXES = (
    ("encoder.model.register_tokens", "encoder.vit.reg_token"),
    ("encoder.model.mask_token", "encoder.mask_token"),
    ("encoder.model.", "encoder.vit."),
    ("globalizer.0.", "descriptor."),
    ("decoder_embed.", "decoder.embed."),
    ("decoder_clstoken", "decoder.class_token"),
    ("mask_token", "decoder.mask_token"),
    ("dec_pos_embed_cls", "decoder.class_positions"),
    ("dec_pos_embed", "decoder.positions"),
    ("dec_blocks.", "decoder.blocks."),
    ("dec_norm.", "decoder.norm."),
    ("prediction_head.", "decoder.reconstruction."),
    ("classvprmodule.", "decoder.classifier."),
)
# SwiGLU layers of the ViT-G encoder.
INFIXES = ((".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2."))

ENCODERS = {  # (width, has registers) -> timm's name of the DINOv2 encoder
    (384, True): "vit_small_patch14_reg4_dinov2",
    (768, True): "vit_base_patch14_reg4_dinov2",
    (1024, True): "vit_large_patch14_reg4_dinov2",
    (1536, True): "vit_giant_patch14_reg4_dinov2",
    (384, False): "vit_small_patch14_dinov2",
    (768, False): "vit_base_patch14_dinov2",
    (1024, False): "vit_large_patch14_dinov2",
    (1536, False): "vit_giant_patch14_dinov2",
}
PATCH_SIZE = 14

LICENCE = "as its publisher states; the weights published with Pair-VPR are for non-commercial use only"


def our_name(name: str) -> str:
    """Return our name of a tensor of a published checkpoint. An unknown name is returned unchanged."""
    for theirs, ours in PREFIXES:
        if name.startswith(theirs):
            name = ours + name[len(theirs) :]
            break
    for theirs, ours in INFIXES:
        name = name.replace(theirs, ours)
    return name


def published_name(name: str, swiglu: bool) -> str:
    """Return the published name of one of our tensors, the inverse of `our_name`.

    swiglu: whether the encoder's MLPs are SwiGLU (ViT-G).
    """
    if swiglu and name.startswith("encoder."):
        for theirs, ours in INFIXES:
            name = name.replace(ours, theirs)
    for theirs, ours in PREFIXES:
        if name.startswith(ours) and our_name(theirs + name[len(ours) :]) == our_name(name):
            return theirs + name[len(ours) :]
    return name


def infer_config(shapes: Shapes, source: str) -> NetworkConfig:
    """Return the configuration of the network that a published checkpoint's tensors describe.

    source: the file's name, for messages.
    Raises CheckpointError if a tensor that decides the architecture is missing, or if no known encoder fits.
    """
    width = _dim(shapes, "encoder.model.cls_token", -1, source)
    registers = "encoder.model.register_tokens" in shapes
    encoder = ENCODERS.get((width, registers))
    if encoder is None:
        known = ", ".join(sorted({str(w) for w, _ in ENCODERS}))
        raise CheckpointError(
            f"{source}: no DINOv2 encoder is {width} wide (known: {known}); give a Pair-VPR checkpoint"
        )
    tokens = _dim(shapes, "dec_pos_embed", 0, source)
    depth = 1 + max((int(n.split(".")[1]) for n in shapes if n.startswith("dec_blocks.")), default=-1)
    if depth == 0:
        raise CheckpointError(f"{source}: has no decoder blocks (dec_blocks.*); give a Pair-VPR checkpoint")
    config = NetworkConfig(
        preset="custom",
        encoder=encoder,
        image_size=PATCH_SIZE * round(tokens**0.5),
        position_grid=round((_dim(shapes, "encoder.model.pos_embed", 1, source) - 1) ** 0.5),
        position_resize="antialias" if registers else "offset",
        descriptor_dim=_dim(shapes, "globalizer.0.weight", 0, source),
        decoder_dim=_dim(shapes, "decoder_embed.weight", 0, source),
        decoder_depth=depth,
        classifier_dim=_dim(shapes, "classvprmodule.0.weight", 0, source),
        pair_classifier="decoder_clstoken" in shapes,
    )
    return _named(config)


def _dim(shapes: Shapes, name: str, axis: int, source: str) -> int:
    shape = shapes.get(name)
    if not shape:
        raise CheckpointError(f"{source}: tensor {name} is missing; give a Pair-VPR checkpoint")
    return shape[axis]


def _named(config: NetworkConfig) -> NetworkConfig:
    """Return the preset of the architecture, or the configuration itself if no preset fits."""
    for preset in PRESETS.values():
        if replace(config, preset=preset.preset, top_k=preset.top_k) == preset:
            return preset
    return config
