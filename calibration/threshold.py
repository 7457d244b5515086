"""Find the lowest score threshold that keeps a precision, by Learn-Then-Test on labelled scores.

Angelopoulos, Bates, Candes, Jordan & Lei, "Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control"
(2021). Every threshold stands for the hypothesis "the precision of the accepted answers is below the target". The
hypothesis is tested on answers that played no part in choosing the threshold. Thresholds are tested in a fixed order
up to the first that is not rejected, which keeps the chance of any false rejection below the level (fixed-sequence
testing). The order may come from other data.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

STEPS = 50
"""Most thresholds to test, spread evenly over the scores. Every further test is a further chance to stop early."""

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


def binomial_tail(errors: int, trials: int, rate: float) -> float:
    """Return the chance of at most `errors` errors in `trials` trials that each fail with chance `rate` (0 to 1)."""
    if not trials:
        return 1.0
    counts = range(min(errors, trials) + 1)
    ways = [math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1) for i in counts]
    odds = [i * math.log(rate) + (trials - i) * math.log1p(-rate) for i in counts]
    return min(1.0, math.fsum(math.exp(way + odd) for way, odd in zip(ways, odds, strict=True)))


def trials_needed(precision: float, delta: float) -> int:
    """Return the number of accepted answers, all of them right, that shows the precision at the level `delta`."""
    return math.ceil(math.log(delta) / math.log(precision) - 1e-9)


def lower_bound(right: int, trials: int, delta: float) -> float:
    """Return the precision that `right` of `trials` answers show at level `delta`.

    Clopper & Pearson, Biometrika 1934.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if binomial_tail(trials - right, trials, 1 - middle) <= delta:
            low = middle
        else:
            high = middle
    return low


def order_thresholds(scores: Floats, right: Bools, precision: float) -> npt.NDArray[np.float64]:
    """Return the thresholds to test, in falling order, from scores (n,) and the correctness of their answers (n,).

    The first is the threshold with the strongest evidence in these answers.
    """
    order = np.argsort(-scores, kind="stable")
    falling = np.asarray(scores, np.float64)[order]
    wrong = np.cumsum(~right[order])
    hopeful = wrong <= (1 - precision) * np.arange(1, len(wrong) + 1)
    doubts = [binomial_tail(int(e), i + 1, 1 - precision) if hopeful[i] else 1.0 for i, e in enumerate(wrong)]
    # Equal scores stand and fall together: the last of them counts.
    last = np.flatnonzero(np.append(np.diff(falling) != 0, True))
    first = last[int(np.argmin(np.array(doubts)[last]))]
    return np.unique(falling[first :: max(1, len(falling) // STEPS)])[::-1]


def certify(scores: Floats, right: Bools, thresholds: Floats, precision: float, delta: float) -> float | None:
    """Return the lowest of `thresholds` whose precision is shown, or None if not even the first one's is.

    scores, right: (n,) from answers that played no part in choosing the thresholds.
    The chance that the threshold's precision is below `precision` is at most `delta`, if these answers are independent
    and drawn like later ones. Among thresholds that accept the same answers, the first is returned.
    """
    found: float | None = None
    most = 0
    for threshold in thresholds:
        accepted = scores >= threshold
        count = int(np.sum(accepted))
        if binomial_tail(int(np.sum(accepted & ~right)), count, 1 - precision) > delta:
            break
        if count > most:
            found, most = float(threshold), count
    return found


def fit_confidence(scores: Floats, right: Bools) -> tuple[float, float]:
    """Fit slope and bias of the chance 1 / (1 + exp(-(slope score + bias))) that an answer is right, to n answers.

    Platt, "Probabilistic outputs for support vector machines" (1999): logistic regression to targets a little inside
    0 and 1, so that it converges even if the scores separate right from wrong. The slope is 0 if all answers are right
    or all are wrong, and in place of a negative one.
    """
    hits = int(np.sum(right))
    targets = np.where(right, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))
    level = math.log(targets.mean() / (1 - targets.mean()))
    if hits in (0, len(right)):
        return 0.0, level
    centre, scale = float(np.mean(scores)), float(np.std(scores)) or 1.0
    inputs = np.column_stack([(np.asarray(scores, np.float64) - centre) / scale, np.ones(len(scores))])
    weights = np.array([0.0, level])
    for _ in range(100):
        chance = _logistic(inputs @ weights)
        slopes = inputs.T @ (targets - chance)
        curvature = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, slopes)
        while _loss(inputs @ (weights + step), targets) > _loss(inputs @ weights, targets) + 1e-12:
            step /= 2  # Newton's step went too far
        weights = weights + step
        if np.abs(step).max() < 1e-9:
            break
    if weights[0] < 0:
        return 0.0, level
    return float(weights[0] / scale), float(weights[1] - weights[0] * centre / scale)


def _logistic(values: Floats) -> npt.NDArray[np.float64]:
    chances: npt.NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * values))
    return chances


def _loss(values: Floats, targets: Floats) -> float:
    return float(np.sum(np.logaddexp(0, values) - targets * values))
