"""How sure an accepted place is, as a covariance: what its calibration promises, and how far candidates lie apart."""

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
"""Variance of an angle that may be any: evenly spread from -pi to pi."""
METRES_PER_DEGREE = EARTH_RADIUS * math.pi / 180  # of latitude


@dataclass(frozen=True)
class Floor:
    """Standard deviations that are claimed where all accepted candidates agree; never less.

    position: metres; None: as the calibration promises it (`promised`). rotation: radians. No calibration says anything
    of it: pictures of one place overlap, so it is a part of a camera's field of view.
    """

    position: float | None = None
    rotation: float = 0.35


def promised(acceptance: Acceptance) -> float:
    """Metres: the standard deviation with which a normal distribution keeps the promise of a calibration.

    It says that a share `precision` of accepted answers lies within `radius`; of a normal distribution in the plane,
    1 - exp(-radius^2 / 2 s^2) does.
    """
    return acceptance.radius / math.sqrt(-2 * math.log(1 - acceptance.precision))


def pose_covariance(answer: Recognition, floor: Floor) -> Covariance:
    """The covariance (6, 6) of an accepted answer's pose: x, y, z in metres, then turns about these axes in radians.

    The mean square of how far the accepted candidates in the same frame are from the best, and the floor on top. Turns
    are as good as unknown where the best match's orientation is. Raises ValueError for an answer that is not accepted
    or whose best match has no metric pose.
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
    """The covariance (3, 3) of an accepted answer's GPS position: east, north and up, in square metres.

    As `pose_covariance`. Raises ValueError for an answer that is not accepted or whose best match has no GPS position.
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
    """The candidates that would have been accepted as the best match, it among them."""
    acceptance = answer.acceptance
    if acceptance is None or not answer.accepted:
        raise ValueError(f"{answer.query}: not accepted, so nothing is known of how far it is off")
    return [
        match
        for match in answer.matches
        if match.stage == "full" and match.score is not None and match.score >= acceptance.threshold
    ]


def _variance(answer: Recognition, floor: Floor) -> float:
    """Of a position, in square metres, where all agree."""
    if floor.position is not None:
        return floor.position**2
    if answer.acceptance is None:
        raise ValueError(f"{answer.query}: not accepted, so nothing is known of how far it is off")
    return promised(answer.acceptance) ** 2


def _mean_square(offsets: Sequence[npt.NDArray[np.float64]]) -> Covariance:
    rows = np.stack(offsets)
    return rows.T @ rows / len(rows)
