"""Data sets read from plain folders of pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from pairvpr.data.places import TrainingPicture, TrainingPlace
from pairvpr.errors import SourceError
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.sources import list_pictures


class FolderPlaces:
    """Data set in which each folder that directly holds pictures is a place.

    Folders with the same parent form a group.
    root/CITY/PLACE/*.jpg gives places grouped by city, root/PLACE/*.jpg gives one group.
    """

    def __init__(self, root: str, min_pictures: int = 2, match: str = "*") -> None:
        """List the pictures of the folder.

        root: the folder of place folders.
        min_pictures: places with fewer fitting pictures are left out.
        match: a pattern (`*@night@*`) that a picture's name must fit.
        Raises SourceError if no place is left.
        """
        self.root = Path(root)
        folders: dict[str, list[str]] = {}
        for name, _ in list_pictures(self.root):
            if fnmatchcase(name, match):
                folders.setdefault(Path(name).parent.as_posix(), []).append(name)
        # By parent first: a city's places must follow one another.
        found = sorted(folders.items(), key=lambda item: (Path(item[0]).parent.as_posix(), item[0]))
        self._places = [(place, names) for place, names in found if len(names) >= min_pictures]
        if not self._places:
            raise SourceError(
                f"{root}: none of its folders holds {min_pictures} pictures that fit {match!r}; "
                "give a folder of place folders, or another match or min_pictures"
            )

    def __len__(self) -> int:
        return len(self._places)

    @property
    def groups(self) -> Sequence[int]:
        """Sizes of the runs of places that share a parent folder."""
        parents = (Path(place).parent for place, _ in self._places)
        return [sum(1 for _ in run) for _, run in groupby(parents)]

    def place(self, index: int, rng: np.random.Generator) -> TrainingPlace:
        """Return the pictures of one folder. Nothing is random."""
        name, pictures = self._places[index]
        return TrainingPlace(name, [_picture(self.root, picture) for picture in pictures])


class ClipPlaces:
    """Data set of clips stored as numbered frames, in which neighbouring frames show one place.

    Each clip is cut into places of `window` frames. `gap` frames between two places are left out, so that no two places
    share a view. Clips of one folder form a group.
    """

    def __init__(self, root: str, window: int = 3, gap: int = 3) -> None:
        """List the frames and cut them into places.

        root: a folder of frames `CLIP<number>.jpg`, in any sub-folders. A clip ends at a missing number.
        window: frames of a place, at least 2.
        gap: frames left out between two places.
        Raises SourceError for other values, or if no clip has `window` frames.
        """
        if window < 2 or gap < 0:
            raise SourceError(f"{root}: window must be at least 2 and gap at least 0, they are {window} and {gap}")
        self.root = Path(root)
        frames = []
        for name, _ in list_pictures(self.root):
            path = Path(name)
            number = re.search(r"\d+$", path.stem)
            if number:
                frames.append((path.parent.as_posix(), path.stem[: number.start()], int(number[0]), name))
        frames.sort()
        self._places: list[tuple[str, list[str]]] = []
        run: list[str] = []
        for before, frame in zip([None, *frames], [*frames, None], strict=True):
            if before and (frame is None or frame[:2] != before[:2] or frame[2] != before[2] + 1):
                starts = range(0, len(run) - window + 1, window + gap)
                self._places += [(before[0], run[start : start + window]) for start in starts]
                run = []
            if frame:
                run.append(frame[3])
        if not self._places:
            raise SourceError(
                f"{root}: holds no clip of {window} frames; give a folder of numbered frames, or a smaller window"
            )

    def __len__(self) -> int:
        return len(self._places)

    @property
    def groups(self) -> Sequence[int]:
        """Sizes of the runs of places whose frames lie in the same folder."""
        return [sum(1 for _ in run) for _, run in groupby(folder for folder, _ in self._places)]

    def place(self, index: int, rng: np.random.Generator) -> TrainingPlace:
        """Return a few frames of a clip. Nothing is random."""
        frames = self._places[index][1]
        return TrainingPlace(frames[0], [_picture(self.root, frame) for frame in frames])


class LoosePictures:
    """Data set in which every picture below a folder is a place of its own: for distillation, which needs no labels."""

    def __init__(self, root: str) -> None:
        """List the pictures. `root` is a folder of pictures in any layout."""
        self.root = Path(root)
        self._names = [name for name, _ in list_pictures(self.root)]

    def __len__(self) -> int:
        return len(self._names)

    @property
    def groups(self) -> Sequence[int]:
        """Sizes of the runs of pictures in the same folder."""
        return [sum(1 for _ in run) for _, run in groupby(Path(name).parent for name in self._names)]

    def place(self, index: int, rng: np.random.Generator) -> TrainingPlace:
        """Return one picture. Nothing is random."""
        name = self._names[index]
        return TrainingPlace(name, [_picture(self.root, name)])


def _picture(root: Path, name: str) -> TrainingPicture:
    return TrainingPicture(name, partial(load_picture, root / name))
