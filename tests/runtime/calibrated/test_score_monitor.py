"""The warning of scores that are unlike those of the calibration."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from pairvpr.runtime import Match, Recognition
from pairvpr.runtime.calibrated.acceptance import Acceptance
from pairvpr.runtime.calibrated.judge import Judge
from pairvpr.runtime.calibrated.score_monitor import (
    FALSE_ALARM,
    FIRST,
    MOST,
    ScoreMonitor,
    chance_of_distance,
    count_independent,
    find_distance,
    summarize,
    warn_of_scores,
)
from tests.runtime.outputs.ros_contract import acceptance


@pytest.fixture
def calibrated() -> Acceptance:
    """A threshold of 2 that was calibrated on 300 scores of mean 3."""
    scores = np.random.default_rng(0).normal(3, 1, 300)
    return dataclasses.replace(acceptance(2.0), scores=summarize(scores), independent=count_independent(scores))


def test_scores_like_the_calibrations_are_not_warned_of(calibrated: Acceptance) -> None:
    runs = np.random.default_rng(1).normal(3, 1, (200, 100))
    assert sum(warn_of_scores(calibrated, run.tolist()) is not None for run in runs) <= 200 * FALSE_ALARM + 4


@pytest.mark.parametrize(("mean", "spread", "share"), [(1, 1, "16%"), (5, 1, "100%"), (3, 4, "60%")])
def test_other_scores_are_warned_of(calibrated: Acceptance, mean: float, spread: float, share: str) -> None:
    """Lower, higher, and wider ones of the same median."""
    scores = stats.norm.ppf((np.random.default_rng(0).permutation(200) + 0.5) / 200, mean, spread)
    warning = warn_of_scores(calibrated, scores.tolist())
    assert warning is not None
    assert f": {share} accepted, 8" in warning
    assert "the precision of 0.95 may not hold: calibrate with pictures like these" in warning


def test_few_scores_and_a_camera_that_stands_still_tell_nothing(calibrated: Acceptance) -> None:
    assert warn_of_scores(calibrated, [-9.0] * 1000) is None
    assert warn_of_scores(calibrated, np.linspace(-9, -8, 1000).tolist()) is None
    assert warn_of_scores(calibrated, np.random.default_rng(0).normal(-9, 1, 11).tolist()) is None
    assert warn_of_scores(calibrated, []) is None
    without = dataclasses.replace(calibrated, scores=(), independent=0)
    assert warn_of_scores(without, np.random.default_rng(0).normal(-9, 1, 500).tolist()) is None
    assert Judge(without).monitor is None


def test_a_long_run_is_warned_of_while_it_goes_on_and_again_when_it_is_like_the_calibration(
    calibrated: Acceptance,
) -> None:
    chance, monitor = np.random.default_rng(0), ScoreMonitor(calibrated)
    changes = []
    for number, score in enumerate(
        [*chance.normal(3, 1, MOST), *chance.normal(-3, 1, MOST), *chance.normal(3, 1, MOST)]
    ):
        before = monitor.warning is None
        monitor.add(float(score))
        if before != (monitor.warning is None):
            changes.append(number + 1)
    assert changes == [2 * MOST, 3 * MOST]
    early = ScoreMonitor(calibrated)
    for score in chance.normal(-3, 1, 2 * FIRST):
        early.add(float(score))
    assert early.warning is not None


def test_neighbours_that_are_alike_count_less() -> None:
    chance = np.random.default_rng(0)
    for correlation in (0.0, 0.5, 0.9):
        series = [0.0]
        for step in chance.normal(size=20_000):
            series.append(correlation * series[-1] + step)
        ranked = 6 / np.pi * np.arcsin(correlation ** np.arange(1, 200) / 2)  # of ranks, by Pearson (1907)
        assert len(series) / count_independent(series) == pytest.approx(
            1 + 2 * ranked.sum(), rel=0.35
        )  # the estimate is noisy
    assert count_independent([1.0, 1.0, 1.0]) == 1
    assert count_independent([2.0]) == 1
    assert count_independent([]) == 0
    assert count_independent([1.0, 2.0] * 50) == 100


def test_distance_and_chance_are_those_of_kolmogorov_and_smirnov() -> None:
    chance = np.random.default_rng(0)
    for _ in range(20):
        first, second = chance.integers(0, 9, 200) * 1.0, chance.integers(1, 10, 150) * 1.0  # with ties
        assert find_distance(first, second) == pytest.approx(stats.ks_2samp(first, second).statistic)
    for distance in (0.15, 0.2, 0.3):
        exact = stats.ks_2samp(*_apart(distance), method="exact").pvalue
        assert exact <= chance_of_distance(distance, 200, 100) < 2.5 * exact + 1e-9
    assert chance_of_distance(0.0, 10, 10) == 1


def _apart(distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of 200 and 100 values at this distance."""
    return np.arange(200) / 200, np.arange(100) / 100 + distance


def test_quantiles_are_scores_of_the_calibration() -> None:
    scores = np.random.default_rng(0).permutation(500) * 1.0
    found = summarize(scores)
    assert len(found) == 101
    assert (found[0], found[50], found[100]) == (0, 249, 499)
    assert set(summarize([3.0, 1.0])) == {1.0, 3.0}


def test_answers_carry_the_warning(calibrated: Acceptance) -> None:
    judge, chance = Judge(calibrated), np.random.default_rng(0)

    def judged(score: float, monitored: bool = True) -> Recognition:
        answer = Recognition("q", matches=(Match("m", score, 0.5, "full", None),), complete=True)
        return judge.judge(answer, monitored=monitored)

    for score in chance.normal(-3, 1, 500):
        assert judged(float(score), monitored=False).warning is None
    warnings = [judged(float(score)).warning for score in chance.normal(-3, 1, 2 * FIRST)]
    assert warnings[0] is None
    assert warnings[-1] is not None
    assert f'"warning": "{warnings[-1]}"' in judged(-3.0).to_json()
    assert (
        "warning"
        not in Judge(calibrated)
        .judge(Recognition("q", matches=(Match("m", 1.0, 0.5, "full"),), complete=True))
        .to_json()
    )
