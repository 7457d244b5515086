"""Draw charts as inline SVG: two axes with ticks and a grid, with lines, areas and marks inside.

A mark shows its value while the mouse is over it, and after a tap. No script is needed: the style of the pages shows
the value of a mark that is hovered or has the focus.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from string import Template

# Pixels between the edges of a chart and its axes.
LEFT, RIGHT, TOP, BOTTOM = 84, 20, 12, 48

CHART = Template("""<svg viewBox="0 0 $width $height" role="img" aria-label="$label">
$grid
$shapes
<text x="$x" y="$bottom" text-anchor="middle">$across</text>
<text x="18" y="$y" text-anchor="middle" transform="rotate(-90 18 $y)">$up</text>
</svg>""")


@dataclass(frozen=True)
class Axis:
    """An axis of a chart.

    title: shown beside the axis. low, high: the values at its ends. step: between ticks.
    percent: show the ticks, which are shares, as percent.
    """

    title: str
    low: float
    high: float
    step: float
    percent: bool = False

    @staticmethod
    def from_zero(title: str, high: float, parts: int, percent: bool = False) -> Axis:
        """Return an axis from 0 to `high` (above 0) that ticks divide into at most `parts` parts."""
        return Axis(title, 0.0, high, nice_step(high, parts), percent)

    def share(self, value: float) -> float:
        """Return the position of a value: 0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return the multiples of the step between both ends."""
        first, last = math.ceil(self.low / self.step), math.floor(self.high / self.step * (1 + 1e-9))
        return [round(i * self.step, 9) for i in range(first, last + 1)]  # 0.3, not 0.30000000000000004

    def format(self, value: float) -> str:
        """Return the text at a tick."""
        return f"{100 * value:.10g} %" if self.percent else f"{value:.10g}"


@dataclass(frozen=True)
class Chart:
    """A chart of two axes. label: for readers who do not see it. width, height: pixels, margins included."""

    label: str
    across: Axis
    up: Axis
    width: float = 640.0
    height: float = 300.0

    def x(self, value: float) -> float:
        """Return the pixel column of a value of the horizontal axis."""
        return round(LEFT + self.across.share(value) * (self.width - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Return the pixel row of a value of the vertical axis."""
        return round(self.height - BOTTOM - self.up.share(value) * (self.height - TOP - BOTTOM), 1)

    def points(self, points: Iterable[tuple[float, float]]) -> str:
        """Return pairs of values as the `points` of a line or an area; a point equal to the last one is left out."""
        pixels = [(self.x(across), self.y(up)) for across, up in points]
        return " ".join(f"{x},{y}" for i, (x, y) in enumerate(pixels) if i == 0 or (x, y) != pixels[i - 1])

    def line(self, kind: str, points: Iterable[tuple[float, float]]) -> str:
        """Return a line through the points. kind: its CSS class."""
        return f'<polyline class="{kind}" points="{self.points(points)}"/>'

    def dot(self, kind: str, across: float, up: float, value: str) -> str:
        """Return a dot that shows its value. kind: its CSS class."""
        shape = f'<circle class="{kind}" cx="{self.x(across)}" cy="{self.y(up)}" r="2"/>'
        return with_value(shape, value, self.width)

    def bar(self, kind: str, low: float, high: float, bottom: float, top: float, value: str) -> str:
        """Return the rectangle between two values of each axis, which shows its value. kind: its CSS class."""
        return with_value(self.area(kind, [(low, bottom), (low, top), (high, top), (high, bottom)]), value, self.width)

    def area(self, kind: str, outline: Iterable[tuple[float, float]]) -> str:
        """Return the area inside an outline. kind: its CSS class."""
        return f'<polygon class="{kind}" points="{self.points(outline)}"/>'

    def level(self, kind: str, value: float) -> str:
        """Return a horizontal line at a value. kind: its CSS class."""
        return f'<line class="{kind}" x1="{LEFT}" y1="{self.y(value)}" x2="{self.width - RIGHT}" y2="{self.y(value)}"/>'

    def upright(self, kind: str, value: float) -> str:
        """Return a vertical line at a value. kind: its CSS class."""
        return (
            f'<line class="{kind}" x1="{self.x(value)}" y1="{TOP}" x2="{self.x(value)}" y2="{self.height - BOTTOM}"/>'
        )

    def svg(self, shapes: Iterable[str]) -> str:
        """Return the chart with the shapes in it."""
        grid = []
        for value in self.up.ticks():
            grid.append(self.level("grid", value))
            grid.append(_text(LEFT - 6, self.y(value) + 4, "end", self.up.format(value)))
        for number, value in enumerate(self.across.ticks()):
            grid.append(self.upright("grid", value))
            text = self.across.format(value)
            grid.append(_text(self.x(value), self.height - BOTTOM + 20, "middle", text, odd=bool(number % 2)))
        return CHART.substitute(
            width=f"{self.width:g}",
            height=f"{self.height:.0f}",
            label=escape(self.label),
            grid="\n".join(grid),
            shapes="\n".join(shapes),
            x=f"{(LEFT + self.width - RIGHT) / 2:g}",
            bottom=f"{self.height - 4:.0f}",
            y=f"{(TOP + self.height - BOTTOM) / 2:.0f}",
            across=escape(self.across.title),
            up=escape(self.up.title),
        )


def nice_step(span: float, parts: int) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that divides `span` (above 0) into at most `parts` parts."""
    power = 10.0 ** math.floor(math.log10(span / parts))
    return next(power * factor for factor in (1, 2, 5, 10) if span <= power * factor * parts * (1 + 1e-9))


def with_value(shape: str, value: str, width: float) -> str:
    """Return a shape that shows its value above the chart while it is hovered or has the focus.

    value: plain text. width: pixels of the chart.
    """
    return (
        f'<g class="mark" tabindex="-1">{shape}<foreignObject x="{LEFT}" y="0" width="{width - LEFT - RIGHT:g}" '
        f'height="150"><p>{escape(value)}</p></foreignObject></g>'
    )


def _text(x: float, y: float, anchor: str, text: str, odd: bool = False) -> str:
    """Return a text. odd: one that narrow screens leave out."""
    kind = ' class="odd"' if odd else ""
    return f'<text{kind} x="{x}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
