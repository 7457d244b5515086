"""Likelihood ratios of the robot's position from the pair scores or the similarities of an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.measure import Measure

FOUND = 0.8
"""Probability that the descriptor search finds the right place for its likeness. Otherwise it finds it by chance."""
BLIND = 0.05
"""Probability that a pair score carries no information (an obstacle in view, glare). No ratio falls below it."""
MOST = 100.0
"""Highest ratio of a compared pair. All scores are lowered together to keep it, so that no single picture decides."""
QUANTILES = (0.025, 0.975)
DELTA = 1000.0
"""Ratio of the likelihoods at these quantiles of the candidates' distances. 5, as published, lowered recall on four
traverses; 1000 raised it on three."""


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
    def from_answer(answer: Recognition, count: int) -> Observation:
        """Make the observation from an answer of a map of `count` pictures, by the number that ranks its matches."""
        if answer.measure is Measure.SIMILARITY:
            return Observation.from_similarities([match.similarity for match in answer.matches], count)
        return Observation.from_scores([match.score for match in answer.matches], count)

    @staticmethod
    def from_similarities(similarities: Sequence[float], count: int) -> Observation:
        """Make the observation from the similarities of k candidates in a map of `count` pictures.

        The likelihood falls exponentially with the distance of descriptors, at a rate that follows from the spread of
        the distances (Xu, Suenderhauf and Milford, RA-L 2021). A robot off the map sees nearly all pictures at the
        distance of the lower of QUANTILES or farther.
        """
        if not similarities:
            return Observation(np.ones(0), 1.0)
        distances = np.sqrt(np.maximum(0.0, 2 - 2 * np.array(similarities)))
        near, far = np.quantile(distances, QUANTILES)
        logs = math.log(DELTA) * (near - distances) / (far - near) if far > near else np.zeros(len(distances))
        logs -= max(0.0, float(logs.max()) - math.log(MOST))
        return _retrieved(BLIND + (1 - BLIND) * np.exp(logs), count)

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
        return _retrieved(np.where(compared, BLIND + (1 - BLIND) * np.exp(logs), 1.0), count)


def _retrieved(ratios: npt.NDArray[np.float64], count: int) -> Observation:
    """Weight the ratios (k,) of candidates by the likelihood that the descriptor search finds them."""
    retrieved = (1 - FOUND) + FOUND * count / len(ratios)
    return Observation(retrieved * ratios, 1 - FOUND if len(ratios) < count else 1.0)
