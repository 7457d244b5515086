"""Shards in a Ray cluster give the answers of one map, also while their processes are killed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pairvpr.errors import EngineError, MapError
from pairvpr.runtime import PlaceRecognizer
from pairvpr.runtime.answer import ShardCount
from pairvpr.runtime.fleet.publishing import adopt
from pairvpr.runtime.fleet.recognizer import FleetRecognizer
from tests.runtime.fleet.clusters import Nodes
from tests.runtime.fleet.fleets import build
from tests.runtime.fleet.test_recognizer import QUERIES, fill, plain

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "pairvpr[fleet]"'
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    fill(folder)
    return folder


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = Nodes()
    try:
        cluster.start_all(3)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def address(nodes: Nodes) -> str:
    return nodes.address


@pytest.fixture(autouse=True)
def leave() -> Iterator[None]:
    yield
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()


def ask_actors(recognizer: FleetRecognizer, question: Callable[[object], object]) -> list:
    """Return the answers of all actors, those of a shard's replicas one after the other."""
    import ray

    actors = [actor for part in recognizer._opener.parts for actor in part.actors]  # type: ignore[attr-defined]
    return ray.get([actor.__ray_call__.remote(question) for actor in actors])


def pids(recognizer: FleetRecognizer) -> list[int]:
    return ask_actors(recognizer, lambda self: os.getpid())


def test_ray_is_named_if_it_is_missing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("cluster", "replicas", "ray_api"):
        monkeypatch.delitem(sys.modules, f"pairvpr.runtime.fleet.{name}", raising=False)
    with pytest.raises(EngineError, match=r'--address needs Ray .*pip install "pairvpr\[fleet\]"'):
        FleetRecognizer.open(home / "fleet", address="local")


def test_replicas_need_a_cluster(home: Path) -> None:
    for replicas, address in ((0, "local"), (2, None)):
        with pytest.raises(EngineError, match=r"replicas: give 1 or more with --replicas, and --address"):
            FleetRecognizer.open(home / "fleet", replicas=replicas, address=address)


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("top_k", [20, 100])
def test_answers_are_those_of_one_map(home: Path, address: str, top_k: int) -> None:
    with PlaceRecognizer.open(home / "a", top_k=top_k, batch_size=1) as one:
        expected = [one.recognize(query) for query in QUERIES]
    with FleetRecognizer.open(
        home / "fleet", address=address, shards=3, top_k=top_k, batch_size=1, device="cpu"
    ) as fleet:
        answers = [fleet.recognize(query) for query in QUERIES]
    assert list(map(plain, answers)) == list(map(plain, expected))
    assert {answer.shards for answer in answers} == {ShardCount(3, 3, 2)}


@needs_ray
@pytest.mark.slow
def test_killed_shards_cost_no_answer_and_give_no_wrong_one(home: Path, address: str) -> None:
    with PlaceRecognizer.open(home / "a", top_k=20, batch_size=1) as one:
        expected = [plain(one.recognize(query)) for query in QUERIES]
    with FleetRecognizer.open(home / "fleet", address=address, shards=3, top_k=20, batch_size=1) as fleet:
        killed = []
        for asked in range(18):
            if asked % 6 == 0:
                killed.append(pids(fleet)[1])
                threading.Timer(0.1, os.kill, (killed[-1], signal.SIGKILL)).start()
            assert plain(fleet.recognize(QUERIES[asked % len(QUERIES)])) == expected[asked % len(QUERIES)]
        assert set(killed).isdisjoint(pids(fleet))


@needs_ray
@pytest.mark.slow
def test_with_a_budget_an_answer_without_a_shard_says_so(home: Path, address: str) -> None:
    with FleetRecognizer.open(home / "fleet", address=address, shards=3, top_k=20, budget_ms=2000) as fleet:
        whole = fleet.recognize(QUERIES[0])
        assert whole.complete
        stopped = pids(fleet)[1]
        os.kill(stopped, signal.SIGSTOP)
        began = time.monotonic()
        answer = fleet.recognize(QUERIES[0])
        assert time.monotonic() - began < 10
        assert (answer.complete, answer.accepted, answer.shards) == (False, None, ShardCount(3, 2, 2))
        assert answer.reason == "incomplete: no answer from shard 1"
        assert len(answer.matches) == 20
        os.kill(stopped, signal.SIGKILL)
        while not (answer := fleet.recognize(QUERIES[0])).complete:
            assert time.monotonic() - began < 60
        assert {match.name for match in answer.matches} == {match.name for match in whole.matches}


@needs_ray
@pytest.mark.slow
def test_replicas_are_on_different_nodes(home: Path, address: str) -> None:
    import ray

    with FleetRecognizer.open(home / "fleet", address=address, shards=1, replicas=3, top_k=20) as fleet:
        found = ask_actors(fleet, lambda self: ray.get_runtime_context().get_node_id())
        assert len(set(found)) == 3
        assert fleet.recognize(QUERIES[0]).shards == ShardCount(1, 1, 2)


