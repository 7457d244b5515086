"""Represent the place of a picture: a metric pose or a GPS position, and a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

FARTHEST = 1e12
"""Largest coordinate of a position in metres. Larger numbers are no position, and their squares would overflow."""


@dataclass(frozen=True)
class Pose:
    """Hold a metric pose.

    x, y, z: position in metres.
    q: unit quaternion (x, y, z, w), None if the orientation is not known.
    frame: name of the coordinate frame.
    """

    x: float
    y: float
    z: float
    q: tuple[float, float, float, float] | None = None
    frame: str = "map"

    def __str__(self) -> str:
        return f"({self.x:.2f}, {self.y:.2f}, {self.z:.2f}) m in {self.frame}"

    def as_json(self) -> dict[str, object]:
        """Return the pose as JSONL output holds it."""
        q = None if self.q is None else list(self.q)
        return {"x": self.x, "y": self.y, "z": self.z, "q": q, "frame": self.frame}


@dataclass(frozen=True)
class Gps:
    """Hold a WGS 84 position: latitude and longitude in degrees, altitude in metres or None."""

    latitude: float
    longitude: float
    altitude: float | None = None
    frame: ClassVar[str] = "wgs84"

    def __str__(self) -> str:
        altitude = "" if self.altitude is None else f", {self.altitude:.1f} m"
        return f"({self.latitude:.6f}, {self.longitude:.6f}{altitude}) in {self.frame}"

    def as_json(self) -> dict[str, object]:
        """Return the position as JSONL output holds it, in the field of the metric pose."""
        return {
            "latitude": self.latitude,
            "longitude": self.longitude,
            "altitude": self.altitude,
            "frame": self.frame,
        }


def is_position(x: float, y: float, z: float) -> bool:
    """Return whether the numbers can be a position in metres: they are finite, and at most FARTHEST."""
    return abs(x) <= FARTHEST and abs(y) <= FARTHEST and abs(z) <= FARTHEST  # false for NaN


def find_fix(latitude: float, longitude: float, altitude: float | None = None) -> Gps | None:
    """Return the GPS position, None if a receiver without a fix wrote the numbers.

    A position that is not finite, outside +-90 and +-180 degrees or within a metre of (0, 0) is no fix. An altitude
    that is not finite, or farther than FARTHEST, is left out.
    """
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):  # also if one is not a number
        return None
    if abs(latitude) < 1e-5 and abs(longitude) < 1e-5:
        return None
    return Gps(latitude, longitude, altitude if altitude is not None and abs(altitude) <= FARTHEST else None)


class Place(NamedTuple):
    """Hold the known pose, GPS position and time (seconds) of a picture."""

    pose: Pose | None = None
    gps: Gps | None = None
    timestamp: float | None = None


UNKNOWN = Place()
