"""Likelihood ratios of the robot's position from the pair scores of an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FOUND = 0.8
"""Probability that the descriptor search finds the right place for its likeness. Otherwise it finds it by chance."""
BLIND = 0.05
"""Probability that a pair score carries no information (an obstacle in view, glare). No ratio falls below it."""
MOST = 100.0
"""Highest ratio of a compared pair. All scores are lowered together to keep it, so that no single picture decides."""


@dataclass(frozen=True)
class Observation:
    """Likelihood of an answer with the robot at a picture, relative to the robot being off the map.

    ratios: (k,) for the answer's candidates.
    elsewhere: for every other picture of the map.

    The pair classifier is trained on as many pairs of one place as of different places. Its logit therefore estimates
    the logarithm of the likelihood ratio. The mean of both orders, half of the pair score, is the better estimate.
    Measurements in an unseen town agree. Below scores of -6 the ratio levels off (benchmarks/results). Weights that
    were trained in another way have other scores.
    """

    ratios: npt.NDArray[np.float64]
    elsewhere: float

    @staticmethod
    def from_scores(scores: Sequence[float | None], count: int) -> Observation:
        """Make the observation from the pair scores of k candidates in a map of `count` pictures.

        scores: None for a candidate that was not compared.
        """
        if not scores:
            return Observation(np.ones(0), 1.0)
        known = np.array([math.nan if score is None else score for score in scores])
        logs = known / 2
        compared = ~np.isnan(known)
        best = float(logs[compared].max(initial=-math.inf))
        logs -= max(0.0, best - math.log(MOST))  # all are lowered: cutting the best ones off would make them equal
        ratios = np.where(compared, BLIND + (1 - BLIND) * np.exp(logs), 1.0)
        retrieved = (1 - FOUND) + FOUND * count / len(known)
        return Observation(retrieved * ratios, 1 - FOUND if len(known) < count else 1.0)
