"""The gate of INT8: what it counts, and which pictures it judges by."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pairvpr.calibration.gate import LIMITS, Agreement, Answers, answer_pictures, compare_answers, measure_agreement
from pairvpr.calibration.splits import CALIBRATION, HELD_OUT, split_pictures
from pairvpr.errors import SourceError
from pairvpr.runtime import Features, load_model
from tests.scenes import draw_scene

CANDIDATES = np.array([[1, 2], [0, 2], [1, 0]])


def answers(scores: list[list[float]], turn: float = 0.0) -> Answers:
    """Answers on three pictures; the first descriptor is turned by an angle in radians."""
    descriptors = np.eye(3, dtype=np.float32)
    descriptors[0] = [np.cos(turn), np.sin(turn), 0]
    features = Features(descriptors, np.zeros((3, 1, 1), np.float32))
    return Answers(features, CANDIDATES, np.array(scores, np.float32))


TRUTH = answers([[1, 2], [3, 4], [6, 5]])


def test_the_same_answers_agree() -> None:
    assert compare_answers(TRUTH, TRUTH) == Agreement(1.0, pytest.approx(1.0), 0.0)
    assert compare_answers(TRUTH, TRUTH).within(LIMITS)


def test_what_differs_is_counted() -> None:
    assert compare_answers(answers(TRUTH.scores.tolist(), 0.2), TRUTH).cosine == pytest.approx(np.cos(0.2))
    swapped = compare_answers(answers([[2, 1], [3, 4], [6, 5]]), TRUTH)
    assert swapped.top1_changed == pytest.approx(1 / 3)
    # Spearman's for one swap of neighbours among six: 1 - 6 * 2 / (6 * 35).
    assert swapped.rank_correlation == pytest.approx(1 - 12 / 210)
    # Any growing function of the scores has the same ranks.
    assert compare_answers(answers(np.exp(TRUTH.scores).tolist()), TRUTH).rank_correlation == pytest.approx(1)


@pytest.mark.parametrize(
    "worse",
    [
        {"cosine": 0.9949},
        {"rank_correlation": 0.9899},
        {"top1_changed": 0.011},
        {"cosine": np.nan},
        {"rank_correlation": np.nan},
    ],
)
def test_each_limit_shuts_the_gate(worse: dict[str, float]) -> None:
    assert Agreement(0.995, 0.99, 0.01).within(LIMITS)
    assert not dataclasses.replace(Agreement(0.995, 0.99, 0.01), **worse).within(LIMITS)


def test_pictures_are_compared_with_their_nearest_others(tmp_path: Path) -> None:
    pictures = []
    for place in range(4):
        pictures.append(tmp_path / f"{place}.png")
        Image.fromarray(draw_scene(place, 0, (96, 128))).save(pictures[-1])
    model = load_model()
    truth = answer_pictures(model, pictures, 2, lambda step: None)
    for i in range(4):
        similarity = truth.features.descriptors @ truth.features.descriptors[i]
        others = sorted(set(range(4)) - {i}, key=lambda j: -similarity[j])
        assert truth.candidates[i].tolist() == others[:2]
        one = model.score(truth.features[i], truth.features[others[0]])
        np.testing.assert_allclose(truth.scores[i, 0], one[0], atol=1e-4)
    found = measure_agreement(model, pictures, truth, lambda step: None)
    assert found.within(LIMITS)


def test_pictures_are_split_evenly_and_never_shared(tmp_path: Path) -> None:
    for i in range(400):
        (tmp_path / f"{i}.jpg").touch()
    calibration, held_out = split_pictures(tmp_path)
    assert (len(calibration), len(held_out)) == (CALIBRATION, HELD_OUT)
    assert len({*calibration, *held_out}) == CALIBRATION + HELD_OUT
    for part in (calibration, held_out):
        numbers = [int(path.stem) for path in part]
        assert numbers == sorted(numbers)
        assert numbers[0] <= 1
        assert numbers[-1] >= 398
        assert max(np.diff(numbers)) <= 2 * 400 / len(numbers)


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    for i in range(CALIBRATION + HELD_OUT - 1):
        (tmp_path / f"{i}.jpg").touch()
    with pytest.raises(SourceError, match=r"263 pictures; INT8 needs 264 \(64 to calibrate with, 200 to judge"):
        split_pictures(tmp_path)
    (tmp_path / "last.jpg").touch()
    assert len(split_pictures(tmp_path)[1]) == HELD_OUT
