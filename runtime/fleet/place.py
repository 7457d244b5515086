"""Name the place of pictures on the earth or in a frame, and bound them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

from pairvpr.runtime.geometry.geodesy import EARTH_RADIUS
from pairvpr.runtime.geometry.poses import Gps
from pairvpr.runtime.map.records import Record

LEVEL = 16
"""Level of the Web Mercator tiles. One has a side of 611 m at the equator."""
CELL = 500.0
"""Metres of the side of a cell in a metric frame."""
_NORTHERNMOST = 85.05112878  # degrees, the edge of Web Mercator

Box = tuple[float, float, float, float]


def place_of(records: Sequence[Record]) -> str:
    """Return the name of the place where most of some pictures are.

    It is a Web Mercator quadkey for GPS positions, else a cell of a grid in a metric frame, else the source.
    """
    gps = [record.gps for record in records if record.gps is not None]
    if gps:
        return _most(f"gps-{quadkey(each.latitude, each.longitude)}" for each in gps)
    poses = [record.pose for record in records if record.pose is not None]
    if poses:
        return _most(
            f"grid-{_short(pose.frame)}-{math.floor(pose.x / CELL)}_{math.floor(pose.y / CELL)}" for pose in poses
        )
    return _most(f"drive-{_short(record.source)}" for record in records)


def quadkey(latitude: float, longitude: float, level: int = LEVEL) -> str:
    """Return the quadkey of a position in degrees.

    The formulas are those of the Bing Maps Tile System (Schwartz, 2018).
    """
    latitude = min(max(latitude, -_NORTHERNMOST), _NORTHERNMOST)
    sine = math.sin(math.radians(latitude))
    across = (longitude + 180) / 360
    down = 0.5 - math.log((1 + sine) / (1 - sine)) / (4 * math.pi)
    side = 1 << level
    x, y = (min(max(int(part * side), 0), side - 1) for part in (across, down))
    return "".join(str((x >> bit & 1) + 2 * (y >> bit & 1)) for bit in reversed(range(level)))


def gps_box(records: Sequence[Record]) -> Box | None:
    """Return south, west, north and east in degrees, None without a GPS position."""
    return _box([(record.gps.latitude, record.gps.longitude) for record in records if record.gps is not None])


def frame_boxes(records: Sequence[Record]) -> dict[str, Box]:
    """Return least x, least y, most x and most y in metres of the pictures with a pose, by frame."""
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if record.pose is not None:
            points.setdefault(record.pose.frame, []).append((record.pose.x, record.pose.y))
    return {frame: box for frame, each in sorted(points.items()) if (box := _box(each)) is not None}


def reaches(box: Box, position: Gps, radius: float) -> bool:
    """Return whether a circle of `radius` metres can reach into a box in degrees. It errs on the side of True."""
    south, west, north, east = box
    angle = radius / EARTH_RADIUS
    up = math.degrees(angle)
    if position.latitude + up < south or position.latitude - up > north:
        return False
    ratio = math.sin(min(angle, math.pi / 2)) / max(math.cos(math.radians(position.latitude)), 1e-12)
    if ratio >= 1:  # the circle holds a pole
        return True
    aside = math.degrees(math.asin(ratio))
    longitudes = (position.longitude - 360, position.longitude, position.longitude + 360)
    return any(west - aside <= longitude <= east + aside for longitude in longitudes)


def _box(points: Sequence[tuple[float, float]]) -> Box | None:
    if not points:
        return None
    first, second = zip(*points, strict=True)
    return min(first), min(second), max(first), max(second)


def _most(names: object) -> str:
    counts = Counter(names)  # type: ignore[call-overload]
    most = max(counts.values())
    return str(min(name for name, count in counts.items() if count == most))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
