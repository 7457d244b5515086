"""Visual place recognition for robots: build a map of pictures, then ask where a picture was taken.

    import pairvpr

    pairvpr.build_map("drive1/", "map/")
    recognizer = pairvpr.PlaceRecognizer.open("map/")
    answer = recognizer.recognize("photo.jpg")

Names are imported when they are first used. Importing this package loads neither numpy nor torch. The network itself is
in `pairvpr.model`, which needs torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pairvpr.errors import (
        BundleError,
        CheckpointError,
        EngineError,
        ExportError,
        MapError,
        PairVPRError,
        ServiceError,
        SourceError,
        TrainingError,
    )
    from pairvpr.runtime import FleetRecognizer, Map, PlaceRecognizer, build_map, load_model

# ONNX Runtime's official builds send telemetry unless this is set before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.2.0"

__all__ = [
    "BundleError",
    "CheckpointError",
    "EngineError",
    "ExportError",
    "FleetRecognizer",
    "Map",
    "MapError",
    "PairVPRError",
    "PlaceRecognizer",
    "ServiceError",
    "SourceError",
    "TrainingError",
    "build_map",
    "load_model",
]

_RUNTIME = ("FleetRecognizer", "Map", "PlaceRecognizer", "build_map", "load_model")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("pairvpr.runtime" if name in _RUNTIME else "pairvpr.errors"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
