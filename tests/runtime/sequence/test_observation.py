"""Likelihood ratios from pair scores."""

from __future__ import annotations

import numpy as np
import pytest

from pairvpr.runtime import Recognition
from pairvpr.runtime.answer import Match
from pairvpr.runtime.sequence.observation import BLIND, EDGE, FOUND, MOST, RATE, Observation, Spread


def answer(scores: list[float | None]) -> Recognition:
    matches = (Match(f"p{i}", score, 0.5, "descriptor" if score is None else "full") for i, score in enumerate(scores))
    return Recognition("q", None, tuple(matches))


def observe(scores: list[float | None], count: int, spread: Spread | None = None) -> Observation:
    return Observation.from_answer(answer(scores), count, spread)


def test_a_ratio_rises_by_a_rate_over_a_deviation() -> None:
    observation = observe([2.0 + 2 * EDGE, 0.0, 2.0, None], 4, Spread(2.0, 2.0))
    expected = [BLIND + (1 - BLIND) * ratio for ratio in (1.0, RATE ** (-1 - EDGE), RATE**-EDGE)]
    assert observation.ratios == pytest.approx([*expected, 1.0])
    assert observation.elsewhere == 1.0  # there is no other picture


def test_the_best_ratio_is_bounded_and_stays_the_best() -> None:
    ratios = observe([50.0, 48.0, -10.0], 3, Spread(0.0, 2.0)).ratios
    expected = [MOST, MOST / RATE, 0.0]
    assert ratios == pytest.approx([BLIND + (1 - BLIND) * ratio for ratio in expected], abs=1e-6)


def test_without_other_places_scores_rank_and_say_nothing_of_being_off_the_map() -> None:
    ratios = observe([4.0, 2.0, -8.0, None], 4).ratios
    assert ratios[:3].mean() == pytest.approx(1)
    assert (ratios[0] > ratios[1] > ratios[2], ratios[3]) == (True, 1.0)


def test_a_spread_needs_two_values_that_differ() -> None:
    assert Spread.from_values(np.array([1.0, 3.0])) == Spread(2.0, pytest.approx(2**0.5))
    assert Spread.from_values(np.array([3.0])) is None
    assert Spread.from_values(np.full(9, 3.0)) is None


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
