"""The user's pictures, some to calibrate with and others to judge the result by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from pairvpr.errors import SourceError
from pairvpr.runtime.sources import list_pictures

CALIBRATION = 64
HELD_OUT = 200

Item = TypeVar("Item")


def split_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """64 pictures to calibrate with and 200 others to judge by, each spread evenly over the folder.

    Raises SourceError where the folder holds fewer: with less to judge by, one answer in a hundred that changed
    could not be told from none.
    """
    pictures = [path for _, path in list_pictures(folder)]
    needed = CALIBRATION + HELD_OUT
    if len(pictures) < needed:
        raise SourceError(
            f"{folder}: {len(pictures)} pictures, INT8 needs {needed} ({CALIBRATION} to calibrate with, {HELD_OUT} to "
            "judge the result by); add more of the robot's own, frames of a video will do"
        )
    calibration = spread(pictures, CALIBRATION)
    return calibration, spread([path for path in pictures if path not in set(calibration)], HELD_OUT)


def spread(pictures: Sequence[Item], count: int) -> list[Item]:
    """So many of the pictures, at most all, spread evenly and in their order."""
    return [pictures[i] for i in np.linspace(0, len(pictures) - 1, count).round().astype(int)]
