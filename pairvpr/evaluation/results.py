"""Hold the results of an evaluation: the ranking of every query, and the figures computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.evaluation.benchmark import Benchmark, Indices
from pairvpr.evaluation.recall import WRONG, PrecisionRecall, WrongLimit, first_right, precision_recall, recall_at
from pairvpr.runtime.bundle_info import Weights
from pairvpr.runtime.calibrated.acceptance import Acceptance
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.calibrated.score_monitor import Reading, warn_of_scores
from pairvpr.runtime.measure import Measure

HUBS = 6
"""Most hubs that are shown."""


@dataclass(frozen=True)
class ModelInfo:
    """The evaluated model: preset, identity and weights of its bundle, and the engine."""

    preset: str
    identity: str
    weights: Weights
    engine: str


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of a step over all queries. p95: 95th percentile."""

    step: str
    median: float
    p95: float


@dataclass(frozen=True)
class SequenceFigures:
    """The effect of a sequence filter on the re-ranked answers.

    recall: share of the queries whose filtered picture is right. gained, lost: queries that are right only with the
    filter, and only without it. off_map: mean probability of being off the map.
    """

    recall: float
    gained: int
    lost: int
    off_map: float


@dataclass(frozen=True)
class DecisionFigures:
    """The effect of the bundle's threshold on the answers.

    threshold: lowest score of an accepted answer. precision: the promised share of right ones among the accepted.
    accepted, right: accepted answers, and the right ones of these.
    warning: reason why the threshold may not hold for these queries, see `ScoreMonitor`. None without one.
    """

    threshold: float
    precision: float
    accepted: int
    right: int
    warning: str | None


@dataclass(frozen=True)
class PositionErrors:
    """Distances of first matches from the queries' positions. unit: "m" or "frames". median, p95: of all queries.

    right_median: of the right matches; None without one.
    """

    unit: str
    median: float
    p95: float
    right_median: float | None


@dataclass(frozen=True)
class Hub:
    """A database picture that is the first match of several queries for which it is wrong.

    index: its database index. queries: indices of these queries.
    """

    index: int
    queries: tuple[int, ...]


@dataclass(frozen=True)
class Figures:
    """Shares and curves of an evaluation, before and after re-ranking.

    recall_before, recall_after: Recall@N by N. by_similarity: precision and recall of the first match by descriptor,
    with its similarity as confidence. by_score: the same of the first re-ranked match, with its pair score; None for a
    model without a pair classifier.
    without_answer: queries without a right answer in the database. sequence: None without a filter.
    decisions: None if the bundle has no threshold that is valid for these answers. recognised: right and wrong answers
    at thresholds of the number that decides. errors: None without positions. hubs: most wrong answers first.
    """

    recall_before: Mapping[int, float]
    recall_after: Mapping[int, float]
    by_similarity: PrecisionRecall
    by_score: PrecisionRecall | None
    latency: tuple[StepTime, ...]
    without_answer: int
    sequence: SequenceFigures | None
    decisions: DecisionFigures | None
    recognised: tuple[WrongLimit, ...]
    errors: PositionErrors | None
    hubs: tuple[Hub, ...]

    @property
    def decisive(self) -> PrecisionRecall:
        """Return precision and recall by the number that decides."""
        return self.by_similarity if self.by_score is None else self.by_score

    def curves(self) -> list[tuple[str, PrecisionRecall]]:
        """Return precision and recall with the name of the number that they go by."""
        scored = [] if self.by_score is None else [(str(Measure.SCORE), self.by_score)]
        return [(str(Measure.SIMILARITY), self.by_similarity), *scored]


