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
QUANTILES = (0.025, 0.975)
DELTA = 1000.0
"""Ratio of the likelihoods at these quantiles of the candidates. 5, as published for descriptors, lowered recall on
four traverses; 1000 raised it on three."""


@dataclass(frozen=True)
class Spread:
    """Lower and upper of QUANTILES of an answer's candidates: of pair scores, or of minus the descriptor distances."""

    low: float
    high: float

    @staticmethod
    def from_answer(answer: Recognition) -> Spread | None:
        """Return the spread of an answer's candidates, None if none was compared."""
        values = _values(answer)
        known = values[~np.isnan(values)]
        return Spread(*map(float, np.quantile(known, QUANTILES))) if len(known) else None


@dataclass(frozen=True)
class Observation:
    """Likelihood of an answer with the robot at a picture, relative to the robot being off the map.

    ratios: (k,) for the answer's candidates.
    elsewhere: for every other picture of the map.

    The likelihood rises exponentially with the pair score, or falls with the distance of descriptors, at a rate that
    follows from the spread of the candidates (Xu, Suenderhauf and Milford, RA-L 2021, for distances). It therefore does
    not depend on the scale of the scores, which differs between weights. A robot off the map sees nearly all pictures
    at the upper of QUANTILES or below.
    """

    ratios: npt.NDArray[np.float64]
    elsewhere: float

    @staticmethod
    def from_answer(answer: Recognition, count: int, spread: Spread | None = None) -> Observation:
        """Make the observation from an answer, by the number that ranks its matches.

        count: number of map pictures that were searched.
        spread: of the candidates of an answer of the whole map, because a few neighbours say nothing about other
        places. None takes the answer's own candidates.
        """
        if not answer.matches:
            return Observation(np.ones(0), 1.0)
        values = _values(answer)
        compared = ~np.isnan(values)
        spread = spread or Spread.from_answer(answer)
        if spread is None or spread.high <= spread.low:
            logs = np.zeros(len(values))
        else:
            logs = math.log(DELTA) * (values - spread.high) / (spread.high - spread.low)
        best = float(logs[compared].max(initial=-math.inf))
        logs -= max(0.0, best - math.log(MOST))  # all are lowered: cutting the best ones off would make them equal
        ratios = np.where(compared, BLIND + (1 - BLIND) * np.exp(logs), 1.0)
        retrieved = (1 - FOUND) + FOUND * count / len(ratios)
        return Observation(retrieved * ratios, 1 - FOUND if len(ratios) < count else 1.0)


def _values(answer: Recognition) -> npt.NDArray[np.float64]:
    """Return the values (k,) of the candidates, higher = likelier; not a number for those that were not compared."""
    if answer.measure is Measure.SIMILARITY:
        similarities = np.array([match.similarity for match in answer.matches], np.float64)
        return -np.sqrt(np.maximum(0.0, 2 - 2 * similarities))  # descriptors have length 1
    return np.array([math.nan if match.score is None else match.score for match in answer.matches], np.float64)
