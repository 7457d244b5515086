"""The torch-free runtime: read bundles and maps, encode pictures, search, re-rank, answer.

Names are imported when they are first used, so that the commands' help needs none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pairvpr.runtime.answer import Filtered, Match, Recognition
    from pairvpr.runtime.features import Features
    from pairvpr.runtime.fleet.recognizer import FleetRecognizer
    from pairvpr.runtime.geometry.poses import Gps, Pose
    from pairvpr.runtime.map import Map, Record
    from pairvpr.runtime.mapping.builder import BuildReport, build_map
    from pairvpr.runtime.mapping.closure import Closure, Threshold
    from pairvpr.runtime.mapping.loop_closing import LoopCloser
    from pairvpr.runtime.model import Model, load_model
    from pairvpr.runtime.prior import Prior
    from pairvpr.runtime.recognizer import PlaceRecognizer
    from pairvpr.runtime.sequence.filter import SequenceFilter
    from pairvpr.runtime.sequence.tracking import Follower
    from pairvpr.runtime.sources import Frame, Source, SourceOptions, open_source

__all__ = [
    "BuildReport",
    "Closure",
    "Features",
    "Filtered",
    "FleetRecognizer",
    "Follower",
    "Frame",
    "Gps",
    "LoopCloser",
    "Map",
    "Match",
    "Model",
    "PlaceRecognizer",
    "Pose",
    "Prior",
    "Recognition",
    "Record",
    "SequenceFilter",
    "Source",
    "SourceOptions",
    "Threshold",
    "build_map",
    "load_model",
    "open_source",
]

_MODULES = {
    "BuildReport": "mapping.builder",
    "Closure": "mapping.closure",
    "Features": "features",
    "Filtered": "answer",
    "FleetRecognizer": "fleet.recognizer",
    "Follower": "sequence.tracking",
    "Frame": "sources",
    "Gps": "geometry.poses",
    "LoopCloser": "mapping.loop_closing",
    "Map": "map",
    "Match": "answer",
    "Model": "model",
    "PlaceRecognizer": "recognizer",
    "Pose": "geometry.poses",
    "Prior": "prior",
    "Recognition": "answer",
    "Record": "map",
    "SequenceFilter": "sequence.filter",
    "Source": "sources",
    "SourceOptions": "sources",
    "Threshold": "mapping.closure",
    "build_map": "mapping.builder",
    "load_model": "model",
    "open_source": "sources",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
