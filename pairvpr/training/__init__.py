"""Train the network in the two stages of the paper (needs torch, timm, torchvision and pytorch-metric-learning)."""

from pairvpr.training.config import StageOneConfig, StageTwoConfig, stage_one_config, stage_two_config
from pairvpr.training.log import Progress
from pairvpr.training.loop import RunResult
from pairvpr.training.stage_one import train_stage_one
from pairvpr.training.stage_two import train_stage_two

__all__ = [
    "Progress",
    "RunResult",
    "StageOneConfig",
    "StageTwoConfig",
    "stage_one_config",
    "stage_two_config",
    "train_stage_one",
    "train_stage_two",
]
