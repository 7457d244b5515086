"""The torch-free runtime: read bundles and maps, encode pictures, search, re-rank, answer."""

from pairvpr.runtime.answer import Match, Recognition
from pairvpr.runtime.features import Features
from pairvpr.runtime.model import Model, load_model
from pairvpr.runtime.poses import Gps, Pose
from pairvpr.runtime.recognizer import PlaceRecognizer

__all__ = ["Features", "Gps", "Match", "Model", "PlaceRecognizer", "Pose", "Recognition", "load_model"]
