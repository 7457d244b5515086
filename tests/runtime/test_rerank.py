"""Re-ranking under a deadline: a clock that only the engines move, so that every millisecond is known."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from pairvpr.errors import EngineError
from pairvpr.runtime import Match, Model, PlaceRecognizer, load_model, stopwatch
from pairvpr.runtime.calibrated.cascade import PREFIX, Cascade, Look
from pairvpr.runtime.engines.base import Arrays, Engine
from pairvpr.runtime.map import Map
from pairvpr.runtime.mapping.builder import add_pictures
from pairvpr.runtime.rerank import STAGES, CostEstimate, Ranking
from pairvpr.runtime.search import FaissIndex
from pairvpr.runtime.sources import Frame
from tests.scenes import draw_scene

COUNT, SIZE = 8, (96, 128)
ENCODE, PAIR = 20.0, 10.0  # milliseconds by the clock of these tests


class Clock:
    """Stands still but for what the engines take."""

    def __init__(self) -> None:
        self.milliseconds = 0.0

    def __call__(self) -> float:
        return self.milliseconds / 1e3


class Slow:
    """An engine that moves the clock, by `milliseconds` for each row of the input `of`."""

    def __init__(self, engine: Engine, clock: Clock, of: str, milliseconds: float) -> None:
        self.engine, self.clock, self.of, self.milliseconds = engine, clock, of, milliseconds
        self.batches: list[int] = []

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self.batches.append(len(inputs[self.of]))
        self.clock.milliseconds += self.milliseconds * len(inputs[self.of])
        return self.engine.run(inputs)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model()


@pytest.fixture(scope="module")
def map_(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Map]:
    folder = tmp_path_factory.mktemp("pictures")
    for place in range(COUNT):
        Image.fromarray(draw_scene(place, 0, SIZE)).save(folder / f"p{place}.png")
    path = tmp_path_factory.mktemp("maps") / "map"
    add_pictures(folder, path, model, create=True)
    with Map.open(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def query() -> np.ndarray:
    return draw_scene(3, 1, SIZE)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "perf_counter", clock)
    return clock


@pytest.fixture
def slow(model: Model, clock: Clock) -> Model:
    """The model, on engines that take ENCODE for a picture and PAIR for a pair."""
    engines = dataclasses.replace(
        model.engines,
        encoder=Slow(model.engines.encoder, clock, "images", ENCODE),
        pair_prefix=Slow(model.engines.pair_prefix, clock, "database_tokens", PAIR),
    )
    return Model(model.bundle, engines, batch_size=32)


def recognizer(
    map_: Map, model: Model, budget_ms: float | None = None, cascade: Cascade | None = None
) -> PlaceRecognizer:
    index = FaissIndex(map_.descriptors)
    return PlaceRecognizer(map_, model, index, COUNT, budget_ms=budget_ms, cascade=cascade)


def by_similarity(matches: tuple[Match, ...]) -> list[str]:
    return [match.name for match in sorted(matches, key=lambda match: -match.similarity)]


@pytest.mark.parametrize(("budget", "compared"), [(1000.0, 8), (60.0, 4), (59.0, 3), (30.0, 1), (20.5, 1)])
def test_as_many_as_fit_in_are_compared(
    map_: Map, slow: Model, clock: Clock, query: np.ndarray, budget: float, compared: int
) -> None:
    answer = recognizer(map_, slow, budget).recognize(query)
    assert (answer.compared, answer.complete) == (compared, compared == COUNT)
    assert clock.milliseconds == ENCODE + compared * PAIR
    assert clock.milliseconds < budget + PAIR  # one batch over at most; where the pace was known, none
    assert answer.timings["total"] == pytest.approx(clock.milliseconds)


@pytest.mark.parametrize("budget", [None, 1e6])
def test_the_next_batch_is_read_while_scores_are_worked_out(
    map_: Map, model: Model, query: np.ndarray, budget: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But with a budget, where how many fit in is known only afterwards."""
    told: list[str] = []
    batches = Model(model.bundle, model.engines, batch_size=3)
    read, finish = map_.read_intact_tokens, Model.finish
    monkeypatch.setattr(map_, "read_intact_tokens", lambda rows: told.append(f"read {len(rows)}") or read(rows))
    monkeypatch.setattr(Model, "finish", lambda self, scores: told.append("finish") or finish(self, scores))
    answer = recognizer(map_, batches, budget).recognize(query)
    assert answer.compared == COUNT
    if budget is None:
        assert told == ["read 3", "read 3", "finish", "read 2", "finish", "finish"]
    else:
        assert told[1::2] == ["finish"] * (len(told) // 2)
    expected = recognizer(map_, model).recognize(query)
    assert [match.name for match in answer.matches] == [match.name for match in expected.matches]


def test_an_answer_that_was_cut_short(map_: Map, model: Model, slow: Model, query: np.ndarray) -> None:
    everything = recognizer(map_, model).recognize(query)
    score = {match.name: match.score for match in everything.matches}
    nearest = by_similarity(everything.matches)
    answer = recognizer(map_, slow, 60.0).recognize(query)
    assert [match.stage for match in answer.matches] == ["full"] * 4 + ["descriptor"] * 4
    # The most similar ones were compared and stand by score, the others as the search left them.
    assert {match.name for match in answer.matches[:4]} == set(nearest[:4])
    scores = [match.score for match in answer.matches[:4]]
    assert scores == sorted(scores, reverse=True)
    assert scores == pytest.approx([score[match.name] for match in answer.matches[:4]], abs=1e-4)
    assert [match.name for match in answer.matches[4:]] == nearest[4:]
    assert {match.score for match in answer.matches[4:]} == {None}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_cascade_that_was_cut_short(
    map_: Map, model: Model, slow: Model, query: np.ndarray, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates come one by one: each goes on exactly if none before it was predicted better."""
    monkeypatch.setattr("pairvpr.runtime.calibrated.cascade.LEAST", 1)
    head = sign * np.random.default_rng(0).normal(size=4 * model.bundle.info.dims.token_dim + 1).astype(np.float32)
    look = Look(PREFIX, head, 0.5, 0.0, 1.0)
    cascade = Cascade(model.bundle.identity, "", None, [look], 0.9, COUNT, 1, 1, 1, (0.0, 1.0), 1.0)
    nearest = by_similarity(recognizer(map_, model).recognize(query).matches)
    rows = {record.name: row for row, record in enumerate(map_.records)}
    tokens = map_.read_tokens([rows[name] for name in nearest[:4]])
    features = model.encode([query])
    similarities = map_.take_descriptors(np.array([rows[name] for name in nearest[:4]])) @ features.descriptors[0]
    predicted = look.predict(model.prefix(features.tokens, tokens).summaries, similarities)
    goes_on = predicted >= np.maximum.accumulate(predicted)

    answer = recognizer(map_, slow, 60.0, cascade).recognize(query)
    assert (answer.compared, answer.complete) == (4, False)
    full = [match.name for match in answer.matches if match.stage == "full"]
    assert set(full) == {name for name, goes in zip(nearest, goes_on, strict=False) if goes}
    dropped = [(match.name, match.score) for match in answer.matches if match.stage == "prefix"]
    by_prediction = sorted(zip(predicted, nearest, goes_on, strict=False), reverse=True)
    assert [name for name, _ in dropped] == [name for _, name, goes in by_prediction if not goes]
    assert [score for _, score in dropped] == pytest.approx([p for p, _, goes in by_prediction if not goes], abs=1e-3)
    stages = [match.stage for match in answer.matches]
    assert stages == ["full"] * len(full) + ["prefix"] * len(dropped) + ["descriptor"] * 4
    assert len(full) < 4 or sign == 1  # one of the two heads drops some


@pytest.mark.parametrize("budget", [1e-9, 5.0, ENCODE])
def test_a_budget_that_encoding_takes_leaves_the_descriptors(
    map_: Map, slow: Model, query: np.ndarray, budget: float
) -> None:
    answer = recognizer(map_, slow, budget).recognize(query)
    assert (answer.compared, answer.complete) == (0, False)
    assert [match.name for match in answer.matches] == by_similarity(answer.matches)
    assert {(match.score, match.stage) for match in answer.matches} == {(None, "descriptor")}


def test_what_decoding_took_counts(map_: Map, slow: Model, query: np.ndarray) -> None:
    picture = Image.fromarray(query)
    vpr = recognizer(map_, slow, 60.0)
    assert vpr.recognize_frame(Frame("f", None, picture, None, 0.0)).compared == 4
    assert vpr.recognize_frame(Frame("f", None, picture, None, 20.0)).compared == 2
    assert vpr.recognize_frame(Frame("f", None, picture, None, 500.0)).compared == 0


def test_a_roomy_budget_changes_nothing(map_: Map, model: Model, query: np.ndarray) -> None:
    free, bounded = (recognizer(map_, model, budget).recognize(query) for budget in (None, 1e6))
    assert bounded.complete
    for match, expected in zip(bounded.matches, free.matches, strict=True):
        assert (match.name, match.stage) == (expected.name, expected.stage)
        assert match.score == pytest.approx(expected.score, abs=1e-4)


def test_batch_sizes_follow_the_cost_estimate(map_: Map, slow: Model, query: np.ndarray) -> None:
    vpr = recognizer(map_, slow, 200.0)
    vpr.recognize(query)
    prefix = slow.engines.pair_prefix
    assert isinstance(prefix, Slow)
    assert prefix.batches == [1, 7]  # one to learn the pace, then half of the time would hold 8
    vpr.recognize(query)
    assert prefix.batches == [1, 7, 8]


def test_work_beside_it_is_noticed(map_: Map, slow: Model, clock: Clock, query: np.ndarray) -> None:
    vpr = recognizer(map_, slow, 100.0)
    assert vpr.recognize(query).compared == 8
    prefix = slow.engines.pair_prefix
    assert isinstance(prefix, Slow)
    prefix.milliseconds = 4 * PAIR
    clock.milliseconds = 0.0
    answer = vpr.recognize(query)
    assert not answer.complete
    overrun = clock.milliseconds - 100.0
    assert overrun < prefix.batches[-1] * 4 * PAIR
    clock.milliseconds = 0.0
    assert vpr.recognize(query).compared == 2
    assert clock.milliseconds == ENCODE + 2 * 4 * PAIR  # known by now: in time


def test_one_slow_batch_does_not_end_comparing_for_good(map_: Map, slow: Model, query: np.ndarray) -> None:
    vpr = recognizer(map_, slow, 60.0)
    prefix = slow.engines.pair_prefix
    assert isinstance(prefix, Slow)
    prefix.milliseconds = 500.0
    vpr.recognize(query)
    prefix.milliseconds = PAIR
    compared = [vpr.recognize(query).compared for _ in range(40)]
    assert compared[0] == 0
    assert compared[-1] >= 3  # of 4: the estimate nears the truth from above


def test_the_cost_estimate_rises_at_once_and_falls_slowly() -> None:
    cost = CostEstimate()
    assert (cost.affordable_pairs(0), cost.affordable_pairs(-5), cost.affordable_pairs(1e-3)) == (0, 0, 1)
    cost.update(40, 4)
    assert (cost.affordable_pairs(100), cost.affordable_pairs(10), cost.affordable_pairs(9)) == (5, 1, 0)
    cost.update(400, 4)
    assert cost.affordable_pairs(1000) == 5
    cost.update(40, 4)
    assert cost.affordable_pairs(1000) == 6  # 82 ms a pair
    for _ in range(50):
        cost.update(40, 4)
    assert cost.affordable_pairs(1001) == 50
    cost.update(0, 1)  # a clock too coarse to see it
    assert cost.affordable_pairs(1000) < 1e9


@pytest.mark.parametrize("budget", [0, 0.0, -1.0, float("nan"), float("inf"), float("-inf")])
def test_budgets_that_are_none(map_: Map, model: Model, budget: float) -> None:
    with pytest.raises(EngineError, match=r"budget of .* ms: give more than 0"):
        recognizer(map_, model, budget)


def test_the_order_of_an_answer() -> None:
    full, descriptor = STAGES.index("full"), STAGES.index("descriptor")
    assert full < descriptor
    scores = np.array([1.0, 3.0, -2.0, np.nan, np.nan], np.float32)
    stages = np.array([full, full, full, descriptor, descriptor])
    for swap in itertools.permutations(range(3)):
        mixed = scores.copy()
        mixed[:3] = scores[list(swap)]
        order = Ranking(mixed, stages, 3).order()
        assert list(mixed[order][:3]) == [3, 1, -2]
        assert list(order[3:]) == [3, 4]
    assert list(Ranking(np.zeros(4, np.float32), np.full(4, full), 4).order()) == [0, 1, 2, 3]


def test_a_map_on_disk_takes_a_budget(map_: Map, query: np.ndarray) -> None:
    with PlaceRecognizer.open(map_.path, budget_ms=1e-3) as vpr:
        assert (vpr.recognize(query).compared, vpr.budget_ms) == (0, 1e-3)
    with pytest.raises(EngineError, match="budget"):
        PlaceRecognizer.open(map_.path, budget_ms=-1)
