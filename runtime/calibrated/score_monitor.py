"""Warn if the scores of a run are unlike those of the calibration, so that its threshold may not hold.

A threshold promises a precision for answers like the calibration's. Other light, another camera or another kind of
place moves the scores. The scores are compared by the two-sample Kolmogorov-Smirnov test. Neighbouring frames have
similar scores, therefore each sample counts as the number of independent values that would have its spread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from threading import Lock

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.calibrated.acceptance import Acceptance
from pairvpr.runtime.measure import Measure

QUANTILES = 101
"""Number of quantiles that a calibration stores: 0 to 100 %."""
FALSE_ALARM = 0.01
"""Chance that a run of any length is warned of although its scores are distributed like the calibration's."""
FIRST, MOST = 32, 2048
"""Scores that are compared first, and at most."""
FEWEST = 12.0
"""Independent scores below which nothing is compared, because their estimated number is too unreliable then."""

NOUNS = {Measure.SCORE: "scores", Measure.SIMILARITY: "similarities"}

Floats = npt.NDArray[np.float64]


class ScoreMonitor:
    """Compare the scores of a run with those of the calibration.

    The latest scores are compared after 32, 64, 128, ... 2,048 scores, then after every 2,048, and at the end of a run.
    The k-th comparison has the level FALSE_ALARM 6 / (pi k)^2. The levels sum to FALSE_ALARM (Bonferroni). May be
    used in any thread.

    warning: result of the last comparison: None, or a sentence.
    """

    def __init__(self, acceptance: Acceptance) -> None:
        self.warning: str | None = None
        self._acceptance = acceptance
        self._quantiles = np.array(acceptance.scores, np.float64)
        self._scores: deque[float] = deque(maxlen=MOST)
        self._count, self._compared_at, self._looks = 0, 0, 0
        self._lock = Lock()

    def add(self, score: float) -> None:
        """Add the score of an answer's best match."""
        with self._lock:
            self._scores.append(score)
            self._count += 1
            due = FIRST if not self._compared_at else self._compared_at + min(self._compared_at, MOST)
            if self._count >= due:
                self._compare()

    def finish(self) -> str | None:
        """Compare the scores that came since the last comparison. Return the warning."""
        with self._lock:
            if self._count > self._compared_at:
                self._compare()
            return self.warning

    def _compare(self) -> None:
        self._compared_at = self._count
        scores = np.array(self._scores, np.float64)
        run, calibration = count_independent(scores), self._acceptance.independent
        if min(run, calibration) < FEWEST:
            return
        self._looks += 1
        distance = find_distance(self._quantiles, scores)
        chance = chance_of_distance(distance, calibration, run)
        unlike = chance <= FALSE_ALARM * 6 / (math.pi * self._looks) ** 2
        self.warning = self._describe(scores, distance) if unlike else None

    def _describe(self, scores: Floats, distance: float) -> str:
        threshold = self._acceptance.threshold
        shares = [float(np.mean(values >= threshold)) for values in (scores, self._quantiles)]
        medians = [float(np.median(values)) for values in (scores, self._quantiles)]
        return (
            f"{NOUNS[self._acceptance.measure]} are unlike those of the calibration: "
            f"{shares[0]:.0%} accepted, {shares[1]:.0%} there; median "
            f"{medians[0]:.2f}, {medians[1]:.2f} there; distance {distance:.2f} (Kolmogorov-Smirnov, "
            f"false in about {FALSE_ALARM:.0%} of runs); the precision of {self._acceptance.precision:g} may not hold: "
            "calibrate with pictures like these"
        )


def warn_of_scores(acceptance: Acceptance, scores: Iterable[float]) -> str | None:
    """Return the warning at the end of a run with these scores, or None."""
    if not acceptance.scores:
        return None
    monitor = ScoreMonitor(acceptance)
    for score in scores:
        monitor.add(score)
    return monitor.finish()


def summarize(scores: npt.ArrayLike) -> tuple[float, ...]:
    """Return the quantiles of scores (n,) that a calibration stores, from the least to the greatest."""
    found = np.quantile(np.asarray(scores, np.float64), np.linspace(0, 1, QUANTILES), method="inverted_cdf")
    return tuple(float(value) for value in found)


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
