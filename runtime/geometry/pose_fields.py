"""Read the fields of pose files: numbers and poses, and say which forms of files are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.poses import FARTHEST, Pose, is_position
from pairvpr.runtime.geometry.rotations import normalize

POSE_COLUMNS = ["name", "x", "y", "z", "qx", "qy", "qz", "qw"]
GPS_COLUMNS = ["name", "latitude", "longitude"]  # and maybe altitude
NO_FIX = "GPS positions are no fix (out of range, not finite, 0, 0 or without N, S, E or W) and are left out"
POSE_FILE_FORMS = (
    f'CSV with the header "{",".join(POSE_COLUMNS)}" or "{",".join(GPS_COLUMNS)}[,altitude]", '
    'or TUM lines "timestamp x y z qx qy qz qw"'
)


def content_lines(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines, without blank lines and comments."""
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def read_pose(values: Sequence[str], where: str) -> Pose:
    """Parse a pose in the frame "map" from x, y, z, qx, qy, qz, qw. The quaternion is normalized.

    where: the file and line, for errors.

    Raises SourceError for text that is not a finite number, a position farther than FARTHEST, and a zero quaternion.
    """
    x, y, z, qx, qy, qz, qw = (read_number(value, where) for value in values)
    if not is_position(x, y, z):
        raise SourceError(f"{where}: a coordinate is larger than {FARTHEST:g} m: correct it")
    q = normalize((qx, qy, qz, qw))
    if q is None:
        raise SourceError(f"{where}: the quaternion is zero: write x,y,z,w = 0,0,0,1 for no rotation")
    return Pose(x, y, z, q)


def read_number(text: str, where: str) -> float:
    """Parse a finite number. Raise SourceError, which names `where`, for anything else."""
    value = read_float(text, where)
    if not math.isfinite(value):
        raise SourceError(f"{where}: {text.strip()} is not a finite number: correct it")
    return value


def read_float(text: str, where: str) -> float:
    """Parse a number that need not be finite."""
    try:
        return float(text)
    except ValueError:
        raise SourceError(f"{where}: {text.strip()!r} is not a number: correct it") from None
