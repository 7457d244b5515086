"""From which score on an answer may be acted on, with a promise: Learn-Then-Test on labelled scores.

Angelopoulos, Bates, Candes, Jordan & Lei, "Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control"
(2021): every threshold is a hypothesis "the precision of what it accepts is below the target", tested on answers that
had no part in choosing it. Testing in an order fixed beforehand, up to the first that is not rejected, keeps the chance
of any false rejection below the level (fixed-sequence testing); the order may come from other data.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

STEPS = 50
"""Thresholds tested at most, evenly over the scores they come from: each more is one more chance to stop early."""

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


def binomial_tail(errors: int, trials: int, rate: float) -> float:
    """The chance of at most so many errors in so many trials, each of them one with the chance `rate` (0 to 1)."""
    if not trials:
        return 1.0
    counts = range(min(errors, trials) + 1)
    ways = [math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1) for i in counts]
    odds = [i * math.log(rate) + (trials - i) * math.log1p(-rate) for i in counts]
    return min(1.0, math.fsum(math.exp(way + odd) for way, odd in zip(ways, odds, strict=True)))


def needed(precision: float, delta: float) -> int:
    """How many accepted answers, all of them right, it takes to show the precision at the level `delta`."""
    return math.ceil(math.log(delta) / math.log(precision) - 1e-9)


def lower_bound(right: int, trials: int, delta: float) -> float:
    """The precision that `right` of so many answers show at the level `delta` (Clopper & Pearson, Biometrika 1934)."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if binomial_tail(trials - right, trials, 1 - middle) <= delta:
            low = middle
        else:
            high = middle
    return low


def sequence(scores: Floats, right: Bools, precision: float) -> npt.NDArray[np.float64]:
    """The thresholds to test, in order, from scores (n,) and whether their answers were right (n,).

    The first is the one that these answers speak for most clearly, then ever lower ones.
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
    """The lowest of `thresholds` whose precision is shown, on answers (n,) that had no part in choosing them.

    The chance that it is one below `precision` is at most `delta`, where the answers are independent and drawn as those
    to come. Of several that accept the same answers, the first. None where not even the first of all can be shown.
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
    """Slope and bias of the chance 1 / (1 + exp(-(slope score + bias))) that an answer is right, from n of them.

    Platt, "Probabilistic outputs for support vector machines" (1999): logistic regression to targets a little inside
    0 and 1, so that it ends where the scores tell all apart. A slope below 0 becomes 0: then scores tell nothing.
    """
    hits = int(np.sum(right))
    targets = np.where(right, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))
    centre, scale = float(np.mean(scores)), float(np.std(scores)) or 1.0
    inputs = np.column_stack([(np.asarray(scores, np.float64) - centre) / scale, np.ones(len(scores))])
    weights = np.array([0.0, math.log(targets.mean() / (1 - targets.mean()))])
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
        return 0.0, math.log(targets.mean() / (1 - targets.mean()))
    return float(weights[0] / scale), float(weights[1] - weights[0] * centre / scale)


def _logistic(values: Floats) -> npt.NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(0.5 * values))


def _loss(values: Floats, targets: Floats) -> float:
    return float(np.sum(np.logaddexp(0, values) - targets * values))
