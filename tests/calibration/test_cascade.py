"""The cascade: what is learnt and counted, and that what it lets through is what exact answers hold."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pairvpr.calibration import cascade as calibration
from pairvpr.calibration.cascade import (
    MIN_PICTURES,
    PENALTIES,
    PROBABILITY,
    ComparedQuery,
    LookedAtQuery,
    Rule,
    calibrate_cascade,
    compare_pictures,
    find_margin,
    fit_head,
    learn_rule,
    ridge,
    split_blocks,
    temporary_map,
    winner_gap,
)
from pairvpr.cli.main import main
from pairvpr.cli.run import main as run_main
from pairvpr.errors import BundleError, MapError, SourceError
from pairvpr.evaluation import evaluate, load_folders, summary
from pairvpr.evaluation.recall import interval_of
from pairvpr.evaluation.report import results
from pairvpr.runtime import Model, PlaceRecognizer, Recognition, load_model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import FILE, LOOK
from pairvpr.runtime.calibrated import cascade as stored_form
from pairvpr.runtime.calibrated.cascade import (
    KEY,
    LEAST,
    PREFIX,
    Cascade,
    Look,
    look_inputs,
    queries_needed,
    select_near,
    select_similar,
)
from pairvpr.runtime.map import Map
from pairvpr.runtime.mapping.builder import add_pictures
from pairvpr.runtime.model import default_bundle
from pairvpr.runtime.search import FaissIndex
from pairvpr.viewing.calibration_results import block, cascade_rows
from tests.scenes import draw_scene

PLACES, SIZE = 7, (96, 128)
QUERIES = MIN_PICTURES + 1


def quiet(step: str, done: int, total: int) -> None:
    pass


@pytest.fixture(autouse=True, scope="module")
def no_least() -> Iterator[None]:
    """Let a single candidate go on: the maps of most tests have no more than usually go on."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (calibration, stored_form):
            patch.setattr(module, "LEAST", 1)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `bundle`, never calibrated, pictures `db` and `queries`, and a `map` made with the bundle."""
    home = tmp_path_factory.mktemp("home")
    bundle = Bundle.open(default_bundle())
    bundle.install(home / "bundle")
    (home / "bundle" / FILE).unlink()  # a link to the package's own
    info = dataclasses.replace(bundle.info, calibration={}, top_k=5)
    (home / "bundle" / FILE).write_text(info.to_json())
    for folder, count, visits in (("db", PLACES, 1), ("queries", QUERIES, 6)):
        (home / folder).mkdir()
        for number in range(count):
            visit = 0 if folder == "db" else 1 + number % visits
            picture = draw_scene(number % PLACES, visit, SIZE)
            Image.fromarray(picture).save(home / folder / f"p{number}.png")
    add_pictures(home / "db", home / "map", load_model(home / "bundle"), create=True)
    return home


@pytest.fixture(scope="module")
def model(home: Path) -> Model:
    return load_model(home / "bundle", batch_size=4)


@pytest.fixture(scope="module")
def map_(home: Path) -> Iterator[Map]:
    with Map.open(home / "map") as opened:
        yield opened


@pytest.fixture(scope="module")
def compared(map_: Map, model: Model, home: Path) -> list[LookedAtQuery]:
    return compare_pictures(map_, model, home / "queries", quiet)


@pytest.fixture(scope="module")
def calibrated(map_: Map, model: Model, home: Path, compared: list[LookedAtQuery]) -> Cascade:
    with pytest.MonkeyPatch.context() as patch:  # what takes its time was done for `compared`
        patch.setattr(calibration, "compare_pictures", lambda *_: compared)
        return calibrate_cascade(map_, model, home / "queries", quiet)


def planted(queries: int, width: int, noise: float, seed: int = 0) -> tuple[list[ComparedQuery], np.ndarray, float]:
    """Queries whose scores are a linear function of what the prefix gives, and `noise`."""
    chance = np.random.default_rng(seed)
    head, bias = chance.normal(size=width), 2.5
    found = []
    for _ in range(queries):
        inputs = chance.normal(3.0, chance.uniform(0.1, 4, width), (20, width)).astype(np.float32)
        scores = inputs @ head + bias + noise * chance.normal(size=20)
        found.append(ComparedQuery(inputs, scores.astype(np.float32)))
    return found, head, bias


def with_margin(cascade: Cascade, margin: float) -> Cascade:
    """The cascade with one margin for all looks, and none for the similarity."""
    looks = [dataclasses.replace(look, margin=margin) for look in cascade.looks]
    return dataclasses.replace(cascade, similarity_margin=None, looks=looks)


def drawn(queries: int, seed: int = 5, candidates: int = 20) -> list[LookedAtQuery]:
    """Queries whose looks tell more and more about the score, in descriptor order."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(queries):
        scores = chance.normal(0, 3, candidates)
        similarities = -np.sort(-(0.5 + 0.05 * scores + chance.normal(0, 0.1, candidates))).astype(np.float32)
        inputs = {
            graph: np.column_stack([scores + noise * chance.normal(size=candidates), similarities]).astype(np.float32)
            for graph, noise in ((LOOK, 1.0), (PREFIX, 0.3))
        }
        found.append(LookedAtQuery(similarities, inputs, scores.astype(np.float32)))
    return found


