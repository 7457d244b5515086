"""The torch-free runtime: read bundles and maps, encode pictures, search, re-rank, answer.

Names are imported when they are first used, so that the commands' help needs none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pairvpr.runtime.answer import Filtered, Match, Recognition
    from pairvpr.runtime.features import Features
    from pairvpr.runtime.geometry.poses import Gps, Pose
    from pairvpr.runtime.model import Model, load_model
    from pairvpr.runtime.recognizer import PlaceRecognizer
    from pairvpr.runtime.sequence.filter import SequenceFilter

__all__ = [
    "Features",
    "Filtered",
    "Gps",
    "Match",
    "Model",
    "PlaceRecognizer",
    "Pose",
    "Recognition",
    "SequenceFilter",
    "load_model",
]

_MODULES = {
    "Features": "features",
    "Filtered": "answer",
    "Gps": "geometry.poses",
    "Match": "answer",
    "Model": "model",
    "PlaceRecognizer": "recognizer",
    "Pose": "geometry.poses",
    "Recognition": "answer",
    "SequenceFilter": "sequence.filter",
    "load_model": "model",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
