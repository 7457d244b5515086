"""Interpolate poses and GPS positions over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.geometry.poses import UNKNOWN, Gps, Place, Pose

# Largest gap in seconds between neighbours to interpolate. Poses mostly come at 10 Hz or more, GPS positions at 1 Hz,
# and a fix may be missing. At an acceleration of 3 m/s^2 a straight line over these gaps is off by at most 0.1 m or
# 2.4 m (a t^2 / 8). Poses that come more slowly may be MISSING steps apart, up to the gap of GPS positions.
MAX_POSE_GAP = 0.5
MAX_GPS_GAP = 2.5
MISSING = 2.5


class Trajectory:
    """Interpolate poses or GPS positions between neighbours that are close in time.

    stamps: seconds (n,), in any order. The first of several values with the same stamp counts.
    values: poses (n, 7): x, y, z in metres and a unit quaternion (x, y, z, w), NaN if the orientation is not known.
    With frame None, GPS positions (n, 3): latitude and longitude in degrees, and altitude in metres or NaN.
    frame: the coordinate frame of the poses, None for GPS positions.
    """

    def __init__(self, stamps: Sequence[float], values: npt.ArrayLike, frame: str | None) -> None:
        self._frame = frame
        self._stamps, rows = np.unique(np.asarray(stamps, np.float64), return_index=True)
        self._values = np.asarray(values, np.float64).reshape(len(stamps), 3 if frame is None else 7)[rows]
        self._max_gap = MAX_GPS_GAP
        if frame is not None:
            step = float(np.median(np.diff(self._stamps))) if len(self) > 1 else 0.0
            self._max_gap = min(max(MISSING * step, MAX_POSE_GAP), MAX_GPS_GAP)

    def __len__(self) -> int:
        return len(self._stamps)

    def at(self, seconds: float) -> Place:
        """Return the place at a time in seconds: UNKNOWN before the first value, after the last, and in a gap."""
        after = int(np.searchsorted(self._stamps, seconds))
        if after < len(self) and self._stamps[after] == seconds:
            return self._place(self._values[after])
        if after in (0, len(self)) or self._stamps[after] - self._stamps[after - 1] > self._max_gap:
            return UNKNOWN
        first, second = self._values[after - 1 : after + 1]
        share = (seconds - self._stamps[after - 1]) / (self._stamps[after] - self._stamps[after - 1])
        step = second[:3] - first[:3]
        if self._frame is None:
            step[1] = (step[1] + 180) % 360 - 180  # the short way round the date line
        position = first[:3] + share * step
        return self._place(np.concatenate([position, slerp(first[3:], second[3:], share)]))

    def _place(self, values: npt.NDArray[np.float64]) -> Place:
        x, y, z, *q = values.tolist()
        if self._frame is None:
            return Place(gps=Gps(x, (y + 180) % 360 - 180, z if math.isfinite(z) else None))
        known = (q[0], q[1], q[2], q[3]) if math.isfinite(q[0]) else None
        return Place(pose=Pose(x, y, z, known, self._frame))


def slerp(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.float64]:
    """Return the rotation at a `share` (0 to 1) of the way between two unit quaternions (4,).

    The angular speed is constant.

    Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985. Empty arrays give an empty one.
    """
    cosine = float(first @ second)
    if cosine < 0:  # q and -q are the same rotation: take the short way
        second, cosine = -second, -cosine
    angle = math.acos(min(cosine, 1.0))
    if angle < 1e-6:
        blend = (1 - share) * first + share * second
    else:
        blend = (math.sin((1 - share) * angle) * first + math.sin(share * angle) * second) / math.sin(angle)
    return blend / max(float(np.linalg.norm(blend)), 1e-12)