# What is learnt


def test_the_head_recovers_a_planted_relation() -> None:
    queries, head, bias = planted(60, 16, noise=0.0)
    found, constant, gaps = fit_head([queries[start : start + 12] for start in range(0, 60, 12)])
    np.testing.assert_allclose(found, head, atol=1e-3)
    assert constant == pytest.approx(bias, abs=0.02)
    np.testing.assert_allclose(gaps, 0, atol=1e-3)  # the best prediction is the winner's
    assert gaps.shape == (60,)


def test_ridge_is_that_of_the_normal_equations() -> None:
    """Against the plain form on standardised inputs; a constant input changes nothing."""
    chance = np.random.default_rng(1)
    inputs = np.column_stack([chance.normal(5, [1, 10, 0.1], (200, 3)), np.full(200, 7.0)])
    scores = inputs @ [1.0, -0.5, 3.0, 9.0] + chance.normal(size=200)
    rows = np.column_stack([inputs, np.ones(200), scores])
    heads, biases = ridge(rows.T @ rows, (1e-3, 0.5))
    centre, scale = inputs[:, :3].mean(axis=0), inputs[:, :3].std(axis=0)
    standard = (inputs[:, :3] - centre) / scale
    for penalty, head, bias in zip((1e-3, 0.5), heads, biases, strict=True):
        slow = np.linalg.solve(standard.T @ standard / 200 + penalty * np.eye(3), standard.T @ scores / 200) / scale
        np.testing.assert_allclose(head, [*slow, 0], rtol=1e-6, atol=1e-9)
        assert bias == pytest.approx(scores.mean() - slow @ centre)


def test_the_penalty_grows_with_the_noise() -> None:
    """More inputs than are worth anything: heads that did not see a block predict it better when held back."""
    quiet_blocks, *_ = planted(30, 200, noise=0.0)
    chance = np.random.default_rng(2)
    noisy = [ComparedQuery(query.inputs, chance.normal(size=20).astype(np.float32)) for query in quiet_blocks]
    heads = [fit_head([queries[i : i + 6] for i in range(0, 30, 6)])[0] for queries in (quiet_blocks, noisy)]
    moments = np.column_stack([np.concatenate([q.inputs for q in noisy]), np.ones(600)])
    scores = np.concatenate([q.scores for q in noisy])
    free = np.linalg.lstsq(moments, scores, rcond=None)[0][:-1]
    assert np.abs(heads[1]).mean() < 0.5 * np.abs(free).mean()
    assert np.abs(heads[0]).mean() > 0.3
    assert list(PENALTIES) == sorted(PENALTIES)


@pytest.mark.parametrize("count", [MIN_PICTURES, 41, 199, 1000])
def test_learning_and_checking_share_no_query(count: int) -> None:
    learning, checking = split_blocks(count)
    learnt = np.concatenate(learning)
    assert not set(learnt) & set(checking)
    assert sorted([*learnt, *checking]) == list(range(count))
    assert abs(len(learnt) - len(checking)) <= 5
    for stretch in learning:  # whole stretches of a drive: neighbours are alike
        assert list(stretch) == list(range(stretch[0], stretch[-1] + 1))
        assert len(stretch) >= count // 10


def test_the_gap_of_the_winner() -> None:
    predicted = np.array([1.0, 4.0, 2.0])
    assert winner_gap(predicted, np.array([0.0, 9.0, 1.0])) == 0
    assert winner_gap(predicted, np.array([9.0, 0.0, 1.0])) == 3


