"""Likelihood ratios from pair scores."""

from __future__ import annotations

import numpy as np
import pytest

from pairvpr.runtime.sequence.observation import BLIND, FOUND, MOST, Observation


def test_a_ratio_is_the_exponential_of_the_mean_logit_with_a_floor() -> None:
    observation = Observation.from_scores([2.0, 0.0, -100.0, None], 4)
    assert observation.ratios == pytest.approx([*(BLIND + (1 - BLIND) * ratio for ratio in (np.e, 1.0, 0.0)), 1.0])
    assert observation.elsewhere == 1.0  # there is no other picture


def test_the_best_ratio_is_bounded_and_stays_the_best() -> None:
    ratios = Observation.from_scores([50.0, 48.0, 10.0], 3).ratios
    assert ratios == pytest.approx([BLIND + (1 - BLIND) * ratio for ratio in (MOST, MOST / np.e, 0.0)], abs=1e-6)


def test_a_candidate_among_few_weighs_more() -> None:
    few, many = Observation.from_scores([0.0] * 10, 1000), Observation.from_scores([0.0] * 10, 20)
    assert few.ratios[0] / few.elsewhere == pytest.approx((1 - FOUND + FOUND * 100) / (1 - FOUND))
    assert many.ratios[0] / many.elsewhere == pytest.approx((1 - FOUND + FOUND * 2) / (1 - FOUND))


@pytest.mark.parametrize("count", [10, 25, 1000])
def test_uncompared_candidates_change_nothing_on_average(count: int) -> None:
    observation = Observation.from_scores([None] * 10, count)
    assert (observation.ratios.sum() + (count - 10) * observation.elsewhere) / count == pytest.approx(1)


def test_without_candidates_all_ratios_are_one() -> None:
    observation = Observation.from_scores([], 7)
    assert (observation.ratios.shape, observation.elsewhere) == ((0,), 1.0)
