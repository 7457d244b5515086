"""Draw places seen from above: a plot for each coordinate frame, with both axes at the same scale."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from pairvpr.html.charts import BOTTOM, LEFT, RIGHT, TOP, Axis, Chart, nice_step, with_value
from pairvpr.runtime.geometry.geodesy import EARTH_RADIUS
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.viewing.template import PLOT

# Pixels of the plot between its axes.
WIDTH, HEIGHT, MIN_HEIGHT = 550.0, 360.0, 90.0
FILLED = 0.96  # of the plot by the places; the rest is a border


@dataclass(frozen=True)
class Mark:
    """A place on a plot.

    kind: its CSS class. label: shown while the mouse is over it, and after a tap. number: shown in it, with a link to
    `#p<number>`.
    origin: a place from which a line is drawn to this one, if both are in the same frame.
    """

    place: Pose | Gps
    kind: str
    label: str
    number: int | None = None
    origin: Pose | Gps | None = None


def plots(marks: Sequence[Mark]) -> str:
    """Return the plots of all frames as HTML, the frame of most marks first; later marks lie above earlier ones."""
    by_frame: dict[str, list[Mark]] = defaultdict(list)
    for mark in marks:
        by_frame[mark.place.frame].append(mark)
    return "\n".join(_plot(frame, by_frame[frame]) for frame in sorted(by_frame, key=lambda f: -len(by_frame[f])))


def _plot(frame: str, marks: list[Mark]) -> str:
    lines = [i for i, mark in enumerate(marks) if mark.origin is not None and mark.origin.frame == frame]
    origins = [origin for i in lines if (origin := marks[i].origin) is not None]
    points, axes, note = _project(frame, [*(mark.place for mark in marks), *origins])
    chart = _chart(frame, points, axes)
    drawn = [(chart.x(x), chart.y(y)) for x, y in points.tolist()]

    paths: dict[str, list[str]] = defaultdict(list)
    for row, (x, y) in zip(lines, drawn[len(marks) :], strict=True):
        paths[marks[row].kind].append(f"M{x} {y}L{drawn[row][0]} {drawn[row][1]}")
    shapes = [f'<path class="{kind}" d="{"".join(parts)}"/>' for kind, parts in paths.items()]
    shapes += [_shape(mark, x, y) for mark, (x, y) in zip(marks, drawn, strict=False)]
    return PLOT.substitute(frame=escape(frame), note=note, chart=chart.svg(shapes))


def _chart(frame: str, points: npt.NDArray[np.float64], titles: tuple[str, str]) -> Chart:
    """Return a chart with room for the points (n, 2), a metre as long across as up."""
    extent = np.ptp(points, axis=0)
    span = np.maximum(extent, 1.0)
    metre = min(WIDTH / span[0], HEIGHT / span[1]) * FILLED  # in pixels
    height = max(span[1] * metre / FILLED, MIN_HEIGHT)
    middle, half = points.min(axis=0) + extent / 2, np.array([WIDTH, height]) / 2 / metre
    step = nice_step(2 * float(half.max()), 10)
    across, up = (
        Axis(title, low, high, step)
        for title, low, high in zip(titles, (middle - half).tolist(), (middle + half).tolist(), strict=True)
    )
    return Chart(f"Places in frame {frame}", across, up, LEFT + WIDTH + RIGHT, TOP + height + BOTTOM)


def _project(frame: str, places: Sequence[Pose | Gps]) -> tuple[npt.NDArray[np.float64], tuple[str, str], str]:
    """Return the places in two coordinates (n, 2) in metres, the titles of the axes, and a note on the view."""
    if frame == "wgs84":
        degrees = np.array([(p.longitude, p.latitude) for p in places if isinstance(p, Gps)])
        degrees[:, 0] = degrees[0, 0] + (degrees[:, 0] - degrees[0, 0] + 180) % 360 - 180  # across the date line
        middle = (degrees.min(axis=0) + degrees.max(axis=0)) / 2
        metres = np.radians(degrees - middle) * EARTH_RADIUS * [math.cos(math.radians(middle[1])), 1]
        note = f"GPS positions, in metres from latitude {middle[1]:.6f}, longitude {(middle[0] + 180) % 360 - 180:.6f}"
        return metres, ("east, m", "north, m"), note
    points = np.array([(p.x, p.y, p.z) for p in places if isinstance(p, Pose)])
    extent = np.ptp(points, axis=0)
    hidden = 2 - int(np.argmin(extent[::-1]))  # z of equals
    shown = [axis for axis in range(3) if axis != hidden]
    names = "xyz"
    note = f"Seen along {names[hidden]}, the axis along which the places spread least"
    return points[:, shown], (f"{names[shown[0]]}, m", f"{names[shown[1]]}, m"), note


def _shape(mark: Mark, x: float, y: float) -> str:
    width = LEFT + WIDTH + RIGHT
    if mark.number is None:
        return with_value(f'<circle class="{mark.kind}" cx="{x}" cy="{y}" r="2"/>', mark.label, width)
    shape = (
        f'<a href="#p{mark.number}"><circle class="{mark.kind}" cx="{x}" cy="{y}" r="5"/>'
        f'<text class="number" x="{x}" y="{y + 2:.1f}" text-anchor="middle">{mark.number}</text></a>'
    )
    return with_value(shape, mark.label, width)
