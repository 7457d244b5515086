"""Read several drives of one way, with poses, as places that two or more of the drives see."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pairvpr.data.places import TrainingPicture, TrainingPlace
from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.geodesy import positions_in_metres
from pairvpr.runtime.geometry.pose_files import PlaceFinder
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.geometry.rotations import angles_between
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.sources import list_pictures
from pairvpr.spread import cut_along

PARTS = ("all", "training", "held-out")
STRETCHES, HELD_OUT = 5, 2
"""The pictures are cut into five stretches of equal number, and the middle one is held out."""
APART = 3
"""Radii between the centres of two places. Pictures of two places are then more than a radius apart."""
MAX_TURN = math.radians(45)
"""Largest turn between a picture and the centre of its place. Beyond it, most of the views differ."""

Numbers = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


class _Shot(NamedTuple):
    """A picture with a place. `drive` is the number of its folder."""

    drive: int
    name: str
    path: Path
    where: Pose | Gps
    time: float | None


class Traverses:
    """Data set of drives along the same way. A place is seen by two or more drives, and all places form one group.

    A place holds the pictures within `radius` of its centre, which is one of the pictures. Places are chosen greedily
    in the order of folders and names: a picture becomes a centre if it is at least three radii from all centres so far
    and its place is seen by two drives. So pictures of different places are more than a radius apart, as the losses
    need, and pictures between two places are left out. (CosPlace, Berton et al., CVPR 2022, keeps neighbouring cells
    out of one batch for the same reason.) A picture that is turned by more than 45 degrees from the centre is left out
    if both orientations are known.

    The held-out part is one of five stretches along the principal axis of the way, as in spatial cross-validation
    (Roberts et al., Ecography 2017). No picture of the training part lies within `radius` of a held-out picture.

    Positions of pictures are x and y in metres. GPS positions lie on a plane that touches the earth at the first one.
    """

    def __init__(self, folders: Sequence[str], radius: float, poses: Sequence[str] = (), part: str = "all") -> None:
        """Find the pictures' places and group them. No picture is decoded.

        folders: two or more folders of pictures, one for each drive.
        radius: metres.
        poses: files of poses as for `PlaceFinder`: none, one for all drives, or one for each. "" stands for none.
            Without a file, places are in the names (@UTM_east@UTM_north@) or in EXIF GPS.
        part: "training" for the pictures outside the held-out stretch, "held-out" for those inside, "all" for both.
        Raises SourceError for other values, if a file of poses fits no picture of its drive, or if no place is seen by
        two drives.
        """
        _check(folders, radius, poses, part)
        files = list(poses) if len(poses) == len(folders) else (list(poses) or [""]) * len(folders)
        shots = [
            shot
            for number, (folder, file) in enumerate(zip(folders, files, strict=True))
            for shot in _find_shots(number, Path(folder), file)
        ]
        named = " and ".join(folders)
        positions = positions_in_metres([shot.where for shot in shots], named)
        chosen = _part(positions, radius, part)
        places = group(
            positions[chosen],
            _orientations([shots[i].where for i in chosen]),
            np.array([shots[i].drive for i in chosen], np.int64),
            radius,
        )
        if not places:
            raise SourceError(
                f"{named}: no place is seen by two of the drives within {radius:g} m (part {part!r}); give drives along"
                " the same way with poses in one frame, or a larger radius"
            )
        self._places = [[(shots[chosen[i]], positions[chosen[i]]) for i in place] for place in places]

    def __len__(self) -> int:
        return len(self._places)

    @property
    def groups(self) -> Sequence[int]:
        """The number of places: all form one group."""
        return [len(self._places)]

    def place(self, index: int, rng: np.random.Generator) -> TrainingPlace:
        """Return a random picture of each drive that sees the place, so that every pair is of two drives."""
        drives: dict[int, list[TrainingPicture]] = {}
        for shot, (x, y, _) in self._places[index]:
            picture = TrainingPicture(
                str(shot.path), partial(load_picture, shot.path), (float(x), float(y)), time=shot.time
            )
            drives.setdefault(shot.drive, []).append(picture)
        pictures = [seen[rng.integers(len(seen))] for seen in drives.values()]
        return TrainingPlace(self._places[index][0][0].name, pictures)


def group(positions: Numbers, orientations: Numbers, drives: Indices, radius: float) -> list[Indices]:
    """Group n pictures into places, see `Traverses`. Return the indices of each place's pictures.

    positions: (n, 3), metres.
    orientations: (n, 4), unit quaternions, not a number if unknown.
    drives: (n,), the number of each picture's drive.
    radius: metres.
    """
    centres = np.empty((0, 3))
    places = []
    for position, orientation in zip(positions, orientations, strict=True):
        if (np.linalg.norm(centres - position, axis=1) < APART * radius).any():
            continue
        near = np.linalg.norm(positions - position, axis=1) < radius
        turns = angles_between(orientations, orientation)
        members = np.flatnonzero(near & ~(turns > MAX_TURN))  # an unknown turn is not above the limit
        if len(np.unique(drives[members])) > 1:
            centres = np.vstack([centres, position])
            places.append(members)
    return places


def _check(folders: Sequence[str], radius: float, poses: Sequence[str], part: str) -> None:
    """Raise SourceError for arguments that cannot be."""
    for name, value in (("folders", folders), ("poses", poses)):
        if isinstance(value, str) or not all(isinstance(each, str) for each in value):
            raise SourceError(f"data set 'traverses': {name} must be a list of paths, is {value!r}; correct it")
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < max(2, len(paths)):
        raise SourceError(
            f"data set 'traverses': folders must be two or more different folders, one for each drive, is "
            f"{list(folders)}; add another drive along the same way"
        )
    for path in paths:
        if not set(path.parents).isdisjoint(paths):
            raise SourceError(f"{path}: lies in another of the folders; give folders that share no picture")
    if len(poses) not in (0, 1, len(folders)):
        raise SourceError(
            f"data set 'traverses': {len(poses)} files of poses for {len(folders)} folders; give one for all, or one "
            'for each ("" for none)'
        )
    if not 0 < radius < math.inf:
        raise SourceError(f"data set 'traverses': radius must be above 0 metres, is {radius}; correct it")
    if part not in PARTS:
        raise SourceError(f"data set 'traverses': part {part!r} is unknown; give one of {', '.join(PARTS)}")


def _find_shots(drive: int, folder: Path, poses: str) -> list[_Shot]:
    """Return the pictures of a folder that have places. Raise SourceError if there are none."""
    finder = PlaceFinder(poses or None)
    shots, without = [], 0
    for name, path in list_pictures(folder):
        place = finder.find_place(name, path)
        where = place.pose or place.gps
        if where is None:
            without += 1
        else:
            shots.append(_Shot(drive, name, path, where, place.timestamp))
    if poses and not finder.matched:
        raise SourceError(
            f"{poses}: fits no picture of {folder} ({finder.compare()}); give the poses of this drive, in the order of "
            "the folders"
        )
    if not shots:
        raise SourceError(f"{folder}: none of its pictures has a place; give poses, @UTM@ names or EXIF GPS")
    if without:
        log.warning("%s: %d pictures left out: they have no place", folder, without)
    return shots


def _part(positions: Numbers, radius: float, part: str) -> Indices:
    """Return the indices, in order, of the pictures of a part."""
    everything = np.arange(len(positions))
    if part == "all":
        return everything
    held = np.sort(cut_along(positions, STRETCHES)[HELD_OUT])
    if part == "held-out":
        return held
    apart = [i for i in everything if (np.linalg.norm(positions[held] - positions[i], axis=1) > radius).all()]
    return np.array(apart, np.int64)


def _orientations(wheres: Sequence[Pose | Gps]) -> Numbers:
    unknown = (math.nan,) * 4
    return np.array([(isinstance(where, Pose) and where.q) or unknown for where in wheres]).reshape(-1, 4)
