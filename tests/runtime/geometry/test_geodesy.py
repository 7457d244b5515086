"""Distances on the earth and in metric frames."""

from __future__ import annotations

import math

import pytest

from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.geometry.poses import Gps, Pose


def test_poses_lie_apart_in_a_straight_line() -> None:
    assert distance_between(Pose(0, 0, 0), Pose(1, 2, 2)) == 3


def test_gps_positions_lie_apart_along_a_great_circle() -> None:
    # A degree of latitude, and one of longitude at 60 degrees north, on a sphere of 6371.0088 km.
    assert distance_between(Gps(10, 5), Gps(11, 5)) == pytest.approx(111_195, abs=1)
    assert distance_between(Gps(60, 179.5), Gps(60, -179.5)) == pytest.approx(55_597, abs=5)
    assert distance_between(Gps(47.0, 8.0), Gps(47.00009, 8.0)) == pytest.approx(10.0, abs=0.01)


def test_positions_in_different_frames_are_infinitely_far_apart() -> None:
    assert distance_between(Pose(0, 0, 0), Gps(0, 0)) == math.inf
    assert distance_between(Pose(0, 0, 0), Pose(0, 0, 0, frame="utm")) == math.inf
