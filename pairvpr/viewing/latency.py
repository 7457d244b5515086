"""How long answers took over time, in bounded memory: bins of equally many answers, merged when there are many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pairvpr.viewing.plot import nice_step
from pairvpr.viewing.template import CHART

BINS = 240  # at most; even
COLOURS = 8  # of the style, as classes s0 to s7

# The chart's frame in its own units.
LEFT, RIGHT, TOP, BOTTOM = 70.0, 1060.0, 12.0, 262.0


@dataclass
class Bin:
    """Answers one after the other. begun: seconds; sums: milliseconds of all by step; longest: of one in total."""

    begun: float
    count: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    longest: float = 0.0

    def take(self, count: int, sums: Mapping[str, float], longest: float) -> None:
        """Add so many answers to it."""
        self.count += count
        self.longest = max(self.longest, longest)
        for step, spent in sums.items():
            self.sums[step] = self.sums.get(step, 0.0) + spent


class Latency:
    """Answers' times as they come, exact in sum and maximum, ever coarser in time."""

    def __init__(self) -> None:
        self.bins: list[Bin] = []
        self._width = 1

    def add(self, seconds: float, timings: Mapping[str, float]) -> None:
        """Take an answer that came then, with its milliseconds by step, "total" among them."""
        if not self.bins or self.bins[-1].count == self._width:
            if len(self.bins) == BINS:
                self.bins = [_merged(*self.bins[i : i + 2]) for i in range(0, BINS, 2)]
                self._width *= 2
            self.bins.append(Bin(seconds))
        steps = {step: spent for step, spent in timings.items() if step != "total"}
        self.bins[-1].take(1, steps, timings.get("total", 0.0))

    @property
    def longest(self) -> float:
        """Milliseconds of the longest answer."""
        return max((each.longest for each in self.bins), default=0.0)

    @property
    def steps(self) -> list[str]:
        """The steps of answers, in order; each has the colour of its index."""
        return list(dict.fromkeys(step for each in self.bins for step in each.sums))

    def chart(self) -> str:
        """Mean milliseconds by step, stacked, and the longest answer above, as inline SVG; needs two bins."""
        span = max(self.bins[-1].begun - self.bins[0].begun, 1e-3)
        top = max(self.longest, 1e-3)
        across = [LEFT + (each.begun - self.bins[0].begun) / span * (RIGHT - LEFT) for each in self.bins]

        def up(milliseconds: float) -> float:
            return BOTTOM - milliseconds / top * (BOTTOM - TOP)

        areas, below = [], [0.0] * len(self.bins)
        for colour, step in enumerate(self.steps):
            above = [low + each.sums.get(step, 0.0) / each.count for low, each in zip(below, self.bins, strict=True)]
            outline = [*zip(across, map(up, above), strict=True)]
            outline += reversed([*zip(across, map(up, below), strict=True)])
            areas.append(f'<polygon class="s{colour % COLOURS}" points="{_points(outline)}"/>')
            below = above
        longest = [(x, up(each.longest)) for x, each in zip(across, self.bins, strict=True)]
        return CHART.substitute(grid="\n".join(_grid(span, top)), areas="\n".join(areas), longest=_points(longest))


def _merged(first: Bin, second: Bin) -> Bin:
    both = Bin(first.begun)
    for each in (first, second):
        both.take(each.count, each.sums, each.longest)
    return both


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _grid(span: float, top: float) -> list[str]:
    lines = []
    step = nice_step(top, 6)
    for i in range(int(top / step) + 1):
        y = BOTTOM - i * step / top * (BOTTOM - TOP)
        lines.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{RIGHT}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{round(i * step, 9):g}</text>')
    step = nice_step(span, 10)
    for i in range(int(span / step) + 1):
        x = LEFT + i * step / span * (RIGHT - LEFT)
        lines.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{BOTTOM}"/>')
        lines.append(f'<text x="{x:.1f}" y="{BOTTOM + 17}" text-anchor="middle">{round(i * step, 9):.10g}</text>')
    return lines
