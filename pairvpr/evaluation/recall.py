"""Compute Recall@N of rankings, and precision and recall over a threshold on the first match."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.evaluation.benchmark import Indices

RECALL_AT = (1, 5, 10, 20, 100)
PRECISIONS = (0.8, 0.9, 0.95, 0.99)
"""Precisions that an operating point is shown for."""
WRONG = (1.0, 0.05, 0.01, 0.0)
"""Shares of wrong answers, of all queries, that recognised places are shown for."""
_95 = 1.959964
"""Standard deviations of a normal distribution on either side that hold 95 %."""


def first_right(ranked: Indices, positives: Sequence[Indices]) -> Indices:
    """Return for each query the rank, from 0, of its first right answer; depth if there is none.

    ranked: (m, depth) database indices, best first. positives: right answers of each query.
    """
    depth = ranked.shape[1]
    ranks = np.full(len(ranked), depth, np.int64)
    for i, (row, right) in enumerate(zip(ranked, positives, strict=True)):
        hits = np.flatnonzero(np.isin(row, right))
        if len(hits):
            ranks[i] = hits[0]
    return ranks


def recall_at(ranks: Indices, database: int, depth: int) -> Mapping[int, float]:
    """Return Recall@N by N: the share of all queries whose first right answer is among the first N.

    ranks: from `first_right`. database: its number of pictures. depth: of the rankings. N takes the values of RECALL_AT
    up to the smaller of database and depth.
    """
    return {n: float(np.mean(ranks < n)) for n in RECALL_AT if n <= min(database, depth)}


def interval_of(share: float, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of independent trials (Wilson, 1927)."""
    spread = _95**2 / trials
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class OperatingPoint:
    """The lowest threshold whose accepted answers reach a precision.

    threshold: confidence from which an answer is accepted. accepted: number of queries accepted. right: of these.
    """

    precision: float
    threshold: float
    accepted: int
    right: int


@dataclass(frozen=True)
class WrongLimit:
    """The lowest threshold whose accepted answers are wrong in no more than a share of all queries.

    limit: this share; 1 accepts all answers. threshold: None if nothing can be accepted. right, wrong: numbers of
    accepted answers. The other queries are rejected.
    """

    limit: float
    threshold: float | None
    right: int
    wrong: int


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall over all thresholds on the first match's confidence.

    thresholds: falling; an answer is accepted if its confidence is at least this. precision: share of the accepted
    answers that are right. recall: share of the queries with a right answer that are accepted and right.
    average_precision: area under the steps. recall_at_full_precision: the largest recall without a wrong answer.
    accepted: number of queries at or above each threshold.
    """

    thresholds: npt.NDArray[np.float64]
    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    average_precision: float
    recall_at_full_precision: float
    accepted: npt.NDArray[np.int64]

    def at(self, precision: float) -> OperatingPoint | None:
        """Return the operating point of a precision, None if no threshold reaches it."""
        reached = np.flatnonzero(self.precision >= precision)
        if not len(reached):
            return None
        lowest = int(reached[-1])
        accepted = int(self.accepted[lowest])
        return OperatingPoint(
            precision, float(self.thresholds[lowest]), accepted, round(accepted * float(self.precision[lowest]))
        )

    def with_wrong(self, limit: float, queries: int) -> WrongLimit:
        """Return the lowest threshold that accepts wrong answers to at most `limit` (0 to 1) of the queries."""
        right = np.rint(self.accepted * self.precision).astype(np.int64)
        wrong = self.accepted - right
        allowed = np.flatnonzero(wrong <= limit * queries + 1e-9)
        if not len(allowed):
            return WrongLimit(limit, None, 0, 0)
        lowest = int(allowed[-1])
        return WrongLimit(limit, float(self.thresholds[lowest]), int(right[lowest]), int(wrong[lowest]))


def precision_recall(
    confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], answerable: int
) -> PrecisionRecall:
    """Return precision and recall of single best matches over all thresholds.

    confidence, right: (m,), of each query's first match. NaN stands for a match that was not compared; it is accepted
    last. answerable: number of queries with a right answer. A query without one is wrong if accepted, else not missed.
    The definitions are those of Schubert et al., "Visual Place Recognition: A Tutorial" (2023), single-best-match.
    """
    values = np.asarray(confidence, np.float64)
    compared = ~np.isnan(values)
    values = np.where(compared, values, values[compared].min(initial=0.0) - 1.0)
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))  # equal confidences stand and fall together
    hits = np.cumsum(right[order])[ends]
    precision = hits / (ends + 1)
    recall = hits / answerable
    area = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    full = recall[precision == 1.0]
    return PrecisionRecall(values[order][ends], precision, recall, area, float(full.max(initial=0.0)), ends + 1)
