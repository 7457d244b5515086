"""The user's pictures, some to calibrate with and others to judge the result by."""

from __future__ import annotations

from pathlib import Path

from pairvpr.errors import SourceError
from pairvpr.runtime.sources import list_pictures
from pairvpr.spread import spread

CALIBRATION = 64
HELD_OUT = 200


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