def test_the_margin_holds_as_often_as_it_says() -> None:
    gaps = np.arange(1000.0)
    assert find_margin(gaps, 0.995) == 995  # rank 996 of 1001 chances
    assert find_margin(gaps, 0.5) == 500
    assert find_margin(gaps[::-1][:50], 0.995) == 999  # too few: the largest
    assert queries_needed(0.995) == 199
    assert math.ceil((199 + 1) * 0.995) == 199
    chance = np.random.default_rng(3)
    trials = chance.exponential(size=(4000, 20))
    margins = [find_margin(row[:-1], 0.9) for row in trials]
    assert np.mean(trials[:, -1] <= margins) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("least", [1, 4])
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_the_course_of_a_query_is_that_of_the_rule_in_use(
    batch: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the rule written out for all candidates at once. Of these, batches drop none after the first look."""
    monkeypatch.setattr(stored_form, "LEAST", least)
    heads = {LOOK: np.array([1.0, 2.0], np.float32), PREFIX: np.array([0.8, -1.0], np.float32)}
    for similarity_margin, margin in ((0.05, 0.0), (0.3, 2.0), (9.0, 1e9), (None, 1.0)):
        looks = [Look(graph, head, 0.1, margin, 1.0) for graph, head in heads.items()]
        for query in drawn(10):
            course = Rule(similarity_margin, looks).follow(query, batch)
            going = select_similar(query.similarities, similarity_margin)
            assert round(course.kept[0] * 20) == going.sum() >= least
            for number, look in enumerate(looks, 1):
                predicted = look.predict(query.inputs[look.graph][:, :-1], query.similarities)
                known = np.sort(predicted[going])
                going = going & (predicted >= min(known[-1] - np.float32(margin), known[-least]))
                if batch == 32:  # all at once
                    assert round(course.kept[number] * 20) == going.sum() >= least
                elif number == 1:  # in batches, none that would go on is dropped
                    assert round(course.kept[number] * 20) >= going.sum()
            if batch == 32:
                np.testing.assert_array_equal(course.going, going)
            assert course.survived == bool(course.going[np.argmax(query.scores)])


def test_the_least_number_of_candidates_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    values = np.array([5.0, 1.0, 4.0, 3.0, 2.0], np.float32)
    for least, margin, expected in ((1, 0.0, [0]), (1, 1.5, [0, 2]), (3, 0.0, [0, 2, 3]), (8, 0.0, [0, 1, 2, 3, 4])):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stored_form, "LEAST", least)
            assert np.flatnonzero(select_near(values, margin, values)).tolist() == expected
            look = Look(LOOK, np.zeros(2, np.float32), 0.0, margin, 1.0)
            assert look.keep(values[3:], values[:3]).tolist() == [i - 3 for i in expected if i >= 3]
            winner = np.array([0, 0, 0, 1, 0])
            patch.setattr(calibration, "LEAST", least)
            assert winner_gap(values, winner) == (2.0 if least < 3 else 0.0)
    assert LEAST == 8


def test_a_cascade_says_what_speaks_against_it(calibrated: Cascade) -> None:
    assert calibrated.doubts == [
        "learned from 21 pictures; 499 are needed to keep the best candidate of 99.8%",
    ]
    lost = dataclasses.replace(calibrated, fitted=499, interval=(0.86, 0.966))
    assert lost.doubts == ["the best candidate was kept in less than 99.8% of the checked queries"]
    assert ("warning", lost.doubts[0]) in cascade_rows(lost)
    assert dataclasses.replace(calibrated, fitted=499, interval=(0.99, 1.0)).doubts == []


def test_all_margins_together_keep_the_winner_as_often_as_promised() -> None:
    lost = []
    for seed in range(12):
        queries = drawn(600, seed)
        rule = learn_rule([queries[start : start + 60] for start in range(0, 300, 60)], 0.98)
        lost += [not rule.follow(query, 32).survived for query in queries[300:]]
        assert [look.graph for look in rule.looks] == [LOOK, PREFIX]
        kept = np.mean([rule.follow(query, 32).kept for query in queries[300:]], axis=0)
        assert kept[0] > kept[1] > kept[2]
        assert kept[1] < 0.6
    assert np.mean(lost) <= 0.025
    assert any(lost)  # the margins are no wider than they must be
    few = learn_rule([drawn(8, seed) for seed in range(5)], 0.98)  # too few to promise anything
    assert few.similarity_margin is None
    assert few.follow(drawn(1)[0], 32).kept[0] == 1


def test_calibration_counts_right(calibrated: Cascade, compared: list[LookedAtQuery], model: Model) -> None:
    learning, checking = split_blocks(QUERIES)
    dims = model.bundle.info.dims
    assert len(compared) == QUERIES
    for query in compared:
        assert {graph: each.shape for graph, each in query.inputs.items()} == {
            LOOK: (5, dims.look + 1),
            PREFIX: (5, 4 * dims.token_dim + 1),
        }
        for inputs in query.inputs.values():
            np.testing.assert_array_equal(inputs[:, -1], query.similarities)
    survived = 0
    for i in checking:
        going = select_similar(compared[i].similarities, calibrated.similarity_margin)
        for look in calibrated.looks:
            predicted = compared[i].inputs[look.graph] @ look.head + look.bias
            going = going & (predicted >= predicted[going].max() - look.margin)
        survived += bool(going[np.argmax(compared[i].scores)])
    assert (calibrated.fitted, calibrated.checked) == (sum(map(len, learning)), len(checking))
    assert calibrated.survived == survived
    assert calibrated.interval == interval_of(survived / len(checking), len(checking))
    assert 1 / 5 <= calibrated.kept <= calibrated.looks[0].kept <= calibrated.compared <= 1
    assert calibrated.identity == model.bundle.identity
    assert f"in {survived} of {len(checking)} queries" in str(cascade_rows(calibrated))


def test_a_head_that_predicts_nothing_loses_winners() -> None:
    """The check can fail: gaps of queries that the head knows nothing about exceed a margin of those it knows."""
    known, *_ = planted(50, 8, noise=0.0)
    head, bias, gaps = fit_head([known[i : i + 10] for i in range(0, 50, 10)])
    margin = find_margin(gaps, PROBABILITY)
    strange, *_ = planted(50, 8, noise=0.0, seed=7)
    lost = [winner_gap(query.inputs @ head + bias, query.scores) > margin for query in strange]
    assert sum(lost) > 10


def test_the_query_itself_is_no_candidate(map_: Map, model: Model, home: Path) -> None:
    found = compare_pictures(map_, model, home / "db", quiet)
    assert len(found) == PLACES
    features = model.encode(sorted((home / "db").iterdir()))
    for number, query in enumerate(found):
        similarities = features.descriptors @ features.descriptors[number]
        others = [i for i in np.argsort(-similarities) if i != number][:5]
        expected = model.score(features[number], features)[others]
        np.testing.assert_allclose(query.scores, expected, rtol=1e-2, atol=0.1)  # what the map rounds


# What is stored


def test_a_cascade_survives_being_stored(calibrated: Cascade, home: Path, tmp_path: Path) -> None:
    first, linked = tmp_path / "first", tmp_path / "linked"
    Bundle.open(home / "bundle").install(first)
    Bundle.open(first).install(linked)
    before = (first / FILE).read_bytes()
    bundle = Bundle.open(linked)
    assert Cascade.find_in(bundle) is None
    bundle.store_calibration("other", {"kept": True})
    bundle.store_calibration(KEY, calibrated.to_json())
    assert (first / FILE).read_bytes() == before  # linked no longer
    assert sorted(path.name for path in linked.iterdir()) == sorted(path.name for path in first.iterdir())
    opened = Bundle.open(linked)
    opened.verify()
    assert (opened.identity, opened.info) == (bundle.identity, bundle.info)
    assert opened.info.calibration["other"] == {"kept": True}
    assert dataclasses.replace(opened.info, calibration={}) == Bundle.open(first).info
    stored = Cascade.find_in(opened)
    assert stored is not None
    for look, expected in zip(stored.looks, calibrated.looks, strict=True):
        np.testing.assert_array_equal(look.head, expected.head)
    assert stored.figures() == calibrated.figures()
    assert json.loads(json.dumps(stored.to_json())) == stored.to_json()


def test_a_precision_that_was_added_meanwhile_stays(home: Path, tmp_path: Path) -> None:
    Bundle.open(home / "bundle").install(tmp_path / "b")
    mine, theirs = Bundle.open(tmp_path / "b"), Bundle.open(tmp_path / "b")
    (tmp_path / "b" / FILE).unlink()
    info = dataclasses.replace(theirs.info, made_with={"by": "an export"})
    (tmp_path / "b" / FILE).write_text(info.to_json())
    mine.store_calibration(KEY, {})
    assert Bundle.open(tmp_path / "b").info.made_with == {"by": "an export"}
    (tmp_path / "b" / FILE).write_text(dataclasses.replace(info, identity="0" * 64).to_json())
    with pytest.raises(BundleError, match="another model's bundle meanwhile"):
        mine.store_calibration(KEY, {})


def test_a_full_disk_leaves_the_bundle_as_it_was(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Bundle.open(home / "bundle").install(tmp_path / "b")
    bundle, before = Bundle.open(tmp_path / "b"), (tmp_path / "b" / FILE).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pairvpr.files.os.fsync", full)
    with pytest.raises(BundleError, match=r"b: cannot be written \(No space left on device\)"):
        bundle.store_calibration(KEY, {"a": 1})
    assert (tmp_path / "b" / FILE).read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == sorted(p.name for p in (home / "bundle").iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"looks": []},
        {"looks": [{"head": "AAAA"}]},
        {"looks": None},
        {"similarity_margin": -1.0},
        {"similarity_margin": float("nan")},
        {"similarity_margin": "wide"},
        {"compared": float("inf")},
        {"interval": [0.5]},
        {"checked": 0, "survived": 0},
        {"survived": "all"},
        {"identity": 7},
        {"surprise": 1},
        {"identity": "0" * 64},
    ],
    ids=str,
)
def test_a_damaged_or_foreign_cascade_is_refused(calibrated: Cascade, home: Path, change: dict, tmp_path: Path) -> None:
    content = {**calibrated.to_json(), **change}
    bundle = Bundle.open(home / "bundle")
    spoilt = Bundle(bundle.path, dataclasses.replace(bundle.info, calibration={KEY: content}))
    with pytest.raises(BundleError, match=r"cascade .*calibrate again") as error:
        Cascade.find_in(spoilt)
    assert "\n" not in str(error.value)
    assert str(bundle.path / FILE) in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"head": "AAAA"},
        {"head": "no base64!"},
        {"head": None},
        {"bias": float("inf")},
        {"margin": -1.0},
        {"margin": float("nan")},
        {"margin": "wide"},
        {"kept": None},
        {"graph": PREFIX},
        {"graph": "encoder"},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_damaged_look_is_refused(calibrated: Cascade, home: Path, change: dict) -> None:
    content = calibrated.to_json()
    content["looks"][0].update(change)
    bundle = Bundle.open(home / "bundle")
    with pytest.raises(BundleError, match=r"cascade .*calibrate again"):
        Cascade.find_in(Bundle(bundle.path, dataclasses.replace(bundle.info, calibration={KEY: content})))


def test_a_cascade_of_version_0_1_is_one_look_at_the_prefix(calibrated: Cascade, home: Path) -> None:
    last = calibrated.to_json()["looks"][-1]
    names = ("identity", "engine", "probability", "candidates", "fitted", "checked", "survived", "interval")
    head = calibrated.looks[-1].head[:-1]
    content = {name: calibrated.to_json()[name] for name in names}
    content |= {name: last[name] for name in ("bias", "margin", "kept")}
    content["head"] = base64.b64encode(head.astype("<f4").tobytes()).decode()
    bundle = Bundle.open(home / "bundle")
    found = Cascade.find_in(Bundle(bundle.path, dataclasses.replace(bundle.info, calibration={KEY: content})))
    assert found is not None
    (look,) = found.looks
    assert (look.graph, look.margin, found.similarity_margin) == (PREFIX, last["margin"], None)
    outputs = np.random.default_rng(0).normal(size=(3, len(head))).astype(np.float32)
    predicted = look.predict(outputs, np.array([0.1, 0.5, 0.9], np.float32))
    np.testing.assert_allclose(predicted, outputs @ head + look.bias, rtol=1e-5)


def test_a_cascade_that_lacks_a_part_is_refused(calibrated: Cascade, home: Path) -> None:
    bundle = Bundle.open(home / "bundle")
    for name in calibrated.to_json():
        content = {key: value for key, value in calibrated.to_json().items() if key != name}
        with pytest.raises(BundleError, match="calibrate again"):
            Cascade.find_in(Bundle(bundle.path, dataclasses.replace(bundle.info, calibration={KEY: content})))
    with pytest.raises(BundleError, match="calibrate again"):
        Cascade.find_in(Bundle(bundle.path, dataclasses.replace(bundle.info, calibration={KEY: [1]})))


# What answers become


def recognize(map_: Map, model: Model, query: np.ndarray, cascade: Cascade | None) -> Recognition:
    return PlaceRecognizer(map_, model, FaissIndex(map_.descriptors), PLACES, cascade=cascade).recognize(query)


@pytest.mark.parametrize("margin", [0.0, 0.3, 1e9])
@pytest.mark.parametrize("batch", [2, 32])
def test_survivors_have_their_exact_scores(
    map_: Map, model: Model, calibrated: Cascade, margin: float, batch: int
) -> None:
    query = draw_scene(3, 9, SIZE)
    sized = Model(model.bundle, model.engines, batch)
    exact = {match.name: match.score for match in recognize(map_, sized, query, None).matches}
    answer = recognize(map_, sized, query, with_margin(calibrated, margin))
    assert (answer.compared, answer.complete, len(answer.matches)) == (PLACES, True, PLACES)
    stages = [match.stage for match in answer.matches]
    full = stages.count("full")
    assert stages == ["full"] * full + ["prefix"] * (PLACES - full)
    for match in answer.matches[:full]:
        assert match.score == pytest.approx(exact[match.name], abs=1e-5)
    for part in (answer.matches[:full], answer.matches[full:]):
        scores = [match.score for match in part]
        assert None not in scores
        assert scores == sorted(scores, reverse=True)
    if margin == 1e9:
        assert full == PLACES
        assert [match.name for match in answer.matches] == sorted(exact, key=lambda name: -exact[name])
    elif margin == 0.0:
        assert full == 1 if batch == 32 else 1 <= full <= -(-PLACES // batch)


def test_dropped_candidates_carry_their_prediction(map_: Map, model: Model, calibrated: Cascade) -> None:
    query = draw_scene(2, 9, SIZE)
    first, second = calibrated.looks
    features = model.encode([query])
    names = {record.name: row for row, record in enumerate(map_.records)}
    for margins, look in (((0.0, 1e9), first), ((1e9, 0.0), second)):
        looks = [dataclasses.replace(each, margin=most) for each, most in zip(calibrated.looks, margins, strict=True)]
        cascade = dataclasses.replace(calibrated, similarity_margin=None, looks=looks)
        dropped = [match for match in recognize(map_, model, query, cascade).matches if match.stage == "prefix"]
        assert dropped
        for match in dropped:
            tokens = map_.read_tokens([names[match.name]])
            outputs = {LOOK: model.look, PREFIX: lambda *at: model.prefix(*at).summaries}[look.graph](
                features.tokens, tokens
            )
            predicted = look.predict(outputs, np.array([match.similarity], np.float32))
            assert match.score == pytest.approx(float(predicted[0]), abs=2e-3)


def test_the_similarity_alone_leaves_candidates_uncompared(map_: Map, model: Model, calibrated: Cascade) -> None:
    query = draw_scene(2, 9, SIZE)
    everything = recognize(map_, model, query, with_margin(calibrated, 1e9))
    similarities = sorted((match.similarity for match in everything.matches), reverse=True)
    margin = similarities[0] - (similarities[2] + similarities[3]) / 2
    cascade = dataclasses.replace(with_margin(calibrated, 1e9), similarity_margin=margin)
    answer = recognize(map_, model, query, cascade)
    assert [match.stage for match in answer.matches] == ["full"] * 3 + ["descriptor"] * (PLACES - 3)
    assert [match.similarity for match in answer.matches[3:]] == similarities[3:]
    assert (answer.compared, answer.complete) == (PLACES, True)  # nothing was left out for want of time
    exact = {match.name: match.score for match in everything.matches}
    for match in answer.matches[:3]:
        assert match.score == pytest.approx(exact[match.name], abs=1e-5)


def test_the_full_winner_survives_where_the_head_knows_it(map_: Map, model: Model, calibrated: Cascade) -> None:
    """A head that was taught this query's own scores: the winner is among the one or two that go on."""
    query = draw_scene(5, 9, SIZE)
    features = model.encode([query])
    tokens = map_.read_tokens(range(PLACES))
    pairs = model.prefix(features.tokens, tokens)
    scores = model.suffix(pairs, np.arange(PLACES))
    similarities = map_.descriptors @ features.descriptors[0]
    read = look_inputs(pairs.summaries, similarities)
    rows = np.column_stack([read, np.ones(PLACES), scores]).astype(np.float64)
    heads, biases = ridge(rows.T @ rows, (1e-9,))
    look = Look(PREFIX, heads[0].astype(np.float32), float(biases[0]), 0.01, 1.0)
    taught = dataclasses.replace(calibrated, similarity_margin=None, looks=[look])
    np.testing.assert_allclose(look.predict(pairs.summaries, similarities), scores, atol=2e-3)
    answer = recognize(map_, Model(model.bundle, model.engines, 32), query, taught)
    assert answer.best.name == recognize(map_, model, query, None).best.name
    assert [match.stage for match in answer.matches].count("full") <= 2


def test_json_and_text_say_the_stage(map_: Map, model: Model, calibrated: Cascade) -> None:
    from pairvpr.runtime.outputs.writers import format_text

    answer = recognize(map_, model, draw_scene(1, 9, SIZE), with_margin(calibrated, 0.0))
    line = json.loads(answer.to_json())
    assert {match["stage"] for match in line["matches"]} == {"full", "prefix"}
    assert all(match["score"] is not None for match in line["matches"])
    first, *others, _ = format_text(answer, 10)
    assert "  score " in first
    assert "  predicted score " in others[-1]


# From the command line


def calibrate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["calibrate", "cascade", *map(str, arguments)])


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, (result.exit_code, result.output)
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == lines[0]
    assert result.stdout == ""
    for part in parts:
        assert part in lines[0]


