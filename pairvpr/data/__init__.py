"""Pictures that know their places, for training (this package's own imports are torch-free)."""

from pairvpr.data.folders import FolderPlaces, LoosePictures
from pairvpr.data.places import JoinedPlaces, Picture, Place, PlaceDataset, open_places

__all__ = ["FolderPlaces", "JoinedPlaces", "LoosePictures", "Picture", "Place", "PlaceDataset", "open_places"]
