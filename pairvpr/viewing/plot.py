"""Places seen from above, as inline SVG: a plot for each frame they are in, both axes at the same scale."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.geometry.geodesy import EARTH_RADIUS
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.viewing.template import PLOT

# The plot's frame in its own units.
LEFT, TOP, WIDTH, HEIGHT = 70.0, 10.0, 990.0, 600.0
MIN_HEIGHT = 160.0


@dataclass(frozen=True)
class Mark:
    """A place on a plot.

    kind: its CSS class. label: what is shown while the mouse is over it. number: shown in it, and a link to `#p` and
    this number. origin: a place a line is drawn from, where it is in the same frame.
    """

    place: Pose | Gps
    kind: str
    label: str
    number: int | None = None
    origin: Pose | Gps | None = None


def plots(marks: Sequence[Mark]) -> str:
    """The plots of all frames as HTML, the frame of most marks first; later marks lie above earlier ones."""
    by_frame: dict[str, list[Mark]] = defaultdict(list)
    for mark in marks:
        by_frame[frame_of(mark.place)].append(mark)
    return "\n".join(_plot(frame, by_frame[frame]) for frame in sorted(by_frame, key=lambda f: -len(by_frame[f])))


def frame_of(place: Pose | Gps) -> str:
    """The name of the frame a place is in."""
    return "wgs84" if isinstance(place, Gps) else place.frame


def _plot(frame: str, marks: list[Mark]) -> str:
    lines = [i for i, mark in enumerate(marks) if mark.origin is not None and frame_of(mark.origin) == frame]
    origins = [origin for i in lines if (origin := marks[i].origin) is not None]
    points, axes, note = _flat(frame, [*(mark.place for mark in marks), *origins])
    low, span = points.min(axis=0), np.maximum(np.ptp(points, axis=0), 1.0)
    scale = min(WIDTH / span[0], HEIGHT / span[1]) * 0.96
    height = max(span[1] * scale / 0.96, MIN_HEIGHT)
    middle = low + np.ptp(points, axis=0) / 2
    centre = np.array([LEFT + WIDTH / 2, TOP + height / 2])
    drawn = centre + (points - middle) * scale * [1, -1]

    paths: dict[str, list[str]] = defaultdict(list)
    for row, (x, y) in zip(lines, drawn[len(marks) :], strict=True):
        paths[marks[row].kind].append(f"M{x:.1f} {y:.1f}L{drawn[row, 0]:.1f} {drawn[row, 1]:.1f}")
    shapes = [f'<path class="{kind}" d="{"".join(parts)}"/>' for kind, parts in paths.items()]
    shapes += [_shape(mark, x, y) for mark, (x, y) in zip(marks, drawn, strict=False)]
    return PLOT.substitute(
        frame=escape(frame),
        note=note,
        height=f"{TOP + height + 40:.0f}",
        grid="\n".join(_grid(middle, scale, centre, height)),
        shapes="\n".join(shapes),
        x=f"{LEFT + WIDTH / 2:.0f}",
        bottom=f"{TOP + height + 36:.0f}",
        y=f"{TOP + height / 2:.0f}",
        across=axes[0],
        up=axes[1],
    )


def _flat(frame: str, places: Sequence[Pose | Gps]) -> tuple[npt.NDArray[np.float64], tuple[str, str], str]:
    """The places in two coordinates (n, 2) in metres, what the axes show, and which view it is."""
    if frame == "wgs84":
        degrees = np.array([(p.longitude, p.latitude) for p in places if isinstance(p, Gps)])
        degrees[:, 0] = degrees[0, 0] + (degrees[:, 0] - degrees[0, 0] + 180) % 360 - 180  # across the date line
        middle = (degrees.min(axis=0) + degrees.max(axis=0)) / 2
        metres = np.radians(degrees - middle) * EARTH_RADIUS * [math.cos(math.radians(middle[1])), 1]
        note = f"GPS positions, in metres from latitude {middle[1]:.6f}, longitude {(middle[0] + 180) % 360 - 180:.6f}"
        return metres, ("east, m", "north, m"), note
    points = np.array([(p.x, p.y, p.z) for p in places if isinstance(p, Pose)])
    spread = np.ptp(points, axis=0)
    hidden = 2 - int(np.argmin(spread[::-1]))  # z of equals
    shown = [axis for axis in range(3) if axis != hidden]
    names = "xyz"
    note = f"Seen along {names[hidden]}, the axis along which the places spread least"
    return points[:, shown], (f"{names[shown[0]]}, m", f"{names[shown[1]]}, m"), note


def _shape(mark: Mark, x: float, y: float) -> str:
    title = f"<title>{escape(mark.label)}</title>"
    if mark.number is None:
        return f'<circle class="{mark.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3">{title}</circle>'
    return (
        f'<a href="#p{mark.number}"><circle class="{mark.kind}" cx="{x:.1f}" cy="{y:.1f}" r="8">{title}</circle>'
        f'<text class="number" x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="middle">{mark.number}</text></a>'
    )


def _grid(middle: npt.NDArray[np.float64], scale: float, centre: npt.NDArray[np.float64], height: float) -> list[str]:
    half = np.array([WIDTH, height]) / 2 / scale
    step = nice_step(2 * float(half.max()), 10)
    lines = []
    for value in _multiples(middle[0] - half[0], middle[0] + half[0], step):
        x = centre[0] + (value - middle[0]) * scale
        lines.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{TOP + height:.1f}"/>')
        lines.append(f'<text x="{x:.1f}" y="{TOP + height + 17:.1f}" text-anchor="middle">{value:.10g}</text>')
    for value in _multiples(middle[1] - half[1], middle[1] + half[1], step):
        y = centre[1] - (value - middle[1]) * scale
        lines.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + WIDTH}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.10g}</text>')
    return lines


def nice_step(span: float, parts: int) -> float:
    """A step of 1, 2 or 5 times a power of ten, with which `span` (above 0) has at most `parts` parts."""
    power = 10.0 ** math.floor(math.log10(span / parts))
    return next(power * factor for factor in (1, 2, 5, 10) if span <= power * factor * parts * (1 + 1e-9))


def _multiples(low: float, high: float, step: float) -> list[float]:
    # The step is rounded into each, so that 0.30000000000000004 is not shown.
    return [round(i * step, 9) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
