"""The measurement of decisions, on made-up answers whose truth is known; and a real one, in the small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.acceptance import as_confidence, asked, elsewhere, measure, spaced, spread
from benchmarks.answers import AnswerTable, answer
from benchmarks.splits import SplitOutcome, halves, summary
from pairvpr.calibration.acceptance import PrecisionTarget
from pairvpr.runtime import load_model
from pairvpr.runtime.geometry.poses import Pose
from tests.scenes import draw_scene

TOP_K = 3


def made_up(count: int = 600, night: float = 4.0) -> AnswerTable:
    """Queries 30 m apart by day and by night, and four candidates of each, one of them right.

    Right ones score 6 above wrong ones on average; by night all score `night` more, so that wrong ones look right.
    """
    chance = np.random.default_rng(0)
    dark = np.arange(count) % 2 == 1
    right = np.zeros((count, TOP_K + 1), bool)
    right[np.arange(count), chance.integers(0, TOP_K, count)] = True
    scores = chance.normal(size=right.shape) + 6 * right * (chance.random((count, 1)) < 0.7) + night * dark[:, None]
    along = 30.0 * (np.arange(count) // 2)
    places = np.stack([along[:, None] + 1000 * np.arange(1, TOP_K + 2) * ~right, np.zeros(right.shape)], axis=2)
    return AnswerTable(
        conditions=np.where(dark, "night", "day"),
        where=np.stack([along, np.zeros(count)], axis=1),
        places=places,
        similarities=np.sort(chance.uniform(0, 1, right.shape), axis=1)[:, ::-1].astype(np.float32),
        scores=scores.astype(np.float32),
        right=right,
        answerable=np.ones(count, bool),
    )


def test_a_map_without_the_place_has_only_wrong_answers() -> None:
    answers = made_up(20)
    known, unknown = answers.known(TOP_K), answers.unknown(TOP_K)
    assert known.scores.shape == unknown.scores.shape == (20, TOP_K)
    assert np.array_equal(known.scores, answers.scores[:, :TOP_K])
    assert known.right.sum() == 20
    assert not unknown.right.any()
    assert np.array_equal(unknown.scores, answers.scores[~answers.right].reshape(20, TOP_K))


def test_only_queries_a_radius_apart_count() -> None:
    answers = made_up(40)
    assert len(spaced(answers, 30)) == 40
    assert len(spaced(answers, 31)) == 20
    assert set(spaced(answers, 31).conditions) == {"day", "night"}


def test_halves_are_whole_blocks_of_places() -> None:
    parts = halves([Pose(float(x), 0, 0) for x in range(400)], 5)
    assert parts.shape == (5, 400)
    assert set(parts.sum(axis=1)) == {200}
    assert all(len(set(block)) == 1 for row in parts for block in row.reshape(40, 10))
    assert len({row.tobytes() for row in parts}) == 5


def test_a_promise_that_is_kept_and_one_that_is_not() -> None:
    """It holds for what was calibrated for; by night, with all scores higher, it does not: the figures say so."""
    found = measure(made_up(), TOP_K, PrecisionTarget(0.9), splits=10)
    assert found["all"]["calibrated"] == 10
    assert found["all"]["precision"]["mean"] >= 0.9
    assert found["all"]["below_for_sure"] <= 0.1
    night = found["conditions"]["night"]
    assert night["left_out"]["precision"]["mean"] < 0.9
    assert night["left_out"]["below_for_sure"] >= 0.8
    outside = found["outside_the_map"]
    assert outside["all_calibrated_inside"]["accepted_and_right"]["mean"] == 0
    assert outside["half_calibrated_so"]["precision"]["mean"] > outside["half_calibrated_inside"]["precision"]["mean"]


def test_too_few_queries_are_no_figure_but_a_refusal() -> None:
    assert measure(made_up(60), TOP_K, PrecisionTarget(0.9), splits=3)["all"] == {"calibrated": 0}


def test_below_for_sure_is_more_than_chance() -> None:
    def one(accepted: int, right: int) -> SplitOutcome:
        return SplitOutcome(200, accepted, right, right, right, 0.0)

    found = summary([one(100, 95), one(100, 89), one(100, 80), one(0, 0), None], PrecisionTarget(0.9))
    assert found["calibrated"] == 4
    assert (found["below"], found["below_for_sure"]) == (0.4, 0.2)  # refusing is not breaking a promise
    assert found["precision"]["mean"] == pytest.approx((0.95 + 0.89 + 0.8) / 3, abs=1e-4)
    assert found["accepted"]["mean"] == 0.375


def test_areas_under_the_curves_of_several_confidences() -> None:
    answers = made_up(200, night=0.0).known(TOP_K)
    areas = {name: figures["area"] for name, figures in as_confidence(answers, 25).items()}
    assert areas["re-ranked: pair score"] > areas["re-ranked: similarity"]
    assert areas["re-ranked: pair score"] > areas["descriptor: similarity"]


def test_the_second_place_and_the_spread() -> None:
    two = dataclasses.replace(
        made_up(2),
        places=np.array([[(0, 0), (10, 0), (100, 0)], [(0, 0), (3, 0), (4, 0)]], float),
        scores=np.array([[5.0, 4.0, 1.0], [2.0, 2.0, -90.0]], np.float32),
    )
    second = elsewhere(two, np.zeros(2, int), two.scores, radius=25)
    assert second[0] == 1.0
    assert np.isnan(second[1])
    assert spread(two)[1] == pytest.approx(1.5)
    assert spread(two)[0] > 1.5


def test_answers_are_those_of_the_map(tmp_path: Path) -> None:
    """Scores belong to their candidates, and what is kept is what was found."""
    for folder, seed, count in (("database", 0, 5), ("queries", 1, 2)):
        (tmp_path / folder).mkdir()
        for place in range(count):
            Image.fromarray(draw_scene(place, seed, (64, 64))).save(tmp_path / folder / f"@{100 * place}@0@.png")
    model = load_model()
    asking = (model, tmp_path / "database", [tmp_path / "queries"], None, 1, 3, tmp_path / "cache")
    answers = answer(*asking)
    assert answers.scores.shape == (2, 4)
    assert list(answers.conditions) == ["queries", "queries"]
    database = model.encode([tmp_path / "database" / f"@{100 * place}@0@.png" for place in range(5)])
    for row in range(2):
        query = model.encode([tmp_path / "queries" / f"@{100 * row}@0@.png"])
        known = (answers.places[row, :, 0] / 100).astype(int)
        assert list(known) == list(np.argsort(-(database.descriptors @ query.descriptors[0]), kind="stable")[:4])
        # The map may store tokens as int8.
        assert answers.scores[row] == pytest.approx(model.score(query, database)[known], abs=0.05)
        assert list(answers.right[row]) == list(known == row)
    kept = answer(*asking)
    assert all(np.array_equal(getattr(kept, name), value) for name, value in vars(answers).items())
    assert [len(asked(each)) for each in (answers.known(3), answers.unknown(3))] == [2, 2]
