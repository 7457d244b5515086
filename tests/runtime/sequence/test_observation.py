"""Likelihood ratios from pair scores."""

from __future__ import annotations

import numpy as np
import pytest

from pairvpr.runtime import Recognition
from pairvpr.runtime.answer import Match
from pairvpr.runtime.sequence.observation import BLIND, DELTA, FOUND, MOST, Observation, Spread


def answer(scores: list[float | None]) -> Recognition:
    matches = (Match(f"p{i}", score, 0.5, "descriptor" if score is None else "full") for i, score in enumerate(scores))
    return Recognition("q", None, tuple(matches))


def observe(scores: list[float | None], count: int, spread: Spread | None = None) -> Observation:
    return Observation.from_answer(answer(scores), count, spread)


def test_a_ratio_rises_by_delta_over_the_spread() -> None:
    observation = observe([2.0, 0.0, -4.0, None], 4, Spread(-4.0, 2.0))
    expected = [BLIND + (1 - BLIND) * ratio for ratio in (1.0, DELTA ** (-1 / 3), 1 / DELTA)]
    assert observation.ratios == pytest.approx([*expected, 1.0])
    assert observation.elsewhere == 1.0  # there is no other picture


def test_the_scale_of_scores_changes_nothing() -> None:
    scores = np.random.default_rng(0).normal(0, 1, 40)
    first, second = observe([*scores, 6.0], 41), observe([*(7 * scores - 30), 12.0], 41)
    assert second.ratios == pytest.approx(first.ratios)


def test_the_spread_is_that_of_the_compared_candidates() -> None:
    scores = list(map(float, range(101)))
    spread = Spread.from_answer(answer([*scores, None, None]))
    assert spread is not None
    assert (spread.low, spread.high) == pytest.approx((2.5, 97.5))
    assert Spread.from_answer(answer([None, None])) is None
    assert Spread.from_answer(answer([])) is None


def test_the_best_ratio_is_bounded_and_stays_the_best() -> None:
    ratios = observe([50.0, 48.0, -10.0], 3, Spread(0.0, 5.0)).ratios
    expected = [MOST, MOST * DELTA ** (-2 / 5), 0.0]
    assert ratios == pytest.approx([BLIND + (1 - BLIND) * ratio for ratio in expected], abs=1e-6)


@pytest.mark.parametrize("scores", [[0.0] * 10, [None] * 10])
def test_a_candidate_among_few_weighs_more(scores: list[float | None]) -> None:
    few, many = observe(scores, 1000), observe(scores, 20)
    assert few.ratios[0] / few.elsewhere == pytest.approx((1 - FOUND + FOUND * 100) / (1 - FOUND))
    assert many.ratios[0] / many.elsewhere == pytest.approx((1 - FOUND + FOUND * 2) / (1 - FOUND))


@pytest.mark.parametrize("count", [10, 25, 1000])
def test_uncompared_candidates_change_nothing_on_average(count: int) -> None:
    observation = observe([None] * 10, count)
    assert (observation.ratios.sum() + (count - 10) * observation.elsewhere) / count == pytest.approx(1)


def test_without_candidates_all_ratios_are_one() -> None:
    observation = observe([], 7)
    assert (observation.ratios.shape, observation.elsewhere) == ((0,), 1.0)
