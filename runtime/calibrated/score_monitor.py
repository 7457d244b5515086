"""Warn if the answers of a run are unlike those of the calibration, so that its threshold may not hold.

A threshold promises a precision for answers like the calibration's. Other light, another camera or another kind of
place moves three numbers of the answers: the score, its lead over the second match's score, and the similarity. Each is
compared by the two-sample Kolmogorov-Smirnov test. Neighbouring frames have similar numbers, therefore each sample
counts as the number of independent values that would have its spread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.answer import Match
from pairvpr.runtime.calibrated.acceptance import Acceptance, Sample
from pairvpr.runtime.measure import Measure

QUANTILES = 101
"""Number of quantiles that a calibration stores: 0 to 100 %."""
FALSE_ALARM = 0.01
"""Chance that a run of any length is warned of although its scores are distributed like the calibration's."""
FIRST, MOST = 32, 2048
"""Answers that are compared first, and at most."""
FEWEST = 12.0
"""Independent values below which nothing is compared, because their estimated number is too unreliable then."""

Floats = npt.NDArray[np.float64]


class Reading(NamedTuple):
    """Hold the numbers of an answer that are compared with the calibration's.

    value: pair score of the best match, or its similarity if the model has no pair classifier.
    lead: difference of the value to the second match's. NaN if that has none.
    similarity: similarity of the best match.
    """

    value: float
    lead: float
    similarity: float

    @staticmethod
    def from_matches(matches: Sequence[Match], measure: Measure) -> Reading:
        """Read an answer's matches, of which the first was compared in full. Raises ValueError if it was not."""
        values = [match.value(measure) for match in matches[:2]]
        if not values or values[0] is None:
            raise ValueError("an answer without a score")
        second = values[1] if len(values) > 1 else None
        return Reading(values[0], math.nan if second is None else values[0] - second, matches[0].similarity)


NOUNS = {
    "value": {Measure.SCORE: "scores", Measure.SIMILARITY: "similarities"},
    "lead": {
        Measure.SCORE: "leads of the best score over the second",
        Measure.SIMILARITY: "leads of the best similarity over the second",
    },
    "similarity": {Measure.SCORE: "similarities", Measure.SIMILARITY: "similarities"},
}
"""What each number of a reading is called."""


class ScoreMonitor:
    """Compare the answers of a run with those of the calibration.

    The latest answers are compared after 32, 64, 128, ... 2,048 answers, then after every 2,048, and at the end of a
    run. The comparison at the end has half of FALSE_ALARM as its level. The k-th comparison before has 6 / (pi k)^2 of
    the other half. The numbers that are compared share each level. All levels sum to FALSE_ALARM (Bonferroni). May be
    used in any thread.

    warning: result of the last comparison: None, or a sentence.
    """

    def __init__(self, acceptance: Acceptance) -> None:
        self.warning: str | None = None
        self._acceptance = acceptance
        self._latest: deque[Reading] = deque(maxlen=MOST)
        self._count, self._compared_at, self._looks = 0, 0, 0
        self._lock = Lock()

    def add(self, reading: Reading) -> None:
        """Add an answer."""
        with self._lock:
            self._latest.append(reading)
            self._count += 1
            due = FIRST if not self._compared_at else self._compared_at + min(self._compared_at, MOST)
            if self._count >= due and self._compare(FALSE_ALARM / 2 * 6 / (math.pi * (self._looks + 1)) ** 2):
                self._looks += 1

    def finish(self) -> str | None:
        """Compare the latest answers at the end of a run. Return the warning."""
        with self._lock:
            if self._count > self._compared_at or self.warning is None:
                self._compare(FALSE_ALARM / 2)
            return self.warning

    def _compare(self, level: float) -> bool:
        """Compare at a level, and return whether there was enough to compare."""
        self._compared_at = self._count
        found = {name: chance for name in self._acceptance.samples if (chance := self._chance(name)) is not None}
        if not found:
            return False
        name = min(found, key=lambda each: found[each])
        unlike = found[name] <= level / len(self._acceptance.samples)
        self.warning = self._describe(name) if unlike else None
        return True

    def _chance(self, name: str) -> float | None:
        """Return the chance of the run's distance from the calibration, None if there is too little to compare."""
        values, sample = self._values(name), self._acceptance.samples[name]
        run = count_independent(values)
        if min(run, sample.independent) < FEWEST:
            return None
        return chance_of_distance(find_distance(np.array(sample.quantiles), values), sample.independent, run)

    def _values(self, name: str) -> Floats:
        values = np.array([getattr(reading, name) for reading in self._latest], np.float64)
        return values[np.isfinite(values)]

    def _describe(self, name: str) -> str:
        acceptance, values = self._acceptance, self._values(name)
        there = {each: np.array(sample.quantiles) for each, sample in acceptance.samples.items()}
        shares = [float(np.mean(each >= acceptance.threshold)) for each in (self._values("value"), there["value"])]
        medians = [float(np.median(each)) for each in (values, there[name])]
        return (
            f"{NOUNS[name][acceptance.measure]} are unlike those of the calibration: "
            f"{shares[0]:.0%} accepted, {shares[1]:.0%} there; median "
            f"{medians[0]:.2f}, {medians[1]:.2f} there; distance {find_distance(there[name], values):.2f} "
            f"(Kolmogorov-Smirnov, false in about {FALSE_ALARM:.0%} of runs); the precision of "
            f"{acceptance.precision:g} may not hold: calibrate with pictures like these"
        )


