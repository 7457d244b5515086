"""Calculate with rigid transforms between frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.geometry import rotations
from pairvpr.runtime.geometry.poses import Pose
from pairvpr.runtime.geometry.rotations import Quaternion


class Transform(NamedTuple):
    """Hold the pose of one frame in another: position (3,) in metres and unit quaternion (x, y, z, w)."""

    position: npt.NDArray[np.float64]
    q: Quaternion

    @staticmethod
    def of(position: Sequence[float], q: Sequence[float]) -> Transform:
        """Make a transform from three metres and a quaternion of any length but 0."""
        x, y, z, w = (value / math.hypot(*q) for value in q)
        return Transform(np.asarray(position, np.float64), (x, y, z, w))

    def then(self, inner: Transform) -> Transform:
        """Return the pose in the outer frame of a frame that `inner` places in this one."""
        return Transform(self.position + rotations.rotate(self.q, inner.position), rotations.multiply(self.q, inner.q))

    @property
    def inverse(self) -> Transform:
        """Return the outer frame's pose in this frame."""
        q = rotations.inverse(self.q)
        return Transform(-rotations.rotate(q, self.position), q)


def parse_transforms(text: str) -> list[Transform]:
    """Parse "X,Y,Z,QX,QY,QZ,QW" in metres, with a quaternion of any length; several are separated by ";".

    Raises ValueError for anything else. Its text is the part that cannot be used, and the remedy.
    """
    return [_parse(part) for part in text.split(";")]


def _parse(text: str) -> Transform:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 7 or not all(map(math.isfinite, numbers)) or math.hypot(*numbers[3:]) < 1e-9:
        raise ValueError(f"{text.strip()!r}: write X,Y,Z,QX,QY,QZ,QW")
    return Transform.of(numbers[:3], numbers[3:])


def move_base(pose: Pose, camera: Transform, map_camera: Transform) -> Pose:
    """Return the pose of a robot's base whose `camera` now sees the view of `map_camera` with the base at `pose`.

    camera, map_camera: their poses in the base. A pose without orientation stays as it is: the direction of the
    difference is unknown.
    """
    if pose.q is None:
        return pose
    base = Transform.of((pose.x, pose.y, pose.z), pose.q).then(map_camera).then(camera.inverse)
    x, y, z = map(float, base.position)
    return Pose(x, y, z, base.q, pose.frame)