@dataclass(frozen=True)
class Evaluation:
    """Every query's answer, for m queries and a depth of min(database, max(100, top_k)) ranks.

    by_descriptor: (m, depth) database indices by falling similarity. similarities: (m, depth), of by_descriptor.
    re_ranked: (m, depth) the same indices, the first top_k in the order of the answer. scores: (m, depth), of
    re_ranked; NaN for a pair that was not compared in full. timings: milliseconds (m,) by step.
    cascade: the cascade that dropped candidates; None in an exact evaluation.
    built: pictures encoded for the map in this run, in build_seconds; an earlier run encoded the others.
    filtered: (m,) the database index that a `SequenceFilter` gives. off_map: (m,) its probability of being off the map.
    Both are None without a filter. The filter's time is the step "sequence", which is not in the total.
    acceptance: the bundle's threshold, if it is valid for these answers.
    measure: the number that ranks the answers. If it is the similarity, nothing is re-ranked.
    """

    benchmark: Benchmark
    model: ModelInfo
    top_k: int
    by_descriptor: Indices
    re_ranked: Indices
    similarities: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    timings: Mapping[str, npt.NDArray[np.float64]]
    built: int
    build_seconds: float
    bytes_per_picture: float
    cascade: Cascade | None = None
    filtered: Indices | None = None
    off_map: npt.NDArray[np.float64] | None = None
    acceptance: Acceptance | None = None
    measure: Measure = Measure.SCORE

    @property
    def ranking(self) -> str:
        """Return words on the ranking of the answers."""
        return "by descriptor alone" if self.measure is Measure.SIMILARITY else f"the best {self.top_k} re-ranked"

    def ranks(self) -> tuple[Indices, Indices]:
        """Return ranks (m,), from 0, of the first right answer before and after re-ranking; depth if there is none."""
        right = self.benchmark.positives
        return first_right(self.by_descriptor, right), first_right(self.re_ranked, right)

    def figures(self) -> Figures:
        """Compute recall, precision and times over all queries."""
        before, after = self.ranks()
        database, depth = len(self.benchmark.database), self.by_descriptor.shape[1]
        answerable = sum(len(right) > 0 for right in self.benchmark.positives)
        by_similarity = precision_recall(self.similarities[:, 0], before == 0, answerable)
        by_score = (
            precision_recall(self.scores[:, 0], after == 0, answerable) if self.measure is Measure.SCORE else None
        )
        return Figures(
            recall_before=recall_at(before, database, depth),
            recall_after=recall_at(after, database, depth),
            by_similarity=by_similarity,
            by_score=by_score,
            latency=tuple(
                StepTime(step, float(np.median(spent)), float(np.percentile(spent, 95)))
                for step, spent in self.timings.items()
            ),
            without_answer=len(before) - answerable,
            sequence=self._sequence(after == 0),
            decisions=self._decisions(after == 0),
            recognised=tuple((by_score or by_similarity).with_wrong(limit, len(before)) for limit in WRONG),
            errors=self._errors(after == 0),
            hubs=self._hubs(after == 0),
        )

    def _errors(self, right: npt.NDArray[np.bool_]) -> PositionErrors | None:
        if self.benchmark.positions is None:
            return None
        errors = self.benchmark.positions.errors(self.re_ranked[:, 0])
        of_right = float(np.median(errors[right])) if right.any() else None
        median, p95 = np.percentile(errors, [50, 95])
        return PositionErrors(self.benchmark.positions.unit, float(median), float(p95), of_right)

    def _hubs(self, right: npt.NDArray[np.bool_]) -> tuple[Hub, ...]:
        wrong: dict[int, list[int]] = {}
        for query in np.flatnonzero(~right).tolist():
            wrong.setdefault(int(self.re_ranked[query, 0]), []).append(query)
        hubs = [Hub(index, tuple(queries)) for index, queries in wrong.items() if len(queries) > 1]
        return tuple(sorted(hubs, key=lambda hub: -len(hub.queries))[:HUBS])

    def _decisions(self, right: npt.NDArray[np.bool_]) -> DecisionFigures | None:
        if self.acceptance is None:
            return None
        readings = self._readings()
        accepted = np.array([each.value for each in readings]) >= self.acceptance.threshold
        return DecisionFigures(
            threshold=self.acceptance.threshold,
            precision=self.acceptance.precision,
            accepted=int(accepted.sum()),
            right=int((accepted & right).sum()),
            warning=warn_of_scores(self.acceptance, readings),
        )

    def _readings(self) -> list[Reading]:
        """Return what the warning compares of each answer."""
        values = (self.scores if self.measure is Measure.SCORE else self.similarities).astype(np.float64)
        leads = values[:, 0] - values[:, 1] if values.shape[1] > 1 else np.full(len(values), np.nan)
        column = np.argmax(self.by_descriptor == self.re_ranked[:, :1], axis=1)
        similarities = self.similarities[np.arange(len(values)), column]
        columns = values[:, 0].tolist(), leads.tolist(), similarities.tolist()
        return [Reading(*each) for each in zip(*columns, strict=True)]

    def _sequence(self, alone: npt.NDArray[np.bool_]) -> SequenceFigures | None:
        if self.filtered is None or self.off_map is None:
            return None
        right = first_right(self.filtered[:, None], self.benchmark.positives) == 0
        return SequenceFigures(
            recall=float(right.mean()),
            gained=int((right & ~alone).sum()),
            lost=int((alone & ~right).sum()),
            off_map=float(self.off_map.mean()),
        )
