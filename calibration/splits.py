"""Split the user's pictures into those to calibrate with and those to judge the result by."""

from __future__ import annotations

from pathlib import Path

from pairvpr.errors import SourceError
from pairvpr.runtime.sources import list_pictures
from pairvpr.spread import spread

CALIBRATION = 64
HELD_OUT = 200


def split_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return 64 pictures to calibrate with and 200 others to judge by, both spread evenly over the folder.

    Raises SourceError if the folder holds fewer: with fewer to judge by, one changed answer in a hundred could not be
    told from none.
    """
    pictures = [path for _, path in list_pictures(folder)]
    needed = CALIBRATION + HELD_OUT
    if len(pictures) < needed:
        raise SourceError(
            f"{folder}: {len(pictures)} pictures; INT8 needs {needed} ({CALIBRATION} to calibrate with, {HELD_OUT} to "
            "judge the result by); put more of the robot's own pictures there, video frames will do"
        )
    calibration = spread(pictures, CALIBRATION)
    return calibration, spread([path for path in pictures if path not in set(calibration)], HELD_OUT)
