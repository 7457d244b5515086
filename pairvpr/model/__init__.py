"""The network: presets, encoder, pair decoder and checkpoints (needs torch and timm)."""

from pairvpr.model.checkpoint import (
    Checkpoint,
    default_checkpoint,
    load_checkpoint,
    save_checkpoint,
    seeded_checkpoint,
)
from pairvpr.model.checkpoint_files import WeightsInfo
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
