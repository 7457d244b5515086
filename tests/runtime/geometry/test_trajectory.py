"""Poses between poses, checked against a turn and a drive whose every moment is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pairvpr.runtime.geometry.poses import UNKNOWN
from pairvpr.runtime.geometry.trajectory import MAX_GPS_GAP, MAX_POSE_GAP, Trajectory, slerp


def turned(degrees: float) -> tuple[float, float, float, float]:
    """A rotation about z."""
    half = math.radians(degrees) / 2
    return (0, 0, math.sin(half), math.cos(half))


def test_a_steady_turn_is_met_at_every_moment() -> None:
    times = [0.0, 0.3, 0.4, 0.8]
    rows = [(10 * t, -2 * t, 1, *turned(300 * t)) for t in times]
    rows[2] = (*rows[2][:3], *(-value for value in rows[2][3:]))  # the same rotation
    trajectory = Trajectory(times[::-1], rows[::-1], "odom")
    for t in np.linspace(0, 0.8, 23):
        pose = trajectory.at(float(t)).pose
        assert pose is not None
        assert (pose.x, pose.y, pose.z, pose.frame) == (pytest.approx(10 * t), pytest.approx(-2 * t), 1, "odom")
        assert abs(np.dot(pose.q, turned(300 * t))) == pytest.approx(1, abs=1e-9)
        assert math.hypot(*pose.q) == pytest.approx(1)


def test_slerp_of_nearly_the_same_rotation() -> None:
    first, second = np.array(turned(10)), np.array(turned(10 + 1e-9))
    assert slerp(first, second, 0.5) == pytest.approx(first)


def test_nothing_is_made_up_outside_and_in_gaps() -> None:
    pose = (1, 2, 3, 0, 0, 0, 1)
    trajectory = Trajectory([0.8, 0.9, 1.0, 2.0, 2.0 + MAX_POSE_GAP], [pose] * 5, "map")
    assert [trajectory.at(t) is UNKNOWN for t in (0.79, 1.0, 1.01, 1.99, 2.0, 2.4, 2.5, 2.51)] == [
        True, False, True, True, False, False, False, True,
    ]  # fmt: skip
    assert Trajectory([], [], "map").at(0) is UNKNOWN


def test_slow_poses_may_be_further_apart() -> None:
    times = [0, 1, 2, 4.5, 7.1]  # one is missing, then more
    trajectory = Trajectory(times, [(10 * t, 0, 0, *[math.nan] * 4) for t in times], "map")
    assert [trajectory.at(t).pose.x for t in (0.5, 1.25, 3.5)] == pytest.approx([5, 12.5, 35])
    assert trajectory.at(0.5).pose.q is None
    assert trajectory.at(5) is UNKNOWN


def test_gps_goes_the_short_way_round() -> None:
    trajectory = Trajectory([0, 2, 2 + MAX_GPS_GAP], [(10, 179.9, 5), (12, -179.9, 7), (12, -179.9, math.nan)], None)
    gps = trajectory.at(0.5).gps
    assert gps is not None
    assert (gps.latitude, gps.longitude, gps.altitude) == pytest.approx((10.5, 179.95, 5.5))
    assert trajectory.at(1.5).gps.longitude == pytest.approx(-179.95)
    assert trajectory.at(3).gps.altitude is None
