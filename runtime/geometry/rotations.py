"""Rotations as unit quaternions (x, y, z, w), as ROS orders them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Quaternion = tuple[float, float, float, float]
NONE: Quaternion = (0.0, 0.0, 0.0, 1.0)
"""No rotation."""


def multiply(first: Quaternion, second: Quaternion) -> Quaternion:
    """The rotation `second` and after it, in the same fixed axes, `first`."""
    ax, ay, az, aw = first
    bx, by, bz, bw = second
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def inverse(q: Quaternion) -> Quaternion:
    """The rotation that undoes it."""
    x, y, z, w = q
    return -x, -y, -z, w


def rotate(q: Quaternion, point: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The point (3,) turned about the origin."""
    axis, w = np.asarray(q[:3]), q[3]
    across = 2 * np.cross(axis, point)
    return point + w * across + np.cross(axis, across)


def vector(q: Quaternion) -> npt.NDArray[np.float64]:
    """Its axis (3,), as long as its angle: radians, at most pi."""
    x, y, z, w = q if q[3] >= 0 else (-q[0], -q[1], -q[2], -q[3])
    sine = math.hypot(x, y, z)
    scale = 2.0 if sine < 1e-12 else 2 * math.atan2(sine, w) / sine
    return scale * np.array([x, y, z])