def warn_of_scores(acceptance: Acceptance, readings: Iterable[Reading]) -> str | None:
    """Return the warning at the end of a run with these answers, or None."""
    if not acceptance.samples:
        return None
    monitor = ScoreMonitor(acceptance)
    for reading in readings:
        monitor.add(reading)
    return monitor.finish()


def summarize(readings: Sequence[Reading], measure: Measure) -> dict[str, Sample]:
    """Return what a calibration stores of its answers. A number that no answer has is left out.

    A similarity that is the value is stored once.
    """
    found = {}
    for name in NOUNS:
        values = np.array([getattr(reading, name) for reading in readings], np.float64)
        values = values[np.isfinite(values)]
        if len(values) and not (name == "similarity" and measure is Measure.SIMILARITY):
            quantiles = np.quantile(values, np.linspace(0, 1, QUANTILES), method="inverted_cdf")
            found[name] = Sample(tuple(float(value) for value in quantiles), count_independent(values))
    return found


def count_independent(values: npt.ArrayLike) -> float:
    """Return the number of independent values, 1 to n, that tell as much of the distribution as a series (n,).

    n divided by the integrated autocorrelation time of the ranks, by the initial positive sequence (Geyer, "Practical
    Markov Chain Monte Carlo", Statistical Science 1992). A constant series counts as one value.
    """
    series = np.asarray(values, np.float64)
    count = len(series)
    if count < 2 or series.min() == series.max():
        return float(min(count, 1))
    ranks = np.searchsorted(np.sort(series), series, "left") + np.searchsorted(np.sort(series), series, "right")
    centred = ranks - ranks.mean()
    spectrum = np.fft.rfft(centred, 2 * count)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[:count]
    even = covariance[: count // 2 * 2].reshape(-1, 2).sum(axis=1) / covariance[0]
    positive = even[: int(np.argmax(even <= 0)) if (even <= 0).any() else len(even)]
    return float(count / max(1.0, 2 * positive.sum() - 1))


def find_distance(first: Floats, second: Floats) -> float:
    """Return the largest distance (0 to 1) between the empirical distributions of two samples, (n,) and (m,)."""
    pooled = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(each), pooled, "right") / len(each) for each in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def chance_of_distance(distance: float, first: float, second: float) -> float:
    """Return the chance of at least this distance between samples of one distribution, at most 1.

    first, second: numbers of independent values. The first term of Kolmogorov's series bounds the chance; the
    correction for small samples is by Stephens, JRSS B 1970.
    """
    root = math.sqrt(first * second / (first + second))
    scaled = (root + 0.12 + 0.11 / root) * distance
    return min(1.0, 2 * math.exp(-2 * scaled**2))
