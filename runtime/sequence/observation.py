"""Likelihood ratios of the robot's position from the pair scores or the similarities of an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.measure import Measure

FOUND = 0.8
"""Probability that the descriptor search finds the right place for its likeness. Otherwise it finds it by chance."""
BLIND = 0.05
"""Probability that a picture carries no information (an obstacle in view, glare). No ratio falls below it."""
MOST = 100.0
"""Highest ratio of a candidate. All are lowered together to keep it, so that no single picture decides."""
RATE = 6.0
"""Factor by which the likelihood rises with each standard deviation of the scores of other places. It is 1000 over the
middle 95 % of a normal distribution. 5 over these, as published for descriptors, lowered recall on four traverses."""
EDGE = 2.5
"""Standard deviations above the mean of other places at which a picture is as likely as being off the map. With 2 a
robot off the map was noticed less; with 3 a robot on a map of 40 pictures was lost at night."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation, above 0, of pair scores, or of minus the distances of descriptors."""

    mean: float
    deviation: float

    @staticmethod
    def from_values(values: npt.NDArray[np.float64]) -> Spread | None:
        """Return the spread of values, None if fewer than two of them differ."""
        if len(values) < 2 or np.ptp(values) == 0:
            return None
        return Spread(float(np.mean(values)), float(np.std(values, ddof=1)))


@dataclass(frozen=True)
class Observation:
    """Likelihood of an answer with the robot at a picture, relative to the robot being off the map.

    ratios: (k,) for the answer's candidates.
    elsewhere: for every other picture of the map.

    The likelihood rises exponentially with the pair score, or falls with the distance of descriptors, at a rate that
    follows from the spread of these numbers (Xu, Suenderhauf and Milford, RA-L 2021, for distances). It therefore does
    not depend on the scale of the scores, which differs between weights. The spread is taken over other places, because
    the right place and its neighbours are most of a small map.
    """

    ratios: npt.NDArray[np.float64]
    elsewhere: float

    @staticmethod
    def from_answer(answer: Recognition, count: int, spread: Spread | None = None) -> Observation:
        """Make the observation from an answer, by the number that ranks its matches.

        count: number of map pictures that were searched.
        spread: of the scores of other places. Without it the candidates are compared with each other only: their
        scores say which of them is likelier, and nothing of being off the map.
        """
        if not answer.matches:
            return Observation(np.ones(0), 1.0)
        values = read_values(answer)
        compared = ~np.isnan(values)
        ratios = np.ones(len(values))
        if compared.any():
            ratios[compared] = _ratios(values[compared], spread)
        retrieved = (1 - FOUND) + FOUND * count / len(ratios)
        return Observation(retrieved * ratios, 1 - FOUND if len(ratios) < count else 1.0)


def _ratios(values: npt.NDArray[np.float64], spread: Spread | None) -> npt.NDArray[np.float64]:
    """Return the ratios (k,) of compared candidates; without a spread, ratios whose mean is 1."""
    own = Spread.from_values(values) if spread is None else spread
    if own is None:
        return np.ones(len(values))
    logs = math.log(RATE) * ((values - own.mean) / own.deviation - EDGE)
    best = float(logs.max())
    # All are lowered: cutting the best ones off would make them equal.
    logs -= best if spread is None else max(0.0, best - math.log(MOST))
    likelihoods: npt.NDArray[np.float64] = BLIND + (1 - BLIND) * np.exp(logs)
    return likelihoods / float(likelihoods.mean()) if spread is None else likelihoods


def read_values(answer: Recognition) -> npt.NDArray[np.float64]:
    """Return the values (k,) of the candidates, higher = likelier; not a number for those that were not compared."""
    if answer.measure is Measure.SIMILARITY:
        similarities = np.array([match.similarity for match in answer.matches], np.float64)
        return -np.sqrt(np.maximum(0.0, 2 - 2 * similarities))  # descriptors have length 1
    return np.array([math.nan if match.score is None else match.score for match in answer.matches], np.float64)
