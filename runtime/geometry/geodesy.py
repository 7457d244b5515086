"""Measure distances between positions on the earth or in a metric frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.poses import Gps, Pose

EARTH_RADIUS = 6_371_008.8  # metres, the mean radius R1 of the International Union of Geodesy and Geophysics


def distance_between(first: Pose | Gps, second: Pose | Gps) -> float:
    """Return the metres between two positions.

    The distance is straight for poses, and over the ground (haversine) for GPS positions. It is infinite between a pose
    and a GPS position, and between poses in different frames.
    """
    if isinstance(first, Pose) and isinstance(second, Pose) and first.frame == second.frame:
        return math.dist((first.x, first.y, first.z), (second.x, second.y, second.z))
    if isinstance(first, Gps) and isinstance(second, Gps):
        south, north = math.radians(first.latitude), math.radians(second.latitude)
        across = math.radians(second.longitude - first.longitude)
        half = math.sin((north - south) / 2) ** 2 + math.cos(south) * math.cos(north) * math.sin(across / 2) ** 2
        return 2 * EARTH_RADIUS * math.asin(min(math.sqrt(half), 1.0))
    return math.inf


def positions_in_metres(wheres: Sequence[Pose | Gps], sources: str) -> npt.NDArray[np.float64]:
    """Return positions as x, y, z in metres (n, 3).

    GPS positions lie on a plane that touches the earth at the first one; altitudes are left out.
    sources: where they come from, for the message.
    Raises SourceError if they are in different frames.
    """
    frames = sorted({where.frame for where in wheres})
    if len(frames) > 1:
        raise SourceError(f"{sources}: places in different frames, {' and '.join(frames)}; give poses in one frame")
    start = wheres[0]
    rows = []
    for where in wheres:
        if isinstance(where, Pose):
            rows.append((where.x, where.y, where.z))
        elif isinstance(start, Gps):
            across = math.cos(math.radians(start.latitude)) * math.radians(where.longitude - start.longitude)
            rows.append((EARTH_RADIUS * across, EARTH_RADIUS * math.radians(where.latitude - start.latitude), 0.0))
    return np.array(rows, np.float64)