def own(home: Path, folder: Path, name: str) -> Path:
    """A copy of the map or bundle that a test may change."""
    import shutil

    shutil.copytree(home / name, folder / name)
    return folder / name


def test_a_map_is_calibrated_shown_and_used(home: Path, tmp_path: Path) -> None:
    db = own(home, tmp_path, "map")
    done = calibrate("--db", db, "--images", home / "queries")
    assert done.exit_code == 0, done.stderr
    learnt = Cascade.find_in(Bundle.open(db / "model"))
    assert learnt is not None
    assert done.stdout == block(f"{db / 'model'}: cascade", cascade_rows(learnt)) + "\n"
    assert "95 % interval" in done.stdout
    assert "give 998 pictures or more with --images" in done.stderr
    runner = CliRunner()
    assert "are compared in full" in runner.invoke(main, ["map", "info", "--db", str(db)]).stdout
    info = json.loads(runner.invoke(main, ["map", "info", "--db", str(db), "--format", "jsonl"]).stdout)
    assert info["cascade"]["fitted"] + info["cascade"]["checked"] == QUERIES
    assert "head" not in info["cascade"]
    assert runner.invoke(main, ["map", "verify", "--db", str(db)]).exit_code == 0
    query = ["--db", str(db), "--query", str(home / "queries" / "p3.png"), "--format", "jsonl"]
    fast, exact = (runner.invoke(run_main, [*query, *more]) for more in ([], ["--exact"]))
    assert "cascade: " in fast.stderr
    assert "cascade: " not in exact.stderr
    assert {match["stage"] for match in json.loads(exact.stdout)["matches"]} == {"full"}
    with PlaceRecognizer.open(db, exact=True) as vpr, PlaceRecognizer.open(home / "map") as before:
        answers = [each.recognize(home / "queries" / "p3.png").matches for each in (vpr, before)]
        assert answers[0] == answers[1]


