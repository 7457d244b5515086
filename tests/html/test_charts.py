"""Charts: ticks, positions and marks."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from pairvpr.html.charts import BOTTOM, LEFT, RIGHT, TOP, Axis, Chart, nice_step
from pairvpr.html.document import STYLE


@pytest.mark.parametrize(("span", "step"), [(1, 0.1), (10, 1), (11, 2), (49, 5), (51, 10), (0.3, 0.05), (1e5, 1e4)])
def test_steps_are_nice(span: float, step: float) -> None:
    assert nice_step(span, 10) == pytest.approx(step)


def test_ticks_are_multiples_of_the_step_between_the_ends() -> None:
    assert Axis("", -0.25, 0.35, 0.1).ticks() == [-0.2, -0.1, 0.0, 0.1, 0.2, 0.3]
    assert Axis.from_zero("", 0.3, 3).ticks() == [0.0, 0.1, 0.2, 0.3]
    assert Axis("", 7.0, 8.0, 5.0).ticks() == []


def test_ticks_of_shares_are_percent() -> None:
    axis = Axis("", 0.0, 1.0, 0.2, percent=True)
    assert [axis.format(value) for value in axis.ticks()] == ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]


def test_dots_and_bars_lie_at_their_values() -> None:
    chart = Chart("label", Axis("across", 0, 10, 5), Axis("up", 0, 4, 1))
    dot = ET.fromstring(chart.dot("right", 10, 4, "10 & 4"))
    assert dot[0].attrib == {"class": "right", "cx": "620.0", "cy": "12.0", "r": "2"}
    bar = ET.fromstring(chart.bar("bar wrong", 0, 10, 0, 4, "all of <it>"))
    assert bar[0].attrib == {"class": "bar wrong", "points": "84.0,252.0 84.0,12.0 620.0,12.0 620.0,252.0"}


def test_marks_show_their_value_when_tapped() -> None:
    """A mark takes the focus, and the style shows its value then; narrow screens leave out every second tick."""
    chart = Chart("label", Axis("across", 0, 10, 5), Axis("up", 0, 4, 1))
    mark = ET.fromstring(chart.dot("right", 10, 4, "10 & <4>"))
    assert (mark.attrib, mark[1][0].text) == ({"class": "mark", "tabindex": "-1"}, "10 & <4>")
    assert "svg .mark:is(:hover, :focus) foreignObject { display: block; }" in STYLE
    odd = [text.text for text in ET.fromstring(chart.svg([])).iter("text") if text.get("class") == "odd"]
    assert odd == ["5"]


def test_the_ends_of_the_axes_are_the_corners() -> None:
    chart = Chart("a < b", Axis.from_zero("x", 2.0, 4), Axis("y", -1.0, 1.0, 1.0), width=640.0, height=300.0)
    assert (chart.x(0.0), chart.y(-1.0)) == (LEFT, 300 - BOTTOM)
    assert (chart.x(2.0), chart.y(1.0)) == (640 - RIGHT, TOP)
    assert chart.points([(0.0, 1.0), (0.0, 1.0), (1.0, 0.0)]) == f"{LEFT}.0,{TOP}.0 352.0,132.0"
    svg = ET.fromstring(chart.svg([chart.line("k", [(0.0, 0.0), (2.0, 1.0)]), chart.level("l", 0.5)]))
    assert svg.attrib["aria-label"] == "a < b"
    assert [line.attrib["class"] for line in svg.iter("line")] == ["grid"] * 8 + ["l"]
    assert [text.text for text in svg.iter("text")] == ["-1", "0", "1", "0", "0.5", "1", "1.5", "2", "x", "y"]
