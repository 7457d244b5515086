"""The warning of scores that are unlike those of the calibration."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

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
    Reading,
    ScoreMonitor,
    chance_of_distance,
    count_independent,
    find_distance,
    summarize,
    warn_of_scores,
)
from pairvpr.runtime.measure import Measure
from tests.runtime.outputs.ros_contract import acceptance


@pytest.fixture
def calibrated() -> Acceptance:
    """A threshold of 2 that was calibrated on 300 scores of mean 3."""
    scores = np.random.default_rng(0).normal(3, 1, 300)
    return dataclasses.replace(acceptance(2.0), samples=summarize(read(scores), Measure.SCORE))


def read(values: Iterable[float]) -> list[Reading]:
    """Readings of these scores whose other numbers are always the same, so that only scores are compared."""
    return [Reading(float(value), math.nan, 0.5) for value in values]


def test_scores_like_the_calibrations_are_not_warned_of(calibrated: Acceptance) -> None:
    runs = np.random.default_rng(1).normal(3, 1, (200, 100))
    assert sum(warn_of_scores(calibrated, read(run)) is not None for run in runs) <= 200 * FALSE_ALARM + 4


@pytest.mark.parametrize(("mean", "spread", "share"), [(1, 1, "16%"), (5, 1, "100%"), (3, 4, "60%")])
def test_other_scores_are_warned_of(calibrated: Acceptance, mean: float, spread: float, share: str) -> None:
    """Lower, higher, and wider ones of the same median."""
    scores = stats.norm.ppf((np.random.default_rng(0).permutation(200) + 0.5) / 200, mean, spread)
    warning = warn_of_scores(calibrated, read(scores))
    assert warning is not None
    assert f": {share} accepted, 8" in warning
    assert "the precision of 0.95 may not hold: calibrate with pictures like these" in warning


def test_few_scores_and_a_camera_that_stands_still_tell_nothing(calibrated: Acceptance) -> None:
    assert warn_of_scores(calibrated, read([-9.0] * 1000)) is None
    assert warn_of_scores(calibrated, read(np.linspace(-9, -8, 1000))) is None
    assert warn_of_scores(calibrated, read(np.random.default_rng(0).normal(-9, 1, 11))) is None
    assert warn_of_scores(calibrated, []) is None
    without = dataclasses.replace(calibrated, samples={})
    assert warn_of_scores(without, read(np.random.default_rng(0).normal(-9, 1, 500))) is None
    assert Judge(without).monitor is None


def test_a_long_run_is_warned_of_while_it_goes_on_and_again_when_it_is_like_the_calibration(
    calibrated: Acceptance,
) -> None:
    chance, monitor = np.random.default_rng(0), ScoreMonitor(calibrated)
    changes = []
    for number, reading in enumerate(
        read([*chance.normal(3, 1, MOST), *chance.normal(-3, 1, MOST), *chance.normal(3, 1, MOST)])
    ):
        before = monitor.warning is None
        monitor.add(reading)
        if before != (monitor.warning is None):
            changes.append(number + 1)
    assert changes == [2 * MOST, 3 * MOST]
    early = ScoreMonitor(calibrated)
    for reading in read(chance.normal(-3, 1, 2 * FIRST)):
        early.add(reading)
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


@pytest.mark.parametrize(("name", "said"), [("lead", "leads of the best score over the second"), ("similarity", "sim")])
def test_scores_may_stay_where_other_numbers_move(calibrated: Acceptance, name: str, said: str) -> None:
    """Another place with the same scores, whose second matches come closer, or whose pictures are less alike."""
    chance = np.random.default_rng(0)

    def run(**moved: float) -> list[Reading]:
        columns = {each: chance.normal(moved.get(each, 3), 1, 300).tolist() for each in Reading._fields}
        return [Reading(*each) for each in zip(*columns.values(), strict=True)]

    known = dataclasses.replace(calibrated, samples=summarize(run(), Measure.SCORE))
    assert warn_of_scores(known, run()) is None
    warning = warn_of_scores(known, run(**{name: 1.0}))
    assert warning is not None
    assert warning.startswith(said)
    medians = re.search(r"median (\S+), (\S+) there", warning)
    assert medians is not None
    assert [float(each) for each in medians.groups()] == pytest.approx([1, 3], abs=0.2)


def test_quantiles_are_numbers_of_the_calibration() -> None:
    scores = np.random.default_rng(0).permutation(500) * 1.0
    found = summarize(read(scores), Measure.SCORE)
    assert found.keys() == {"value", "similarity"}  # no answer has a second match
    quantiles = found["value"].quantiles
    assert len(quantiles) == 101
    assert (quantiles[0], quantiles[50], quantiles[100]) == (0, 249, 499)
    assert found["value"].independent == count_independent(scores)
    alone = summarize([Reading(0.5, 0.1, 0.5), Reading(0.7, 0.2, 0.7)], Measure.SIMILARITY)
    assert alone.keys() == {"value", "lead"}  # the similarity is the value
    assert set(alone["lead"].quantiles) == {0.1, 0.2}


def test_a_reading_is_of_the_first_two_matches() -> None:
    matches = [Match("a", 5.0, 0.5, "full"), Match("b", 3.5, 0.75, "full"), Match("c", 1.0, 0.9, "full")]
    assert Reading.from_matches(matches, Measure.SCORE) == (5.0, 1.5, 0.5)
    assert Reading.from_matches(matches, Measure.SIMILARITY) == (0.5, -0.25, 0.5)
    dropped = [matches[0], dataclasses.replace(matches[1], stage="prefix")]
    for few in (dropped, matches[:1]):
        assert math.isnan(Reading.from_matches(few, Measure.SCORE).lead)
    for none in ([], dropped[1:]):
        with pytest.raises(ValueError, match="without a score"):
            Reading.from_matches(none, Measure.SCORE)


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
