"""Covariances of accepted answers, compared with plain computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("rosbags", reason="its helper reads message definitions with the extra pairvpr[bags]")

from pairvpr.runtime import Gps, Match, Pose, Recognition
from pairvpr.runtime.geometry import rotations
from pairvpr.runtime.geometry.rotations import Quaternion
from pairvpr.runtime.outputs.covariance import (
    UNKNOWN_ROTATION,
    Floor,
    gps_covariance,
    pose_covariance,
    promised_deviation,
)
from tests.runtime.outputs.ros_contract import acceptance


def yaw(degrees: float) -> Quaternion:
    return 0.0, 0.0, math.sin(math.radians(degrees) / 2), math.cos(math.radians(degrees) / 2)


def answer(*candidates: tuple[Pose | Gps | None, float, str]) -> Recognition:
    matches = tuple(Match(f"m{i}", score, 0.5, stage, pose) for i, (pose, score, stage) in enumerate(candidates))
    return Recognition(
        "q", matches=matches, accepted=True, complete=True, acceptance=acceptance(), compared=len(matches)
    )


@pytest.mark.parametrize("precision", [0.5, 0.9, 0.99])
def test_the_promised_share_lies_within_the_radius(precision: float) -> None:
    deviation = promised_deviation(acceptance(radius=25, precision=precision))
    assert stats.rayleigh.cdf(25, scale=deviation) == pytest.approx(precision)


def test_one_candidate_has_the_floor() -> None:
    alone = answer((Pose(1, 2, 3, yaw(40)), 3.0, "full"))
    s = 5 / math.sqrt(-2 * math.log(0.05))
    assert np.allclose(pose_covariance(alone, Floor()), np.diag([s**2] * 3 + [0.35**2] * 3))
    assert np.allclose(pose_covariance(alone, Floor(0.5, 0.1)), np.diag([0.25] * 3 + [0.01] * 3))


def test_accepted_candidates_widen_the_covariance() -> None:
    spread = answer(
        (Pose(10, 0, 0, yaw(170)), 9.0, "full"),
        (Pose(14, 2, 0, yaw(-170)), 4.0, "full"),  # 20 degrees on, across the half turn
        (Pose(10, 0, 0, tuple(-value for value in yaw(170))), 2.0, "full"),  # the same as the first
        (Pose(90, 0, 0, yaw(0)), 1.9, "full"),  # not accepted
        (Pose(90, 0, 0, yaw(0)), 5.0, "prefix"),  # predicted
        (Pose(90, 0, 0, yaw(0), "odom"), 5.0, "full"),  # elsewhere
        (Pose(90, 0, 0), 5.0, "full"),  # of unknown orientation
        (Gps(1, 2), 5.0, "full"),
        (None, 5.0, "full"),
    )
    e = np.array([4, 2, 0, 0, 0, math.radians(20)])
    expected = np.outer(e, e) / 3 + np.diag([0.25] * 3 + [0.01] * 3)
    found = pose_covariance(spread, Floor(0.5, 0.1))
    assert np.allclose(found, expected)
    assert np.all(np.linalg.eigvalsh(found) >= 0.01 - 1e-12)


def test_rotations_are_about_the_axes_of_the_frame() -> None:
    """A robot that looks up turns about the z axis of the frame, not of its camera."""
    up = (0.0, -math.sin(math.pi / 4), 0.0, math.cos(math.pi / 4))
    turned = rotations.multiply(yaw(10), up)
    found = pose_covariance(
        answer((Pose(0, 0, 0, up), 9.0, "full"), (Pose(0, 0, 0, turned), 9.0, "full")), Floor(1, 0.0)
    )
    assert found[5, 5] == pytest.approx(math.radians(10) ** 2 / 2)
    assert np.allclose(found[3:5, 3:5], 0)


def test_an_unknown_orientation_has_the_variance_of_any_angle() -> None:
    found = pose_covariance(answer((Pose(0, 0, 0), 9.0, "full"), (Pose(2, 0, 0), 9.0, "full")), Floor(1.0))
    assert np.allclose(found, np.diag([3, 1, 1] + [UNKNOWN_ROTATION] * 3))


def test_gps_positions_spread_in_metres() -> None:
    spread = answer(
        (Gps(60, 179.9999, 10), 9.0, "full"), (Gps(60.0001, -179.9999, None), 9.0, "full"), (None, 9.0, "full")
    )
    east, north = 0.0002 * 111_195 * 0.5, 0.0001 * 111_195
    e = np.array([east, north, 0])
    assert np.allclose(gps_covariance(spread, Floor(1.0)), np.outer(e, e) / 2 + np.eye(3), rtol=1e-3)


def test_answers_that_were_not_accepted_have_no_covariance() -> None:
    for refused in (Recognition("q"), Recognition("q", accepted=False, acceptance=acceptance())):
        placed = Recognition(
            refused.query, matches=(Match("m", 1.0, 0.5, "full", Pose(0, 0, 0)),), accepted=refused.accepted
        )
        with pytest.raises(ValueError, match="q: not accepted"):
            pose_covariance(placed, Floor())
    with pytest.raises(ValueError, match="no metric pose"):
        pose_covariance(answer((Gps(1, 2), 9.0, "full")), Floor())
    with pytest.raises(ValueError, match="no GPS position"):
        gps_covariance(answer((Pose(1, 2, 3), 9.0, "full")), Floor())


def test_rotations() -> None:
    x = np.array([1.0, 0, 0])
    assert np.allclose(rotations.rotate(yaw(90), x), [0, 1, 0])
    assert np.allclose(rotations.rotate(rotations.multiply(yaw(30), yaw(40)), x), rotations.rotate(yaw(70), x))
    assert np.allclose(rotations.rotate(rotations.multiply(yaw(30), rotations.inverse(yaw(30))), x), x)
    assert np.allclose(rotations.rotation_vector(yaw(-120)), [0, 0, -math.radians(120)])
    assert np.allclose(rotations.rotation_vector(rotations.IDENTITY), 0)
