"""Where a picture was taken: metric poses and GPS positions, and the ways they come with pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Pose:
    """A metric pose: position in metres, unit quaternion (x, y, z, w) if known, and the frame they are in."""

    x: float
    y: float
    z: float
    q: tuple[float, float, float, float] | None = None
    frame: str = "map"

    def __str__(self) -> str:
        return f"({self.x:.2f}, {self.y:.2f}, {self.z:.2f}) m in {self.frame}"

    def as_json(self) -> dict[str, object]:
        """The pose as it stands in JSONL output."""
        q = None if self.q is None else list(self.q)
        return {"x": self.x, "y": self.y, "z": self.z, "q": q, "frame": self.frame}


@dataclass(frozen=True)
class Gps:
    """A WGS 84 position: latitude and longitude in degrees, altitude in metres if known."""

    latitude: float
    longitude: float
    altitude: float | None = None

    def __str__(self) -> str:
        altitude = "" if self.altitude is None else f", {self.altitude:.1f} m"
        return f"({self.latitude:.6f}, {self.longitude:.6f}{altitude}) in wgs84"

    def as_json(self) -> dict[str, object]:
        """The position as it stands in JSONL output, in the place of a metric pose."""
        return {
            "latitude": self.latitude,
            "longitude": self.longitude,
            "altitude": self.altitude,
            "frame": "wgs84",
        }


class Place(NamedTuple):
    """What is known of where and when a picture was taken; the timestamp is in seconds."""

    pose: Pose | None = None
    gps: Gps | None = None
    timestamp: float | None = None


UNKNOWN = Place()
