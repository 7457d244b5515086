"""Collect the times of answers in bounded memory, in bins of equally many answers, and draw them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pairvpr.html.charts import Axis, Chart

BINS = 240  # at most; even
COLOURS = 8  # of the style, as classes s0 to s7


@dataclass
class Bin:
    """Consecutive answers.

    begun: seconds from the first answer to the first one of this bin. count: answers. sums: milliseconds of all
    answers, by step. longest: total milliseconds of the longest answer.
    """

    begun: float
    count: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    longest: float = 0.0

    def add(self, count: int, sums: Mapping[str, float], longest: float) -> None:
        """Add answers to the bin; the arguments are as the fields."""
        self.count += count
        self.longest = max(self.longest, longest)
        for step, spent in sums.items():
            self.sums[step] = self.sums.get(step, 0.0) + spent


class Latency:
    """The times of answers: exact in sum and maximum, coarser in time the longer the run. bins: in order."""

    def __init__(self) -> None:
        self.bins: list[Bin] = []
        self._width = 1

    def add(self, seconds: float, timings: Mapping[str, float]) -> None:
        """Add an answer.

        seconds: since the first answer. timings: milliseconds by step, "total" among them.
        """
        if not self.bins or self.bins[-1].count == self._width:
            if len(self.bins) == BINS:
                self.bins = [_merge(*self.bins[i : i + 2]) for i in range(0, BINS, 2)]
                self._width *= 2
            self.bins.append(Bin(seconds))
        steps = {step: spent for step, spent in timings.items() if step != "total"}
        self.bins[-1].add(1, steps, timings.get("total", 0.0))

    @property
    def longest(self) -> float:
        """Milliseconds of the longest answer."""
        return max((each.longest for each in self.bins), default=0.0)

    @property
    def steps(self) -> list[str]:
        """Steps of the answers, in order; each has the colour of its index."""
        return list(dict.fromkeys(step for each in self.bins for step in each.sums))

    def chart(self) -> str:
        """Return inline SVG: mean milliseconds by step, stacked, and the longest answers. Needs two bins."""
        seconds = [each.begun - self.bins[0].begun for each in self.bins]
        chart = Chart(
            "Milliseconds for an answer over time",
            Axis.from_zero("seconds since the first answer", max(seconds[-1], 1e-3), 10),
            Axis.from_zero("milliseconds", max(self.longest, 1e-3), 6),
        )
        areas, below = [], [0.0] * len(self.bins)
        for colour, step in enumerate(self.steps):
            above = [low + each.sums.get(step, 0.0) / each.count for low, each in zip(below, self.bins, strict=True)]
            outline = [*zip(seconds, above, strict=True), *reversed([*zip(seconds, below, strict=True)])]
            areas.append(chart.area(f"s{colour % COLOURS}", outline))
            below = above
        longest = zip(seconds, (each.longest for each in self.bins), strict=True)
        ends = [*seconds[1:], max(seconds[-1], 1e-3)]
        points = []
        for start, end, each in zip(seconds, ends, self.bins, strict=True):
            mean = sum(each.sums.values()) / each.count
            told = f"{start:,.1f} s: {mean:.1f} ms on average, longest {each.longest:.1f} ms"
            points.append(chart.bar("point", start, end, 0.0, self.longest, told))
        return chart.svg([*areas, chart.line("longest", longest), *points])


def _merge(first: Bin, second: Bin) -> Bin:
    both = Bin(first.begun)
    for each in (first, second):
        both.add(each.count, each.sums, each.longest)
    return both