@needs_ray
@pytest.mark.slow
def test_a_replica_answers_for_a_killed_one(home: Path, address: str) -> None:
    """In time, although the killed one is not there again before."""
    with PlaceRecognizer.open(home / "a", top_k=20, batch_size=1) as one:
        expected = [plain(one.recognize(query)) for query in QUERIES]
    with FleetRecognizer.open(
        home / "fleet", address=address, shards=1, replicas=3, top_k=20, batch_size=1, budget_ms=20_000
    ) as fleet:
        killed: list[int] = []
        for asked in range(30):
            if asked % 6 == 3:
                killed.append(pids(fleet)[len(killed) % 3])
                threading.Timer(0.02, os.kill, (killed[-1], signal.SIGKILL)).start()
            answer = fleet.recognize(QUERIES[asked % len(QUERIES)])
            assert plain(answer) == expected[asked % len(QUERIES)]
        assert set(killed).isdisjoint(pids(fleet))


@needs_ray
@pytest.mark.slow
def test_a_replica_answers_for_one_that_stands_still(home: Path, address: str) -> None:
    with FleetRecognizer.open(
        home / "fleet", address=address, shards=1, replicas=2, top_k=20, budget_ms=10_000
    ) as fleet:
        whole = fleet.recognize(QUERIES[0])
        stopped = pids(fleet)[0]
        os.kill(stopped, signal.SIGSTOP)
        times = []
        for _ in range(4):
            began = time.monotonic()
            answer = fleet.recognize(QUERIES[0])
            times.append(time.monotonic() - began)
            assert (answer.complete, answer.shards) == (True, ShardCount(1, 1, 2))
            assert {match.name for match in answer.matches} == {match.name for match in whole.matches}
        assert sum(spent > 2.5 for spent in times) == 1  # the one that found out
        os.kill(stopped, signal.SIGCONT)


@needs_ray
@pytest.mark.slow
def test_no_room_is_said(home: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pairvpr.runtime.fleet import ray_api

    assert ray_api.ROOM <= 30
    monkeypatch.setattr(ray_api, "ROOM", 3.0)
    with pytest.raises(EngineError, match=r"the cluster has no room: 5 shards need 5 CPUs, free are .* fewer --shards"):
        FleetRecognizer.open(home / "fleet", address=address, shards=5)


@needs_ray
@pytest.mark.slow
def test_no_cluster_is_said(home: Path) -> None:
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"no Ray cluster answers at '127.0.0.1:1'"):
        FleetRecognizer.open(home / "fleet", address="127.0.0.1:1", shards=2)
    assert time.monotonic() - began < 30


@needs_ray
def test_a_cluster_that_does_not_start_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def fail(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nSee the logs")  # as Ray does

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(EngineError, match=r"Ray does not start on this computer \(The current .* logs\): run the"):
        FleetRecognizer.open(home / "fleet", address="local", shards=2)


@needs_ray
@pytest.mark.slow
def test_a_damaged_tile_is_named_by_its_shard(home: Path, tmp_path: Path, address: str) -> None:
    shutil.copytree(home / "fleet", tmp_path / "fleet")
    segment = sorted((tmp_path / "fleet" / "tiles").rglob("*.safetensors"))[0]
    content = bytearray(segment.read_bytes())
    content[int.from_bytes(content[:8], "little") + 12] ^= 1
    segment.write_bytes(content)
    with pytest.raises(MapError, match=f"{segment.name} is damaged"):
        FleetRecognizer.open(tmp_path / "fleet", address=address, shards=3)


@needs_ray
@pytest.mark.slow
def test_a_killed_node_is_replaced(home: Path, nodes: Nodes) -> None:
    with FleetRecognizer.open(home / "fleet", address=nodes.address, shards=3, top_k=20, budget_ms=3000) as fleet:
        whole = fleet.recognize(QUERIES[0])
        assert whole.complete
        nodes.kill(nodes.started[-1])
        began = time.monotonic()
        nodes.add()
        partial = 0
        while not (answer := fleet.recognize(QUERIES[0])).complete:
            assert answer.accepted is None
            assert answer.shards is not None
            partial += answer.shards.answered < 3
            assert (answer.shards.answered == 3) == (not answer.reason.startswith("incomplete: no answer from shard"))
            assert time.monotonic() - began < 120
        assert partial > 0
        assert {match.name for match in answer.matches} == {match.name for match in whole.matches}


# The last test: Ray loses actors in a process that has been in a cluster of its own before.
@needs_ray
@pytest.mark.slow
def test_a_new_version_is_taken_over_on_this_computer(tmp_path: Path) -> None:
    adopt([build(tmp_path / "a", range(12))], tmp_path / "fleet")
    with FleetRecognizer.open(tmp_path / "fleet", address="local", shards=2, top_k=12) as fleet:
        assert fleet.recognize(QUERIES[0]).shards == ShardCount(2, 2, 1)
        adopt([build(tmp_path / "b", range(3), drive="b")], tmp_path / "fleet")
        assert fleet.refresh() is True
        answer = fleet.recognize(QUERIES[0])
        assert (answer.shards, len(fleet.map)) == (ShardCount(2, 2, 2), 15)
    with FleetRecognizer.open(tmp_path / "fleet", shards=2, top_k=12) as here:
        assert [match.name for match in answer.matches] == [m.name for m in here.recognize(QUERIES[0]).matches]
