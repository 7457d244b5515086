"""Figures of a ranking: Recall@N, and precision and recall over a threshold on the first match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.evaluation.benchmark import Indices

RECALL_AT = (1, 5, 10, 20, 100)


def first_right(ranked: Indices, positives: Sequence[Indices]) -> Indices:
    """For each query the rank, from 0, of its first right answer in `ranked` (m, depth); depth where there is none.

    ranked: database indices, best first.
    """
    depth = ranked.shape[1]
    ranks = np.full(len(ranked), depth, np.int64)
    for i, (row, right) in enumerate(zip(ranked, positives, strict=True)):
        hits = np.flatnonzero(np.isin(row, right))
        if len(hits):
            ranks[i] = hits[0]
    return ranks


def recall_at(ranks: Indices, database: int, depth: int) -> Mapping[int, float]:
    """Recall@N, a share: queries whose first right answer is among the first N, of all queries.

    N runs over RECALL_AT as far as the database has so many pictures and the ranking is so deep.
    """
    return {n: float(np.mean(ranks < n)) for n in RECALL_AT if n <= min(database, depth)}


@dataclass(frozen=True)
class PrecisionRecall:
    """What a threshold on the first match's confidence would accept, one entry per threshold, falling.

    thresholds: an answer is accepted from this confidence on. precision: right ones of those accepted.
    recall: right and accepted ones of the queries that have a right answer at all.
    average_precision: area under the steps. recall_at_full_precision: the most that can be accepted with no error.
    """

    thresholds: npt.NDArray[np.float64]
    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    average_precision: float
    recall_at_full_precision: float


def precision_recall(
    confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], answerable: int
) -> PrecisionRecall:
    """Precision and recall of single best matches over all thresholds.

    confidence, right: (m,), of each query's first match; NaN was not compared and is accepted last. answerable:
    queries that have a right answer; one without is wrong once accepted and not missed otherwise. Definitions of
    Schubert et al., "Visual Place Recognition: A Tutorial" (2023), single-best-match, at every threshold there is.
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
    return PrecisionRecall(values[order][ends], precision, recall, area, float(full.max(initial=0.0)))
