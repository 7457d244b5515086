"""Recall, precision and their curve against plain counting."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from pairvpr.evaluation.recall import first_right, interval_of, precision_recall, recall_at


def rankings(seed: int):
    dice = np.random.default_rng(seed)
    ranked = np.stack([dice.permutation(150)[:120] for _ in range(40)])
    positives = [np.sort(dice.permutation(150)[: dice.integers(0, 4)]) for _ in range(40)]
    return dice, ranked, positives


@pytest.mark.parametrize("seed", range(4))
def test_recall_equals_a_direct_count(seed):
    _, ranked, positives = rankings(seed)
    found = recall_at(first_right(ranked, positives), 150, 120)
    assert list(found) == [1, 5, 10, 20, 100]
    for n, share in found.items():
        hits = [bool(set(row[:n]) & set(right)) for row, right in zip(ranked, positives, strict=True)]
        assert share == pytest.approx(sum(hits) / 40)


@pytest.mark.parametrize(("right", "trials"), [(0, 10), (3, 7), (10, 10), (730, 1000)])
def test_intervals_are_those_of_wilson(right, trials):
    expected = binomtest(right, trials).proportion_ci(0.95, "wilson")
    assert interval_of(right / trials, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_an_operating_point_accepts_most_at_its_precision(seed):
    dice = np.random.default_rng(seed)
    confidence = dice.integers(0, 12, 60).astype(float)
    right = dice.random(60) < confidence / 14
    for precision in (0.5, 0.8, 1.0):
        counts = [(int((confidence >= t).sum()), int(right[confidence >= t].sum()), t) for t in set(confidence)]
        best = max((each for each in counts if each[1] / each[0] >= precision), default=None)
        found = precision_recall(confidence, right, 60).at(precision)
        assert (found and (found.accepted, found.right, found.threshold)) == best
    assert precision_recall(np.ones(4), np.zeros(4, bool), 4).at(0.1) is None


def test_recall_stops_where_the_database_ends():
    ranks = first_right(np.array([[2, 0, 1], [0, 1, 2]]), [np.array([1]), np.array([], int)])
    assert ranks.tolist() == [2, 3]
    assert recall_at(ranks, 3, 3) == {1: 0.0}


def plain_curve(confidence, right, answerable):
    """Precision and recall at every confidence there is, from the definition."""
    points = []
    for threshold in sorted(set(confidence), reverse=True):
        accepted = [bool(r) for c, r in zip(confidence, right, strict=True) if c >= threshold]
        points.append((threshold, sum(accepted) / len(accepted), sum(accepted) / answerable))
    return points


@pytest.mark.parametrize("seed", range(20))
def test_precision_and_recall_equal_a_direct_count(seed):
    dice = np.random.default_rng(seed)
    count = int(dice.integers(1, 30))
    confidence = dice.integers(-6, 6, count) / 2  # many ties
    right = dice.random(count) < 0.3 + confidence / 10
    answerable = max(int(right.sum()), 1) + int(dice.integers(0, 3))
    curve = precision_recall(confidence.astype(np.float32), right, answerable)
    points = plain_curve(confidence.tolist(), right, answerable)
    assert np.allclose(np.stack([curve.thresholds, curve.precision, curve.recall], 1), points)
    area, last = 0.0, 0.0
    for _, precision, recall in points:
        area, last = area + (recall - last) * precision, recall
    assert curve.average_precision == pytest.approx(area)
    assert curve.recall_at_full_precision == max([recall for _, p, recall in points if p == 1], default=0.0)


def test_matches_without_a_score_are_accepted_last():
    curve = precision_recall(np.array([np.nan, -7.0, np.nan]), np.array([False, True, True]), 2)
    assert curve.precision.tolist() == [1.0, pytest.approx(2 / 3)]
    assert curve.recall.tolist() == [0.5, 1.0]
    assert curve.recall_at_full_precision == 0.5
    assert precision_recall(np.full(2, np.nan), np.array([True, False]), 2).precision.tolist() == [0.5]
