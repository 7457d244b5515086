"""Measure distances between positions on the earth or in a metric frame."""

from __future__ import annotations

import math

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
