"""The answers of a fleet are those of one map of its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr.cli.run import main
from pairvpr.errors import EngineError, MapError
from pairvpr.runtime import Gps, PlaceRecognizer, Prior
from pairvpr.runtime.answer import Recognition, ShardCount
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.calibrated.acceptance import KEY, ScoreSetup
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.calibrated.judge import ADDED
from pairvpr.runtime.features import Features
from pairvpr.runtime.fleet.index import FleetIndex, LocalOpener
from pairvpr.runtime.fleet.publishing import adopt
from pairvpr.runtime.fleet.pulling import pull
from pairvpr.runtime.fleet.recognizer import FleetRecognizer
from pairvpr.runtime.fleet.shard import LocalShards, Ranked, Rows, Shard
from pairvpr.runtime.map import merge_maps
from tests.runtime.fleet.fleets import build, gps_of
from tests.runtime.outputs.ros_contract import acceptance
from tests.scenes import draw_scene

QUERIES = [draw_scene(place, 1, (96, 128)) for place in range(6)]


def fill(folder: Path) -> None:
    """Make a fleet of two maps, with pictures of equal features in different segments and tiles, and one map of all."""
    first = build(folder / "a", range(60))
    build(first, range(60, 75), same=7)
    second = build(folder / "b", range(40, 90), drive="b")
    build(second, range(90, 100), drive="b", same=7)
    adopt([first], folder / "fleet")
    adopt([second], folder / "fleet")
    merge_maps([second], first)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    fill(folder)
    return folder


def plain(answer: Recognition) -> tuple:
    return answer.matches, answer.accepted, answer.reason, answer.compared, answer.complete


@pytest.mark.parametrize("top_k", [20, 100])
def test_answers_are_those_of_one_map_in_every_bit(home: Path, top_k: int) -> None:
    """Pair by pair. In larger batches the last bits of a score depend on its place, see the next test."""
    with PlaceRecognizer.open(home / "a", top_k=top_k, batch_size=1) as one:
        expected = [one.recognize(query) for query in QUERIES[:3]]
        assert len({match.similarity for match in expected[0].matches}) < top_k or top_k == 20  # equal ones
    for shards in (1, 3, 4):
        with FleetRecognizer.open(home / "fleet", shards=shards, top_k=top_k, batch_size=1) as fleet:
            answers = [fleet.recognize(query) for query in QUERIES[:3]]
        assert list(map(plain, answers)) == list(map(plain, expected))
        assert {answer.shards for answer in answers} == {ShardCount(shards, shards, 2)}


@pytest.mark.parametrize("shards", [1, 4])
def test_answers_in_batches(home: Path, shards: int) -> None:
    with (
        PlaceRecognizer.open(home / "a", top_k=40) as one,
        FleetRecognizer.open(home / "fleet", shards=shards, top_k=40) as fleet,
    ):
        for query in QUERIES:
            expected, answer = one.recognize(query), fleet.recognize(query)
            found, wanted = ({match.name: match for match in each.matches} for each in (answer, expected))
            assert found.keys() == wanted.keys()
            assert all(found[name].similarity == wanted[name].similarity for name in found)
            scores = np.array([[found[name].score, wanted[name].score] for name in found])
            np.testing.assert_allclose(scores[:, 0], scores[:, 1], atol=1e-5)
            assert (answer.compared, answer.complete) == (40, True)
            assert answer.timings["rerank"] > 0


def test_descriptors_alone(home: Path) -> None:
    with (
        PlaceRecognizer.open(home / "a", top_k=100, rerank=False) as one,
        FleetRecognizer.open(home / "fleet", shards=5, top_k=100, rerank=False) as fleet,
    ):
        for query in QUERIES:
            assert plain(fleet.recognize(query)) == plain(one.recognize(query))


def test_named_pictures_and_rigs(home: Path) -> None:
    """Tracking searches named pictures, and a rig asks once for each camera."""
    named = Prior(pictures=frozenset({"a/001.jpg", "a/050.jpg", "b/080.jpg", "elsewhere.jpg"}))
    with (
        PlaceRecognizer.open(home / "a", top_k=20, batch_size=1) as one,
        FleetRecognizer.open(home / "fleet", shards=3, top_k=20, batch_size=1) as fleet,
    ):
        assert plain(fleet.recognize(QUERIES[0], named)) == plain(one.recognize(QUERIES[0], named))
        assert fleet.find_allowed(named).size == 3
        answer, expected = (each.recognize_rig(QUERIES[:2]) for each in (fleet, one))
        assert (answer.camera, list(map(plain, answer.cameras))) == (
            expected.camera,
            list(map(plain, expected.cameras)),
        )


def test_a_prior_asks_only_shards_that_have_such_pictures(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    search = LocalShards.search

    def count(self: LocalShards, descriptor: np.ndarray, k: int, among: dict[int, Rows | None], left: None) -> dict:
        asked.append(len(among))
        return search(self, descriptor, k, among, left)

    monkeypatch.setattr(LocalShards, "search", count)
    prior = Prior(gps_of(2), radius=150)
    with (
        PlaceRecognizer.open(home / "a", top_k=20, rerank=False) as one,
        FleetRecognizer.open(home / "fleet", shards=8, top_k=20, rerank=False) as fleet,
    ):
        answer = fleet.recognize(QUERIES[0], prior)
        assert plain(answer) == plain(one.recognize(QUERIES[0], prior))
        assert {match.name for match in answer.matches} == {f"a/00{number}.jpg" for number in (1, 2, 3)}
        assert (asked, answer.shards) == ([1], ShardCount(1, 1, 2))
        nowhere = fleet.recognize(QUERIES[0], Prior(Gps(0, 0), radius=10))
        assert nowhere.error is not None
        assert "no picture of the map is within" in nowhere.error


def test_a_budget_is_shared_by_the_number_of_candidates(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: dict[int, float | None] = {}
    rank = Shard.rank

    def note(self: Shard, query: Features, rows: Rows, budget_ms: float | None = None) -> Ranked:
        budgets[len(rows)] = budget_ms
        return rank(self, query, rows, None)

    monkeypatch.setattr(Shard, "rank", note)
    with FleetRecognizer.open(home / "fleet", shards=4, top_k=20) as fleet:
        assert isinstance(fleet.index, FleetIndex)
        shards, owners = fleet.index.shards, fleet.index.owners
        rows = {number: np.flatnonzero(owners == number)[:count] for number, count in ((0, 1), (1, 2), (3, 5))}
        left = iter([80.0, 70.0, 50.0])
        ranked = shards.rank(fleet.model.encode(QUERIES[:1]), rows, lambda: next(left))
        assert budgets == {1: 80 / 8, 2: 70 * 2 / 7, 5: 50}
        assert {number: found.ranking.compared for number, found in ranked.items()} == {0: 1, 1: 2, 3: 5}
        fleet.recognize(QUERIES[0])
        assert set(list(budgets.values())[3:]) <= {None}


class Missing(LocalShards):
    """Shards of which some do not answer one of the two rounds."""

    lost: tuple[int, ...] = ()
    lost_later: tuple[int, ...] = ()

    def search(self, descriptor, k, among, left) -> dict:
        return {n: found for n, found in super().search(descriptor, k, among, left).items() if n not in self.lost}

    def rank(self, query, rows, left) -> dict:
        return {n: ranked for n, ranked in super().rank(query, rows, left).items() if n not in self.lost_later}


def test_a_missing_shard_is_named(home: Path) -> None:
    with FleetRecognizer.open(home / "fleet", shards=4, top_k=40) as fleet:
        whole = fleet.recognize(QUERIES[0])
        index = fleet.index
        assert isinstance(index, FleetIndex)
        assert isinstance(index.shards, LocalShards)
        index.shards.__class__ = Missing
        index.shards.lost = (2,)
        answer = fleet.recognize(QUERIES[0])
        assert (answer.complete, answer.accepted, answer.shards) == (False, None, ShardCount(4, 3, 2))
        assert answer.reason == "incomplete: no answer from shard 2"
        rows = {record.name: row for row, record in enumerate(fleet.map.records)}
        assert {index.owners[rows[match.name]] for match in answer.matches} == {0, 1, 3}
        index.shards.lost, index.shards.lost_later = (), (1, 3)
        answer = fleet.recognize(QUERIES[0])
        assert (answer.complete, answer.accepted, answer.shards) == (False, None, ShardCount(4, 2, 2))
        assert answer.reason == "incomplete: no answer from shard 1, 3"
        assert {match.name for match in answer.matches} == {match.name for match in whole.matches}
        assert {match.stage for match in answer.matches} == {"full", "descriptor"}
        assert json.loads(answer.to_json())["shards"] == {"asked": 4, "answered": 2, "version": 2}
        index.shards.lost = (0, 1, 2, 3)
        with pytest.raises(MapError, match="no shard of the fleet answers"):
            fleet.recognize(QUERIES[0])


def test_a_published_version_is_taken_over(home: Path, tmp_path: Path) -> None:
    adopt([build(tmp_path / "a", range(12))], tmp_path / "fleet")
    with FleetRecognizer.open(tmp_path / "fleet", shards=2, top_k=12) as fleet:
        assert fleet.refresh() is False
        adopt([build(tmp_path / "b", range(3), drive="b")], tmp_path / "fleet")
        before = fleet.recognize(QUERIES[0])
        assert before.shards == ShardCount(2, 2, 1)
        assert fleet.refresh() is True
        assert len(fleet.map) == 15
        assert fleet.recognize(QUERIES[0]).shards == ShardCount(2, 2, 2)


def test_a_version_that_no_shard_can_open_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt([build(tmp_path / "a", range(12))], tmp_path / "fleet")

    def fail(*_: object) -> None:
        raise EngineError("shard 1 could not open it")

    with FleetRecognizer.open(tmp_path / "fleet", shards=2, top_k=12) as fleet:
        adopt([build(tmp_path / "b", range(3), drive="b")], tmp_path / "fleet")
        with monkeypatch.context() as patch:
            patch.setattr(LocalOpener, "open", fail)
            with pytest.raises(MapError, match="version 2 is not taken over yet: shard 1 could not open it"):
                fleet.refresh()
        assert fleet.recognize(QUERIES[0]).shards == ShardCount(2, 2, 1)
        assert fleet.refresh() is True
        assert fleet.recognize(QUERIES[0]).shards == ShardCount(2, 2, 2)


def calibrate(map_path: Path, top_k: int) -> None:
    """Store a threshold that accepts every answer of a map."""
    with PlaceRecognizer.open(map_path, top_k=top_k) as one:
        setup = ScoreSetup.from_map(one.map, top_k, Cascade.find_in(one.model.bundle))
        stored = {**acceptance(-1e6).to_json(), "identity": one.map.identity, "setup": vars(setup)}
        Bundle.open(one.map.model_path).store_calibration(KEY, stored)


@pytest.mark.parametrize("whole", [False, True])
def test_a_threshold_covers_the_tiles_that_were_calibrated(tmp_path: Path, whole: bool) -> None:
    """They are those of the first map, or of the whole fleet as it was pulled."""
    first, fleet, model = build(tmp_path / "a", range(30)), tmp_path / "fleet", None
    if whole:
        adopt([first], fleet)
        pull(fleet, tmp_path / "all")
        calibrate(tmp_path / "all", 3)
        model = tmp_path / "all" / "model"
    else:
        calibrate(first, 3)
        adopt([first], fleet)
    with FleetRecognizer.open(fleet, shards=3, model=model) as recognizer:
        before = [recognizer.recognize(query) for query in QUERIES]
        assert {answer.accepted for answer in before} == {True}
        adopt([build(tmp_path / "b", range(30, 45), drive="b")], fleet)
        assert recognizer.refresh()
        after = [recognizer.recognize(query) for query in QUERIES]
    added = [any(match.name.startswith("b/") for match in answer.matches) for answer in after]
    assert 0 < sum(added) < len(added)
    for newer, answer, earlier in zip(added, after, before, strict=True):
        if newer:
            assert (answer.accepted, answer.reason) == (None, ADDED)
        else:
            assert (answer.accepted, answer.matches) == (True, earlier.matches)


def test_a_damaged_tile_is_refused_by_name(tmp_path: Path) -> None:
    adopt([build(tmp_path / "a", range(12))], tmp_path / "fleet")
    segment = sorted((tmp_path / "fleet" / "tiles").rglob("*.safetensors"))[0]
    content = bytearray(segment.read_bytes())
    content[int.from_bytes(content[:8], "little") + 12] ^= 1
    segment.unlink()
    segment.write_bytes(content)
    with pytest.raises(MapError, match=f"{segment.name} is damaged"):
        FleetRecognizer.open(tmp_path / "fleet")
    segment.unlink()
    with pytest.raises(MapError, match=f"{segment.name} is missing"):
        FleetRecognizer.open(tmp_path / "fleet")


def test_the_command(home: Path, tmp_path: Path) -> None:
    Image.fromarray(QUERIES[0]).save(tmp_path / "q.png")
    arguments = ["--query", str(tmp_path / "q.png"), "--format", "jsonl", "--no-rerank"]
    results = [
        CliRunner().invoke(main, [option, str(home / name), *arguments])
        for option, name in (("--db", "a"), ("--fleet", "fleet"))
    ]
    one, fleet = (json.loads(result.stdout) for result in results)
    assert fleet.pop("shards") == {"asked": 1, "answered": 1, "version": 2}
    assert {**fleet, "timings": 0} == {**one, "timings": 0}
    for wrong in ([], ["--db", "x", "--fleet", "y"]):
        result = CliRunner().invoke(main, [*wrong, *arguments])
        assert (result.exit_code, "give either --db, a map, or --fleet" in result.stderr) == (2, True)
    result = CliRunner().invoke(main, ["--fleet", str(home / "a"), *arguments])
    assert (result.exit_code, "holds no fleet" in result.stderr) == (2, True)
