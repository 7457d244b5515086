"""Covariance of an accepted place, from its calibration and the distances between accepted candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.answer import Match, Recognition
from pairvpr.runtime.calibrated.acceptance import Acceptance
from pairvpr.runtime.geometry import rotations
from pairvpr.runtime.geometry.geodesy import EARTH_RADIUS
from pairvpr.runtime.geometry.poses import Gps, Pose

Covariance = npt.NDArray[np.float64]

UNKNOWN_ROTATION = math.pi**2 / 3
"""Variance of an unknown angle, uniform from -pi to pi."""
METRES_PER_DEGREE = EARTH_RADIUS * math.pi / 180  # of latitude


@dataclass(frozen=True)
class Floor:
    """Least standard deviations, which hold if all accepted candidates agree.

    position: metres. None takes the deviation that the calibration promises, see `promised_deviation`.
    rotation: radians. No calibration covers it. Pictures of one place overlap, so the default is a part of a camera's
    field of view.
    """

    position: float | None = None
    rotation: float = 0.35


def promised_deviation(acceptance: Acceptance) -> float:
    """Return the standard deviation, in metres, of a normal distribution that keeps a calibration's promise.

    The calibration promises that a share `precision` of accepted answers lies within `radius`. Of a normal distribution
    in the plane with deviation s, a share of 1 - exp(-radius^2 / (2 s^2)) does (the Rayleigh distribution).
    """
    return acceptance.radius / math.sqrt(-2 * math.log(1 - acceptance.precision))


def pose_covariance(answer: Recognition, floor: Floor) -> Covariance:
    """Return the covariance (6, 6) of an accepted answer's pose: x, y, z in metres, rotation about x, y, z in radians.

    It is the mean square of the offsets of accepted candidates, in the frame of the best match, from the best match.
    The floor is added. The rotation is unknown (UNKNOWN_ROTATION) if the best match has no orientation.
    Raises ValueError for an answer that is not accepted or whose best match has no metric pose.
    """
    best, variance = answer.best.pose, _variance(answer, floor)
    if not isinstance(best, Pose):
        raise ValueError(f"{answer.query}: its best match has no metric pose")
    offsets = []
    for match in _accepted(answer):
        pose = match.pose
        if isinstance(pose, Pose) and pose.frame == best.frame and (pose.q is None) == (best.q is None):
            turned = rotations.multiply(pose.q or rotations.IDENTITY, rotations.inverse(best.q or rotations.IDENTITY))
            moved = (pose.x - best.x, pose.y - best.y, pose.z - best.z)
            offsets.append(np.concatenate([moved, rotations.rotation_vector(turned)]))
    turn = UNKNOWN_ROTATION if best.q is None else floor.rotation**2
    return _mean_square(offsets) + np.diag([variance] * 3 + [turn] * 3)


def gps_covariance(answer: Recognition, floor: Floor) -> Covariance:
    """Return the covariance (3, 3) of an accepted answer's GPS position: east, north and up, in square metres.

    It is computed as in `pose_covariance`.
    Raises ValueError for an answer that is not accepted or whose best match has no GPS position.
    """
    best, variance = answer.best.pose, _variance(answer, floor)
    if not isinstance(best, Gps):
        raise ValueError(f"{answer.query}: its best match has no GPS position")
    offsets = []
    for match in _accepted(answer):
        at = match.pose
        if isinstance(at, Gps):
            east = ((at.longitude - best.longitude + 180) % 360 - 180) * math.cos(math.radians(best.latitude))
            north = at.latitude - best.latitude
            up = 0.0 if at.altitude is None or best.altitude is None else at.altitude - best.altitude
            offsets.append(np.array([east * METRES_PER_DEGREE, north * METRES_PER_DEGREE, up]))
    return _mean_square(offsets) + np.diag([variance] * 3)


def _accepted(answer: Recognition) -> list[Match]:
    """Return the candidates that would have been accepted, the best match included."""
    acceptance = answer.acceptance
    if acceptance is None or not answer.accepted:
        raise ValueError(f"{answer.query}: not accepted, so its error is unknown")
    return [match for match in answer.matches if acceptance.accepts(match)]


def _variance(answer: Recognition, floor: Floor) -> float:
    """Return the variance of a position, in square metres, if all candidates agree."""
    if floor.position is not None:
        return floor.position**2
    if answer.acceptance is None:
        raise ValueError(f"{answer.query}: not accepted, so its error is unknown")
    return promised_deviation(answer.acceptance) ** 2


def _mean_square(offsets: Sequence[npt.NDArray[np.float64]]) -> Covariance:
    rows = np.stack(offsets)
    mean: Covariance = rows.T @ rows / len(rows)
    return mean
