"""The network (needs torch and timm): presets, encoder, pair decoder, checkpoints."""

from pairvpr.model.checkpoint import (
    Checkpoint,
    WeightsInfo,
    default_checkpoint,
    load_checkpoint,
    save_checkpoint,
    seeded_checkpoint,
)
from pairvpr.model.network import PairVPR
from pairvpr.model.presets import PRESETS, NetworkConfig

__all__ = [
    "PRESETS",
    "Checkpoint",
    "NetworkConfig",
    "PairVPR",
    "WeightsInfo",
    "default_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
    "seeded_checkpoint",
]
