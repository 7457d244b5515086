"""Places on a plot: where they should be, whatever their frame."""

from __future__ import annotations

import re

import pytest

from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.viewing.plot import Mark, plots


def drawn(marks: list[Mark]) -> list[tuple[float, float]]:
    circles = re.findall(r'<circle class="k" cx="([-\d.]+)" cy="([-\d.]+)"', plots(marks))
    return [(float(x), float(y)) for x, y in circles]


def test_both_axes_have_one_scale_and_up_is_up() -> None:
    (x0, y0), (x1, y1), (x2, y2) = drawn([Mark(Pose(x, y, 3.0), "k", "") for x, y in ((0, 0), (10, 0), (0, 5))])
    assert (y0, x0) == (y1, x2)
    assert x1 - x0 == pytest.approx(2 * (y0 - y2), abs=0.2)
    assert x1 > x0
    assert y2 < y0


def test_a_camera_that_looks_along_z_is_seen_from_above() -> None:
    html = plots([Mark(Pose(x, 0.1 * x, 5.0 * x), "k", "") for x in range(3)])
    assert "Seen along y" in html
    assert ">x, m<" in html
    assert ">z, m<" in html


def test_degrees_become_metres_also_across_the_date_line() -> None:
    marks = [Mark(Gps(60.0, 179.999), "k", ""), Mark(Gps(60.0, -179.999), "k", ""), Mark(Gps(60.001, 180.0), "k", "")]
    (x0, y0), (x1, _), (x2, y2) = drawn(marks)
    # 0.002 degrees of longitude at 60 degrees are as far as 0.001 of latitude.
    assert x1 - x0 == pytest.approx(y0 - y2, rel=0.01)
    assert x2 == pytest.approx((x0 + x1) / 2, abs=0.2)


def test_one_place_alone_and_lines_within_a_frame_only() -> None:
    assert len(drawn([Mark(Pose(1e6, 1e6, 0), "k", "a")])) == 1
    assert "<path" in plots([Mark(Pose(0, 0, 0), "k", "", origin=Pose(1, 1, 0))])
    assert "<path" not in plots([Mark(Pose(0, 0, 0), "k", "", origin=Gps(1, 1))])
    assert plots([]) == ""