def test_a_bundle_is_calibrated_on_its_own(home: Path, tmp_path: Path) -> None:
    bundle = own(home, tmp_path, "bundle")
    done = calibrate("--model", bundle, "--images", home / "queries", "--format", "jsonl")
    assert done.exit_code == 0, done.stderr
    cascade = Cascade.find_in(Bundle.open(bundle))
    assert cascade is not None
    assert cascade.candidates == 5
    assert json.loads(done.stdout) == {"bundle": str(bundle), **cascade.figures()}
    assert Bundle.open(bundle).identity == Bundle.open(home / "bundle").identity


def test_maps_that_were_never_calibrated_say_so_and_answer(home: Path) -> None:
    runner = CliRunner()
    assert "not calibrated" in runner.invoke(main, ["map", "info", "--db", str(home / "map")]).stdout
    info = json.loads(runner.invoke(main, ["map", "info", "--db", str(home / "map"), "--format", "jsonl"]).stdout)
    assert info["cascade"] is None
    with PlaceRecognizer.open(home / "map") as vpr:
        assert {match.stage for match in vpr.recognize(draw_scene(0, 5, SIZE)).matches} == {"full"}


def test_exact_answers_need_no_sound_cascade(home: Path, tmp_path: Path, calibrated: Cascade) -> None:
    db = own(home, tmp_path, "map")
    Bundle.open(db / "model").store_calibration(KEY, {**calibrated.to_json(), "identity": "1" * 64})
    query = ["--db", str(db), "--query", str(home / "queries" / "p0.png")]
    assert_one_line(CliRunner().invoke(run_main, query), "calibrated for model 111111111111", "calibrate again")
    assert CliRunner().invoke(run_main, [*query, "--exact"]).exit_code == 0
    assert CliRunner().invoke(run_main, [*query, "--no-rerank"]).exit_code == 0


