"""Settings compared with exact answers: intervals, folds that share no place, scores that are kept on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import settings
from benchmarks.paired import difference_interval, flips, share
from benchmarks.scoring import CHUNK, Scores, Way, Workload
from pairvpr.evaluation import Benchmark
from pairvpr.runtime import Features
from pairvpr.runtime.calibrated.cascade import LEAST
from pairvpr.runtime.calibrated.tuning import RuntimeSetting
from pairvpr.runtime.map.tokens import TokenFormat
from pairvpr.runtime.model import HalfComparedPairs

EXACT = Way(RuntimeSetting("cpu", "fp32", exact=True))
PLACES, QUERIES, TOP_K = 8, 2 * CHUNK + 3, 5


# Statistics


@pytest.mark.parametrize(
    ("lost", "won", "count", "low", "high"),
    [(0, 0, 2016, -0.000971, 0.000971), (1, 3, 2000, -0.001189, 0.003187), (3, 1, 2000, -0.003187, 0.001189)],
)
def test_the_interval_of_a_difference(lost: int, won: int, count: int, low: float, high: float) -> None:
    assert difference_interval(lost, won, count) == pytest.approx((low, high), abs=1e-6)


def test_the_interval_holds_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    lost, won, count = 0.01, 0.015, 1000
    drawn = random.multinomial(count, [lost, won, 1 - lost - won], size=2000)
    bounds = np.array([difference_interval(a, b, count) for a, b, _ in drawn])
    assert 0.935 < np.mean((bounds[:, 0] <= won - lost) & (won - lost <= bounds[:, 1])) < 0.97


def test_flips_are_counted_each_way() -> None:
    before, after = np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 1, 1, 1], bool)
    found = flips(before, after)
    assert (found["right_to_wrong"], found["wrong_to_right"]) == (1, 2)
    assert (found["recall_at_1"], found["difference"]) == (80.0, 20.0)
    assert share(before)["count"] == 3


# The cascade


def planted(folds: int, each: int) -> tuple[Scores, np.ndarray]:
    """Queries whose scores are a linear function of their class tokens, upside down in the first fold."""
    random = np.random.default_rng(1)
    inputs = random.normal(size=(folds * each, 20, 6)).astype(np.float16)
    blocks = np.repeat(np.arange(folds), each)
    scores = inputs.astype(np.float32) @ np.arange(1, 7, dtype=np.float32)
    similarities = -np.sort(-random.uniform(size=scores.shape).astype(np.float32), axis=1)
    turned = np.where(blocks[:, None] == 0, -scores, scores)
    return Scores(similarities, inputs.astype(np.float32), inputs, turned), blocks


def test_heads_see_no_query_of_their_own_fold() -> None:
    answers, blocks = planted(6, 5)
    courses = settings.follow(answers, blocks)
    survived = np.array([course.survived for course in courses])
    assert not survived[blocks == 0].any()  # the head of the others takes the best for the worst
    lone = settings.follow(answers.take(range(5, 30)), blocks[5:])
    assert all(course.survived for course in lone)


def test_places_are_never_in_two_folds() -> None:
    positives = tuple(np.arange(place, min(place + 2, PLACES)) for place in range(PLACES) for _ in range(3))
    told = SimpleNamespace(database=[0] * PLACES, queries=[0] * len(positives), positives=positives)
    blocks = settings.folds(told, range(len(positives)))  # type: ignore[arg-type]
    assert set(blocks) == set(range(settings.FOLDS))
    assert all(len(set(blocks[start : start + 3])) == 1 for start in range(0, len(positives), 3))


def test_a_cascade_that_knows_the_scores_loses_nothing() -> None:
    answers, blocks = planted(6, 5)
    answers, blocks = answers.take(range(5, 30)), blocks[5:]
    truth = settings.SettingTruth(answers, np.eye(20, dtype=bool)[answers.scores.argmax(axis=1)])
    best = settings.judge_cascade(truth, answers, blocks)
    assert (best["winner_goes_on"]["count"], best["difference"]) == (25, 0.0)
    everyone, looked, full = best["kept"]
    assert everyone == 1  # too few queries for a margin of the similarity
    assert full == looked == LEAST / 20


# Scores on disk


class Planted:
    """A model whose scores follow from the pictures' brightness; it counts the pairs it is given."""

    batch_size = 3
    pairs = 0

    def encode(self, pictures: list[Path]) -> Features:
        values = np.array([np.asarray(Image.open(path))[0, 0, 0] / 255 for path in pictures], np.float32)
        descriptors = np.stack([np.cos(values), np.sin(values)], axis=1)
        return Features(descriptors, values[:, None, None] * np.tile(np.float32([1, 0.7]), (4, 1)))

    def prefix(self, query: np.ndarray, database: np.ndarray) -> HalfComparedPairs:
        Planted.pairs += len(database)
        distance = np.abs(database.mean(axis=(1, 2)) - query.mean())
        return HalfComparedPairs(np.tile(distance[:, None], (1, 4)).astype(np.float32), {"distance": distance})

    def look(self, query: np.ndarray, database: np.ndarray) -> np.ndarray:
        return np.tile(database.mean(axis=(1, 2))[:, None], (1, 2)).astype(np.float32)

    def suffix(self, pairs: HalfComparedPairs, keep: np.ndarray) -> np.ndarray:
        return -pairs.states["distance"][keep].astype(np.float32)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workload:
    def pictures(side: str, count: int) -> tuple[tuple[str, Path], ...]:
        (tmp_path / side).mkdir()
        for i in range(count):
            shade = 30 * (i % PLACES) + (side == "queries") * (5 + i // PLACES)
            Image.new("RGB", (4, 4), (shade, 0, 0)).save(tmp_path / side / f"{i}.png")
        return tuple((f"{i}.png", tmp_path / side / f"{i}.png") for i in range(count))

    positives = tuple(np.array([i % PLACES]) for i in range(QUERIES))
    benchmark = Benchmark("b", pictures("database", PLACES), pictures("queries", QUERIES), positives, "")
    monkeypatch.setattr(RuntimeSetting, "load", lambda *_: Planted())
    monkeypatch.setattr(Planted, "pairs", 0)
    bundle = SimpleNamespace(
        identity="0" * 64,
        path=tmp_path,
        info=SimpleNamespace(precisions={}, preset="nano", weights=SimpleNamespace(trained=True)),
    )
    return Workload(benchmark, bundle, TOP_K, tmp_path / "work")  # type: ignore[arg-type]


def test_kept_scores_are_not_computed_again(work: Workload) -> None:
    asked = range(QUERIES)
    candidates = work.candidates(EXACT, asked)
    first = work.score(EXACT, asked)
    assert first.scores.shape == (QUERIES, TOP_K)
    assert first.summaries.shape == (QUERIES, TOP_K, 4)
    assert (first.looks.shape, first.similarities.shape) == ((QUERIES, TOP_K, 2), (QUERIES, TOP_K))
    assert Planted.pairs == QUERIES * TOP_K
    assert [rows[i] for rows, i in zip(candidates, first.scores.argmax(axis=1), strict=True)] == [
        i % PLACES for i in asked
    ]

    next(iter(work.folder.glob("scores-*"))).unlink()  # as an interruption would leave it
    again = work.score(EXACT, asked)
    np.testing.assert_array_equal(again.scores, first.scores)
    assert QUERIES * TOP_K < Planted.pairs <= (QUERIES + CHUNK) * TOP_K
    assert not list(work.folder.glob(".*"))


def test_each_way_keeps_its_own_scores(work: Workload) -> None:
    asked = range(CHUNK)
    work.candidates(EXACT, asked)
    exact = work.score(EXACT, asked).scores
    half = work.score(Way(EXACT.setting, TokenFormat("int8", 0.5)), asked).scores
    other = work.score(Way(RuntimeSetting("openvino", "bf16", exact=True)), asked).scores
    assert Planted.pairs == 3 * CHUNK * TOP_K
    np.testing.assert_array_equal(other, exact)
    assert 0 < np.abs(half - exact).max() < 0.01


def test_the_table_has_every_setting(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, rest = (
        Way(RuntimeSetting("cpu", "int8", exact=True), TokenFormat("int8")),
        Way(RuntimeSetting("openvino", "bf16")),
    )
    monkeypatch.setattr(settings, "ways", lambda *_: (EXACT, [fast], [rest]))
    results = settings.measure(work, range(QUERIES), range(0, QUERIES, 2), threads=1)
    text = settings.table(results)
    assert [line.split("  ")[0] for line in text.splitlines()[1:]] == list(results["settings"])
    assert results["settings"]["exact"]["recall_at_1"] == 100.0
    assert results["settings"][str(rest)]["queries"] == -(-QUERIES // 2)
    assert results["settings"][str(rest)]["score_change"]["max"] == 0
    assert {f"{name}, cascade" for name in ("exact", str(fast))} <= results["settings"].keys()
