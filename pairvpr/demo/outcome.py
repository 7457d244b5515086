"""How a demo went: each query's answer, and the figures over all of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pairvpr.runtime.answer import Match, Recognition


@dataclass(frozen=True)
class Outcome:
    """A query, the map picture that shows its place, and the answer."""

    file: Path
    truth: str
    answer: Recognition

    @property
    def by_descriptor(self) -> tuple[Match, ...]:
        """The matches in the order of their similarities: the answer without re-ranking."""
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
    """What a demo found and where it put it.

    top_k: how many candidates of each query were re-ranked. recall_before, recall_after: Recall@1, the share
    of queries whose first match is right, by descriptor alone and after re-ranking. milliseconds: median for
    a query; timings: medians by step. trained: whether the model's weights were ever trained. engine: what it
    ran on. notes: what to know about the pictures.
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


def recall(hits: Sequence[bool]) -> float:
    """The share of queries whose first match is right."""
    return sum(hits) / len(hits)


def median_timings(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Median milliseconds of each step of the answers, and of their totals."""
    steps = outcomes[0].answer.timings
    return {step: statistics.median(outcome.answer.timings[step] for outcome in outcomes) for step in steps}
