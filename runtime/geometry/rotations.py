"""Calculate with rotations as unit quaternions (x, y, z, w), in the order of ROS."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Quaternion = tuple[float, float, float, float]
IDENTITY: Quaternion = (0.0, 0.0, 0.0, 1.0)


def normalize(q: Quaternion) -> Quaternion | None:
    """Return the unit quaternion in the direction of `q`, None if `q` is zero or not a number."""
    norm = math.hypot(*q)
    if not norm > 1e-9:
        return None
    x, y, z, w = (value / norm for value in q)
    return x, y, z, w


def multiply(first: Quaternion, second: Quaternion) -> Quaternion:
    """Return the rotation by `second` followed by `first`, both about fixed axes."""
    ax, ay, az, aw = first
    bx, by, bz, bw = second
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def inverse(q: Quaternion) -> Quaternion:
    """Return the inverse rotation."""
    x, y, z, w = q
    return -x, -y, -z, w


def rotate(q: Quaternion, point: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the point (3,) rotated about the origin."""
    axis, w = np.asarray(q[:3]), q[3]
    across = 2 * np.cross(axis, point)
    return point + w * across + np.cross(axis, across)


def rotation_vector(q: Quaternion) -> npt.NDArray[np.float64]:
    """Return the rotation vector (3,): the axis, with the angle in radians (at most pi) as its length."""
    x, y, z, w = q if q[3] >= 0 else (-q[0], -q[1], -q[2], -q[3])
    sine = math.hypot(x, y, z)
    scale = 2.0 if sine < 1e-12 else 2 * math.atan2(sine, w) / sine
    return scale * np.array([x, y, z])


def angles_between(orientations: npt.NDArray[np.float64], q: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the angle (n,), 0 to pi radians, of the rotation from each of some orientations (n, 4) to `q` (4,).

    The angles do not depend on which axes the body has. An orientation that is not a number has no angle, NaN.
    """
    other = np.asarray(q, np.float64)
    with np.errstate(invalid="ignore"):  # 0 / 0
        cosines = np.abs(orientations @ other) / (np.linalg.norm(orientations, axis=1) * np.linalg.norm(other))
    angles: npt.NDArray[np.float64] = 2 * np.arccos(cosines.clip(max=1.0))
    return angles
