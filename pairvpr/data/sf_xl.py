"""Read SF-XL's panoramas (Berton et al., CVPR 2022) as pairs of views of one point, for stage one.

    raw/train/panoramas/**/@<UTM east>@<UTM north>@<zone>@<letter>@<lat>@<lon>@<pano id>@<tile>@<heading>@<pitch>@<roll>
                           @<height>@<timestamp>@<note>@.jpg

This is the published layout (github.com/gmberton/CosPlace/issues/27). The middle column of a panorama looks in the
direction of its heading (issue 26 there).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from math import floor, isfinite
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairvpr.data.index import IndexedPlaces, Row, open_index
from pairvpr.data.panoramas import view
from pairvpr.data.places import TrainingPicture, TrainingPlace
from pairvpr.data.tables import start_of_month
from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.utm_names import utm_pose
from pairvpr.runtime.image import load_picture

CELL = 15.0  # metres, side (recipe)
FOCAL_DISTANCE = (10.0, 20.0)  # metres from the cell's centre (recipe)
VIEW_ANGLE = (3.0, 50.0)  # degrees between the two views, at the focal point (recipe)
MIN_EXTENT = 1.0  # metres that a cell's panoramas must extend; seen from 19 m, 1 m spans 3 degrees
TRIES = 100  # focal points drawn before a cell is given up drawn before a cell is given up

Points = npt.NDArray[np.float64]


class SfXl(IndexedPlaces):
    """The cells of SF-XL, all in one group. A place is two views, and each draw gives two other views.

    Recipe: cells of 15 m. A focal point 10 to 20 m away in a random direction. Two panoramas of the cell, cropped so
        that they face the focal point, with view angles 3 to 50 degrees apart.

    Our choices where the recipe is silent:
    - A cell is a square of the UTM grid, and distances are from its centre.
    - Distance and direction are drawn uniformly, and so is the pair among those of a fitting angle.
    - If no pair fits, another focal point is drawn, up to 100 times.
    - Cells whose panoramas extend less than 1 m along both axes are left out.
    - Views are central projections of 55.4 degrees. CosPlace and EigenPlaces crop the panoramas without projecting
      them.
    - Grid north is used as north. In San Francisco they differ by 0.4 degrees.

    Positions are UTM. A picture's heading is the view's, and its time is the start of the month in its name.
    """

    def __init__(self, root: str, index: str = "") -> None:
        """Open the data set, and index it if no index fits.

        root: the folder of panoramas, with or without sub-folders. Each start lists them, to see whether the index is
            up to date.
        index: file of the index, "" for the user's cache folder.
        Raises SourceError if there are no panoramas, or if a name differs from the published format.
        """
        folder = Path(root)
        if not folder.is_dir():
            raise SourceError(f"{folder}: no such folder; give as root SF-XL's raw/train/panoramas")
        folders = (entry for entry, is_folder in _walk(folder) if is_folder)
        rows = (_row(path, folder) for path, is_folder in _walk(folder) if not is_folder)
        opened = open_index(
            "sf-xl", folder, sources=folders, rows=rows, min_pictures=2, min_extent=MIN_EXTENT, file=index
        )
        super().__init__(folder, opened)

    def place(self, index: int, rng: np.random.Generator) -> TrainingPlace:
        """Return two views of a focal point near the cell, or none if no focal point fits."""
        name, rows = self.index.place(index)
        positions = np.array([(row.east, row.north) for row in rows], np.float64)
        centre = (np.floor(positions[0] / CELL) + 0.5) * CELL
        for _ in range(TRIES):
            focal = centre + _offset(rng)
            pairs = fitting_pairs(positions, focal)
            if len(pairs):
                chosen = pairs[rng.integers(len(pairs))]
                return TrainingPlace(name, [self._view(rows[i], float(bearing(focal - positions[i]))) for i in chosen])
        return TrainingPlace(name, [])

    def _view(self, row: Row, heading: float) -> TrainingPicture:
        picture = self._picture(row)
        assert row.heading is not None
        load = partial(_load_view, self.root / row.path, heading - row.heading)
        return TrainingPicture(picture.name, load, picture.position, heading, picture.time)


def bearing(offset: Points) -> Points:
    """Return the directions of offsets east and north (..., 2), in degrees clockwise from north, 0 to 360, as (...)."""
    return np.degrees(np.arctan2(offset[..., 0], offset[..., 1])) % 360


def fitting_pairs(positions: Points, focal: Points) -> npt.NDArray[np.int64]:
    """Return the pairs of positions (n, 2) that see the point `focal` (2,) from directions VIEW_ANGLE apart.

    The result holds indices of positions (pairs, 2).
    """
    directions = bearing(focal - positions)
    apart = np.abs((directions[:, None] - directions + 180) % 360 - 180)
    return np.argwhere(np.triu((apart >= VIEW_ANGLE[0]) & (apart <= VIEW_ANGLE[1]), 1))


def _offset(rng: np.random.Generator) -> Points:
    direction = rng.uniform(0, 2 * np.pi)
    return rng.uniform(*FOCAL_DISTANCE) * np.array([np.sin(direction), np.cos(direction)])


def _load_view(path: Path, turn: float) -> Image.Image:
    panorama = np.asarray(load_picture(path))
    try:
        return Image.fromarray(view(panorama, turn))
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the folder, and all folders (true) and JPEG files (false) below it, in no particular order."""
    yield folder, True
    try:
        with os.scandir(folder) as entries:  # not iterdir, which holds all names at once
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from _walk(Path(entry.path))
                elif entry.name.lower().endswith(".jpg"):
                    yield Path(entry.path), False
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error


def _row(path: Path, root: Path) -> Row:
    name = path.relative_to(root).as_posix()
    fields = path.name.split("@")
    pose = utm_pose(path.name)
    heading = _number(fields[9]) if len(fields) > 9 else None
    if pose is None or heading is None or not name.isprintable():
        raise SourceError(
            f"{str(path)!r}: its name holds no position and heading; name panoramas "
            "@east@north@zone@letter@lat@lon@pano@tile@heading@..., or move this file elsewhere"
        )
    cell = "_".join(str(floor(metres / CELL) * int(CELL)) for metres in (pose.x, pose.y))
    time = _time(fields[13]) if len(fields) > 13 else None
    return Row("", cell, name, pose.x, pose.y, heading, time)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _time(text: str) -> float | None:
    """Return the start of the month in a time stamp `<year><month>`, or None if it is invalid."""
    try:
        return start_of_month(int(text[:4]), int(text[4:6]))
    except ValueError:
        return None
