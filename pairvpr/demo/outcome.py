"""Hold the results of a demo: the answer to each query, and figures over all of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pairvpr.runtime.answer import Match, Recognition
from pairvpr.runtime.measure import Measure


@dataclass(frozen=True)
class Outcome:
    """An answered query. file: the query. truth: the name of the map's picture of its place. title: of the query."""

    file: Path
    truth: str
    answer: Recognition
    title: str

    @property
    def by_descriptor(self) -> tuple[Match, ...]:
        """Matches in the order of their similarities, which is the answer without re-ranking."""
        return tuple(sorted(self.answer.matches, key=lambda match: -match.similarity))

    @property
    def right_before(self) -> bool:
        """Whether the descriptor alone finds the place."""
        return self.by_descriptor[0].name == self.truth

    @property
    def right_after(self) -> bool:
        """Whether the place is found after re-ranking."""
        return self.answer.best.name == self.truth


@dataclass(frozen=True)
class DemoResult:
    """The figures of a demo, and its files.

    top_k: candidates of each query that were re-ranked. recall_before, recall_after: Recall@1, the share of queries
    whose first match is right, by descriptor alone and after re-ranking. milliseconds: median for a query.
    timings: medians by step. trained: False for seeded weights. engine: the engine and its device.
    notes: sentences about the pictures. report: the page. map: the map's folder. measure: the number that ranks the
    matches; nothing is re-ranked if it is the similarity, and both recalls are the same.
    """

    places: int
    queries: int
    top_k: int
    recall_before: float
    recall_after: float
    milliseconds: float
    timings: Mapping[str, float]
    trained: bool
    preset: str
    engine: str
    notes: tuple[str, ...]
    report: Path
    map: Path
    measure: Measure = Measure.SCORE


def recall(hits: Sequence[bool]) -> float:
    """Return the share of queries whose first match is right."""
    return sum(hits) / len(hits)


def median_timings(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the median milliseconds of each step of the answers, and of their totals."""
    steps = outcomes[0].answer.timings
    return {step: statistics.median(outcome.answer.timings[step] for outcome in outcomes) for step in steps}
