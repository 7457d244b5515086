"""Rigid transforms between frames."""

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
    """The pose of one frame in another: position (3,) in metres and unit quaternion (x, y, z, w)."""

    position: npt.NDArray[np.float64]
    q: Quaternion

    @staticmethod
    def of(position: Sequence[float], q: Sequence[float]) -> Transform:
        """Build one of three metres and a quaternion of any length but 0."""
        x, y, z, w = (value / math.hypot(*q) for value in q)
        return Transform(np.asarray(position, np.float64), (x, y, z, w))

    def then(self, inner: Transform) -> Transform:
        """Return the pose in the outer frame of what `inner` places in this frame."""
        return Transform(self.position + rotations.rotate(self.q, inner.position), rotations.multiply(self.q, inner.q))

    @property
    def inverse(self) -> Transform:
        """Return the outer frame's pose in this frame."""
        q = rotations.inverse(self.q)
        return Transform(-rotations.rotate(q, self.position), q)


def map_to_odom(base_in_map: Transform, base_in_odom: Transform) -> Transform:
    """Return the pose of odom in the map, from a base that is known in both."""
    return base_in_map.then(base_in_odom.inverse)


def moved(pose: Pose, camera: Transform, map_camera: Transform) -> Pose:
    """Return the base's pose if `camera` now sees what `map_camera` saw when the base was at `pose`.

    camera, map_camera: their poses in the base. A pose without orientation stays as it is: the direction of the
    difference is unknown.
    """
    if pose.q is None:
        return pose
    base = Transform.of((pose.x, pose.y, pose.z), pose.q).then(map_camera).then(camera.inverse)
    x, y, z = map(float, base.position)
    return Pose(x, y, z, base.q, pose.frame)
