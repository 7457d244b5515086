"""Calibrate repeatedly on one half of the places, and test on the other; see `benchmarks.acceptance`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.calibration.acceptance import PrecisionTarget, ThresholdFit, fit_threshold
from pairvpr.calibration.known_places import AnsweredPicture, cut_stretches
from pairvpr.calibration.threshold import binomial_tail
from pairvpr.errors import SourceError
from pairvpr.runtime.calibrated.acceptance import logistic
from pairvpr.runtime.geometry.poses import Pose

BLOCKS = 40
SURE = 0.05
"""The chance that a share of right answers as low as the one found comes from a threshold that keeps its promise."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SplitOutcome:
    """The result of a split.

    right: right answers of the `accepted` ones, of `count` answers. all_right: right answers of all.
    expected: right answers by confidence. squares: sum of the squared errors of confidence (Brier).
    """

    count: int
    accepted: int
    right: int
    all_right: int
    expected: float
    squares: float


def halves(wheres: Sequence[Pose], splits: int) -> Bools:
    """Return the places to calibrate with as (splits, n), half of the blocks of neighbours of n places in each."""
    blocks, generator = cut_stretches(wheres, BLOCKS), np.random.default_rng(0)
    found = np.zeros((splits, len(wheres)), bool)
    for row in found:
        for block in generator.permutation(BLOCKS)[: BLOCKS // 2]:
            row[blocks[block]] = True
    return found


def decisions(answers: Sequence[AnsweredPicture], parts: Bools, promise: PrecisionTarget) -> list[ThresholdFit | None]:
    """Calibrate on each part (splits, n) of the answers; None if calibration refuses it."""
    found: list[ThresholdFit | None] = []
    for part in parts:
        try:
            found.append(fit_threshold(_chosen(answers, part), promise, "split"))
        except SourceError:
            found.append(None)
    return found


def tested(
    decided: Iterable[ThresholdFit | None], answers: Sequence[AnsweredPicture], parts: Bools
) -> list[SplitOutcome | None]:
    """Test each decision, if there is one, on its part (splits, n) of the answers."""
    return [
        None if decision is None else _test(decision, _chosen(answers, part))
        for decision, part in zip(decided, parts, strict=True)
    ]


def summary(splits: Sequence[SplitOutcome | None], promise: PrecisionTarget) -> dict[str, Any]:
    """Return shares with their 5th and 95th percentile, over the splits that could be calibrated.

    `below` and `below_for_sure` are shares of all splits, as in the promise: a refusal does not break it.
    """
    found = [each for each in splits if each is not None]
    if not found:
        return {"calibrated": 0}
    accepting = [each for each in found if each.accepted]
    return {
        "calibrated": len(found),
        "precision": _spread([each.right / each.accepted for each in accepting]),
        "below": _share([each.right < promise.precision * each.accepted for each in found], len(splits)),
        "below_for_sure": _share([_surely_below(each, promise.precision) for each in found], len(splits)),
        "accepted": _spread([each.accepted / each.count for each in found]),
        "accepted_and_right": _spread([each.right / each.count for each in found]),
        "right": _spread([each.all_right / each.count for each in found]),
        "confidence": {
            "less_right": _spread([(each.expected - each.all_right) / each.count for each in found]),
            "brier": round(float(np.mean([each.squares / each.count for each in found])), 4),
        },
    }


def _chosen(answers: Sequence[AnsweredPicture], part: Bools) -> list[AnsweredPicture]:
    return [answers[i] for i in np.flatnonzero(part)]


def _test(decision: ThresholdFit, answers: Sequence[AnsweredPicture]) -> SplitOutcome:
    accepted = [each for each in answers if each.score >= decision.threshold]
    chances = [logistic(decision.slope, decision.bias, each.score) for each in answers]
    return SplitOutcome(
        count=len(answers),
        accepted=len(accepted),
        right=sum(each.right for each in accepted),
        all_right=sum(each.right for each in answers),
        expected=sum(chances),
        squares=sum((value - each.right) ** 2 for value, each in zip(chances, answers, strict=True)),
    )


def _surely_below(found: SplitOutcome, precision: float) -> bool:
    """Tell whether the wrong answers among the accepted ones are too many for chance."""
    wrong = found.accepted - found.right
    return wrong > 0 and 1 - binomial_tail(wrong - 1, found.accepted, 1 - precision) <= SURE


def _share(which: Sequence[bool], of: int) -> float:
    return round(sum(which) / of, 4)


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, high = np.percentile(values, [5, 95])
    return {"mean": round(float(np.mean(values)), 4), "p5": round(float(low), 4), "p95": round(float(high), 4)}
