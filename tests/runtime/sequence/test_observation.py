"""What pair scores say of a place."""

from __future__ import annotations

import numpy as np
import pytest

from pairvpr.runtime.sequence.observation import BLIND, FOUND, MOST, Evidence


def test_a_ratio_is_the_mean_logit_and_never_nothing() -> None:
    evidence = Evidence.of([2.0, 0.0, -100.0, None], 4)
    assert evidence.ratios == pytest.approx([*(BLIND + (1 - BLIND) * ratio for ratio in (np.e, 1.0, 0.0)), 1.0])
    assert evidence.elsewhere == 1.0  # there is no other picture


def test_the_best_is_bounded_and_stays_the_best() -> None:
    ratios = Evidence.of([50.0, 48.0, 10.0], 3).ratios
    assert ratios == pytest.approx([BLIND + (1 - BLIND) * ratio for ratio in (MOST, MOST / np.e, 0.0)], abs=1e-6)


def test_being_a_candidate_counts_by_how_few_are() -> None:
    few, many = Evidence.of([0.0] * 10, 1000), Evidence.of([0.0] * 10, 20)
    assert few.ratios[0] / few.elsewhere == pytest.approx((1 - FOUND + FOUND * 100) / (1 - FOUND))
    assert many.ratios[0] / many.elsewhere == pytest.approx((1 - FOUND + FOUND * 2) / (1 - FOUND))


@pytest.mark.parametrize("count", [10, 25, 1000])
def test_what_says_nothing_changes_nothing_on_average(count: int) -> None:
    evidence = Evidence.of([None] * 10, count)
    assert (evidence.ratios.sum() + (count - 10) * evidence.elsewhere) / count == pytest.approx(1)


def test_without_candidates_nothing_is_said() -> None:
    evidence = Evidence.of([], 7)
    assert (evidence.ratios.shape, evidence.elsewhere) == ((0,), 1.0)
