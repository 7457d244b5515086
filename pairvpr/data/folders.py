"""Places from plain folders of pictures, one's own or anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from pairvpr.data.places import Picture, Place
from pairvpr.errors import SourceError
from pairvpr.runtime.pictures import load_picture
from pairvpr.runtime.sources import list_pictures


class FolderPlaces:
    """Each folder that directly holds pictures is a place; folders side by side form a group.

    root/CITY/PLACE/*.jpg gives places in groups by city, root/PLACE/*.jpg one group.
    """

    def __init__(self, root: str, min_pictures: int = 2) -> None:
        """`root`: the folder of folders. Places of fewer than `min_pictures` pictures are left out."""
        self.root = Path(root)
        folders: dict[str, list[str]] = {}
        for name, _ in list_pictures(self.root):
            folders.setdefault(Path(name).parent.as_posix(), []).append(name)
        # By parent first: a city's places must follow one another.
        found = sorted(folders.items(), key=lambda item: (Path(item[0]).parent.as_posix(), item[0]))
        self._places = [(place, names) for place, names in found if len(names) >= min_pictures]
        if not self._places:
            raise SourceError(f"{root}: no folder in it holds {min_pictures} pictures; give a folder of place folders")

    def __len__(self) -> int:
        return len(self._places)

    @property
    def groups(self) -> Sequence[int]:
        """Sizes of the runs of places with the same parent folder."""
        parents = (Path(place).parent for place, _ in self._places)
        return [sum(1 for _ in run) for _, run in groupby(parents)]

    def place(self, index: int, rng: np.random.Generator) -> Place:
        """The pictures of one folder; nothing is left to chance."""
        name, pictures = self._places[index]
        return Place(name, [_picture(self.root, picture) for picture in pictures])


class LoosePictures:
    """Every picture below a folder is a place of its own: for distillation, which needs no labels."""

    def __init__(self, root: str) -> None:
        """`root`: a folder of pictures, in any layout."""
        self.root = Path(root)
        self._names = [name for name, _ in list_pictures(self.root)]

    def __len__(self) -> int:
        return len(self._names)

    @property
    def groups(self) -> Sequence[int]:
        """Sizes of the runs of pictures in the same folder."""
        return [sum(1 for _ in run) for _, run in groupby(Path(name).parent for name in self._names)]

    def place(self, index: int, rng: np.random.Generator) -> Place:
        """One picture; nothing is left to chance."""
        name = self._names[index]
        return Place(name, [_picture(self.root, name)])


def _picture(root: Path, name: str) -> Picture:
    return Picture(name, partial(load_picture, root / name))
