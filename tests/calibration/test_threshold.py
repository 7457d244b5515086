"""The statistics of a threshold: what is promised is kept, in repeated splits of made-up scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pairvpr.calibration.threshold import (
    binomial_tail,
    certify,
    fit_confidence,
    lower_bound,
    order_thresholds,
    trials_needed,
)

PRECISION, DELTA, APART = 0.9, 0.1, 2.0
SPLITS = 300


def answers(chance: np.random.Generator, count: int, share: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Scores and whether right: normal, those of right answers higher by APART."""
    right = chance.random(count) < share
    return chance.normal(size=count) + APART * right, right


def precision_from(threshold: float, share: float = 0.7) -> float:
    """The true share of right ones among all answers from a score on."""
    hits, errors = (math.erfc((threshold - centre) / math.sqrt(2)) for centre in (APART, 0.0))
    return share * hits / (share * hits + (1 - share) * errors)


def test_the_promise_is_kept_in_repeated_splits() -> None:
    """Precision is below the target in at most the share delta of the splits, and chosen by eye far more often."""
    chance = np.random.default_rng(0)
    found, careless = [], 0
    for _ in range(SPLITS):
        scores, right = answers(chance, 300)
        learning, checking = slice(0, 100), slice(100, None)
        thresholds = order_thresholds(scores[learning], right[learning], PRECISION)
        threshold = certify(scores[checking], right[checking], thresholds, PRECISION, DELTA)
        if threshold is not None:
            found.append(threshold)
        order = np.argsort(-scores[checking])
        share = np.cumsum(right[checking][order]) / np.arange(1, len(order) + 1)
        by_eye = scores[checking][order][np.flatnonzero(share >= PRECISION)[-1]]
        careless += precision_from(by_eye) < PRECISION
    broken = sum(precision_from(threshold) < PRECISION for threshold in found)
    assert broken <= SPLITS * (DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / SPLITS))
    assert len(found) > 0.75 * SPLITS  # it is no promise that is kept by never accepting anything
    accepted = np.mean([np.mean(answers(chance, 1000)[0] >= threshold) for threshold in found])
    assert accepted > 0.5
    assert careless > 0.3 * SPLITS


def test_scores_that_tell_nothing_are_not_certified() -> None:
    chance, found = np.random.default_rng(1), 0
    for _ in range(100):
        scores, right = chance.normal(size=300), chance.random(300) < 0.85
        thresholds = order_thresholds(scores[:100], right[:100], PRECISION)
        found += certify(scores[100:], right[100:], thresholds, PRECISION, DELTA) is not None
    assert found <= 10


def test_thresholds_end_with_the_first_that_fails() -> None:
    scores = np.arange(100.0)
    right = scores >= 40
    assert certify(scores, right, np.array([70.0, 50.0, 20.0, 0.0]), 0.9, 0.1) == 50
    assert certify(scores, right, np.array([70.0, 49.5, 49.2, 49.1]), 0.9, 0.1) == 49.5  # the others accept no more
    assert certify(scores, right, np.array([20.0, 50.0]), 0.9, 0.1) is None  # also where a later one would do
    assert certify(scores, right, np.array([99.0, 50.0]), 0.9, 0.1) is None  # one answer shows nothing


def test_the_sequence_falls_and_begins_where_most_is_shown() -> None:
    scores = np.arange(200.0)
    thresholds = order_thresholds(scores, scores >= 80, 0.9)
    assert thresholds[0] == 80
    assert np.all(np.diff(thresholds) < 0)
    assert len(thresholds) <= 51
    tied = order_thresholds(np.repeat([1.0, 2.0], 50), np.repeat([False, True], 50), 0.9)
    assert list(tied) == [2.0, 1.0]  # equal scores stand and fall together
    assert order_thresholds(np.zeros(5), np.zeros(5, bool), 0.9).tolist() == [0.0]


@pytest.mark.parametrize(
    ("errors", "trials", "rate"), [(0, 30, 0.1), (3, 40, 0.05), (40, 40, 0.2), (7, 9, 0.9), (12, 5000, 0.01)]
)
def test_the_binomial_tail_equals_that_of_scipy(errors: int, trials: int, rate: float) -> None:
    assert binomial_tail(errors, trials, rate) == pytest.approx(stats.binom.cdf(errors, trials, rate), rel=1e-9)


@pytest.mark.parametrize(("right", "trials"), [(45, 45), (56, 63), (1, 10), (4990, 5000)])
@pytest.mark.parametrize("delta", [0.05, 0.1])
def test_the_lower_bound_is_the_clopper_pearson_one(right: int, trials: int, delta: float) -> None:
    exact = stats.binomtest(right, trials, alternative="greater").proportion_ci(1 - delta, method="exact")
    assert lower_bound(right, trials, delta) == pytest.approx(exact.low, rel=1e-9)


def test_how_many_it_takes() -> None:
    for precision, delta, count in ((0.99, 0.1, 230), (0.99, 0.05, 299), (0.95, 0.1, 45), (0.5, 0.5, 1)):
        assert trials_needed(precision, delta) == count
        assert binomial_tail(0, count, 1 - precision) <= delta * (1 + 1e-9)
        assert binomial_tail(0, count - 1, 1 - precision) > delta
    assert binomial_tail(0, 0, 0.1) == 1
    assert lower_bound(45, 45, 0.1) == pytest.approx(0.1 ** (1 / 45))
    assert lower_bound(0, 10, 0.1) == pytest.approx(0, abs=1e-9)


def test_confidence_is_the_share_that_is_right() -> None:
    scores, right = answers(np.random.default_rng(2), 4000)
    slope, bias = fit_confidence(scores, right)
    # Two normal distributions APART from each other: the log odds are a line of exactly this slope.
    assert slope == pytest.approx(APART, rel=0.1)
    assert bias == pytest.approx(math.log(0.7 / 0.3) - APART**2 / 2, abs=0.2)
    chance = 1 / (1 + np.exp(-(slope * scores + bias)))
    assert chance.mean() == pytest.approx(right.mean(), abs=0.01)


def test_confidence_where_there_is_little_to_learn() -> None:
    scores = np.arange(20.0)
    slope, bias = fit_confidence(scores, scores >= 10)  # told apart: steep, not infinite
    assert 0 < slope < 100
    assert math.isfinite(bias)
    slope, bias = fit_confidence(scores, np.ones(20, bool))
    assert slope == 0
    assert 1 / (1 + math.exp(-bias)) == pytest.approx(21 / 22)
    slope, bias = fit_confidence(scores, scores < 10)  # the wrong way round: scores tell nothing
    assert (slope, bias) == (0, pytest.approx(0))
    assert fit_confidence(np.ones(4), np.array([True, True, False, False]))[0] == pytest.approx(0, abs=1e-9)
