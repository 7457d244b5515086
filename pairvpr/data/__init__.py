"""Pictures that know their places, for training (this package's own imports are torch-free)."""

from pairvpr.data.folders import FolderPlaces, LoosePictures
from pairvpr.data.google_landmarks import GoogleLandmarks
from pairvpr.data.gsv_cities import GsvCities
from pairvpr.data.places import JoinedPlaces, Picture, Place, PlaceDataset, open_places
from pairvpr.data.sf_xl import SfXl

__all__ = [
    "FolderPlaces",
    "GoogleLandmarks",
    "GsvCities",
    "JoinedPlaces",
    "LoosePictures",
    "Picture",
    "Place",
    "PlaceDataset",
    "SfXl",
    "open_places",
]
