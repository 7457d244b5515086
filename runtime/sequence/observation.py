"""What an answer's pair scores say of where the robot is, as likelihood ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FOUND = 0.8
"""Chance that the descriptor search finds a place because it is the place; else it finds it as any other."""
BLIND = 0.05
"""Chance that a pair score says nothing (another driver in the way, glare): no ratio falls below it."""
MOST = 100.0
"""The best pair score counts for no more, and the others are lowered with it: one picture must not decide."""


@dataclass(frozen=True)
class Evidence:
    """How much likelier an answer is with the robot at a picture of the map than with it nowhere near any.

    ratios: (k,) for the answer's candidates. elsewhere: for every other picture of the map.

    The pair classifier learns to tell pairs of one place from others, shown as many of either, so its logit is the log
    of the ratio of their likelihoods; the mean of both orders, half of the pair score, is the better estimate. In an
    unseen town that is what is measured, and below scores of -6 the ratio levels off (benchmarks/results). Weights that
    were trained otherwise have other scores.
    """

    ratios: npt.NDArray[np.float64]
    elsewhere: float

    @staticmethod
    def of(scores: Sequence[float | None], count: int) -> Evidence:
        """That of an answer's k candidates in a map of `count` pictures; None for a candidate that was not compared."""
        if not scores:
            return Evidence(np.ones(0), 1.0)
        known = np.array([math.nan if score is None else score for score in scores])
        logs = known / 2
        compared = ~np.isnan(known)
        best = float(logs[compared].max(initial=-math.inf))
        logs -= max(0.0, best - math.log(MOST))  # all of them: cut off, the best would be level
        ratios = np.where(compared, BLIND + (1 - BLIND) * np.exp(logs), 1.0)
        retrieved = (1 - FOUND) + FOUND * count / len(known)
        return Evidence(retrieved * ratios, 1 - FOUND if len(known) < count else 1.0)
