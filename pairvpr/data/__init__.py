"""Training data sets of pictures grouped by place (importing this package does not import torch)."""

import warnings

from pairvpr.data.folders import FolderPlaces, LoosePictures
from pairvpr.data.google_landmarks import GoogleLandmarks
from pairvpr.data.gsv_cities import GsvCities
from pairvpr.data.places import JoinedPlaces, PlaceDataset, TrainingPicture, TrainingPlace, open_places
from pairvpr.data.sf_xl import SfXl
from pairvpr.data.traverses import Traverses

__all__ = [
    "FolderPlaces",
    "GoogleLandmarks",
    "GsvCities",
    "JoinedPlaces",
    "LoosePictures",
    "PlaceDataset",
    "SfXl",
    "TrainingPicture",
    "TrainingPlace",
    "Traverses",
    "open_places",
]


def __getattr__(name: str) -> object:
    """Return a class by its name of version 0.1, with a warning that gives the new name."""
    new = {"Picture": "TrainingPicture", "Place": "TrainingPlace"}.get(name)
    if new is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"pairvpr.data.{name} is now pairvpr.data.{new}; 0.3 removes the old name", FutureWarning, stacklevel=2
    )
    return globals()[new]
