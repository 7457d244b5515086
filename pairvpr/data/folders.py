"""Places from plain folders of pictures, one's own or anybody's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from pairvpr.data.places import Picture, Place
from pairvpr.errors import SourceError
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.sources import list_pictures


class FolderPlaces:
    """Each folder that directly holds pictures is a place; folders side by side form a group.

    root/CITY/PLACE/*.jpg gives places in groups by city, root/PLACE/*.jpg one group.
    """

    def __init__(self, root: str, min_pictures: int = 2, match: str = "*") -> None:
        """`root`: the folder of folders. `match`: a pattern (`*@night@*`) that the pictures' names must fit.

        Places of fewer than `min_pictures` such pictures are left out.
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
                f"{root}: no folder in it holds {min_pictures} pictures that fit {match!r}; "
                "give a folder of place folders"
            )

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


class ClipPlaces:
    """Frames of clips, one file each, numbered at the end of their names: those next to each other show one place.

    Every clip is cut into places of `window` frames with `gap` frames between them that are left out, so that no two
    places share a view. Clips of one folder form a group.
    """

    def __init__(self, root: str, window: int = 3, gap: int = 3) -> None:
        """`root`: a folder of frames `CLIP<number>.jpg`, in any sub-folders. A clip ends where a number is missing."""
        if window < 2 or gap < 0:
            raise SourceError(f"{root}: window {window}, gap {gap}: a place needs 2 frames, a gap 0 or more")
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
            raise SourceError(f"{root}: no clip of {window} frames in it; give a folder of numbered frames")

    def __len__(self) -> int:
        return len(self._places)

    @property
    def groups(self) -> Sequence[int]:
        """Sizes of the runs of places whose frames lie in the same folder."""
        return [sum(1 for _ in run) for _, run in groupby(folder for folder, _ in self._places)]

    def place(self, index: int, rng: np.random.Generator) -> Place:
        """A few frames of a clip; nothing is left to chance."""
        frames = self._places[index][1]
        return Place(frames[0], [_picture(self.root, frame) for frame in frames])


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