def test_what_cannot_be_calibrated(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, db = own(home, tmp_path, "bundle"), own(home, tmp_path, "map")
    before = (bundle / FILE).read_bytes(), (db / "model" / FILE).read_bytes()
    pictures = home / "queries"
    assert_one_line(calibrate("--images", pictures), "--model BUNDLE or --db MAP")
    assert_one_line(calibrate("--images", pictures, "--model", bundle, "--db", db), "--model BUNDLE or --db MAP")
    assert_one_line(calibrate("--model", bundle), "--images")
    (tmp_path / "none").mkdir()
    assert_one_line(calibrate("--db", db, "--images", tmp_path / "none"), "holds no pictures")
    assert_one_line(calibrate("--model", bundle, "--images", tmp_path / "nowhere"), "is not a file, folder")
    assert_one_line(calibrate("--db", db, "--images", home / "db"), f"{PLACES} usable pictures", "at least 40")
    assert_one_line(calibrate("--model", tmp_path / "none", "--images", pictures), "no model bundle there")
    assert_one_line(calibrate("--db", tmp_path / "none", "--images", pictures), "holds no map")

    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pairvpr.runtime.bundle.tempfile.TemporaryFile", refuse)
    for what in (("--model", bundle), ("--db", db)):
        assert_one_line(calibrate(*what, "--images", pictures), "cannot be written (Read-only file system)")
    assert ((bundle / FILE).read_bytes(), (db / "model" / FILE).read_bytes()) == before


def test_pictures_that_cannot_be_read_are_too_few(home: Path, tmp_path: Path, map_: Map, model: Model) -> None:
    for number in range(MIN_PICTURES):
        (tmp_path / f"{number}.jpg").write_bytes(b"broken")
    with pytest.raises(SourceError, match="0 usable pictures"):
        calibrate_cascade(map_, model, tmp_path, quiet)
    with (
        pytest.raises(SourceError, match="none of its 40 pictures could be read"),
        temporary_map(tmp_path, model, quiet),
    ):
        pass


def test_a_map_with_nothing_to_drop(home: Path, tmp_path: Path, model: Model) -> None:
    (tmp_path / "two").mkdir()
    for place in range(2):
        Image.fromarray(draw_scene(place, 0, SIZE)).save(tmp_path / "two" / f"{place}.png")
    add_pictures(tmp_path / "two", tmp_path / "map", model, create=True)
    with (
        Map.open(tmp_path / "map") as small,
        pytest.raises(MapError, match="2 pictures has no candidates to drop"),
    ):
        calibrate_cascade(small, model, home / "queries", quiet)


def test_evaluation_runs_both_ways(home: Path, tmp_path: Path, model: Model, calibrated: Cascade) -> None:
    for folder, visit in (("database", 0), ("queries", 9)):
        (tmp_path / folder).mkdir()
        for place in range(PLACES):
            Image.fromarray(draw_scene(place, visit, SIZE)).save(tmp_path / folder / f"p{place}.png")
    benchmark = load_folders(tmp_path / "database", tmp_path / "queries", 0)
    stored = with_margin(calibrated, 0.0).to_json()
    bundle = Bundle(model.bundle.path, dataclasses.replace(model.bundle.info, calibration={KEY: stored}))
    both = Model(bundle, model.engines, 32)
    fast, exact = (evaluate(benchmark, both, exact=exact, work_dir=tmp_path / "work") for exact in (False, True))
    assert exact.cascade is None
    assert np.isfinite(exact.scores[:, :5]).all()
    assert np.isfinite(fast.scores[:, 0]).all()
    assert np.isnan(fast.scores[:, 1:]).all()  # predictions are no scores
    assert sorted(fast.re_ranked[0]) == sorted(exact.re_ranked[0])
    assert f"cascade: {fast.cascade}" in summary(fast)
    assert "cascade" not in summary(exact)
    assert results(fast, fast.figures(), {})["cascade"]["looks"][0]["margin"] == 0
    assert results(exact, exact.figures(), {})["cascade"] is None
