"""Shards in a Ray cluster give the answers of one map, also while their processes are killed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pairvpr.errors import EngineError, MapError
from pairvpr.runtime import PlaceRecognizer
from pairvpr.runtime.answer import ShardCount
from pairvpr.runtime.fleet.publishing import adopt
from pairvpr.runtime.fleet.recognizer import FleetRecognizer
from tests.runtime.fleet.fleets import build
from tests.runtime.fleet.test_recognizer import QUERIES, fill, plain

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "pairvpr[fleet]"'
)


ENVIRONMENT = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}  # on the loopback interface


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    fill(folder)
    return folder


class Nodes:
    """A cluster of nodes with a CPU each, all on this computer."""

    def __init__(self) -> None:
        os.environ.update(ENVIRONMENT)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> None:
        """Start a node, in a session of its own."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, "--num-cpus=1", "--block"]
        command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        self.started.append(subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL))

    def add(self) -> None:
        self.start(f"--address={self.address}")

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a node with all of its processes."""
        for pid in descendants(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()

    def close(self) -> None:
        for each in self.started:
            each.terminate()
        for each in self.started:
            with suppress(subprocess.TimeoutExpired):
                each.wait(20)
            self.kill(each)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = Nodes()
    try:
        cluster.start("--head", f"--port={cluster.port}", "--include-dashboard=false")
        wait_for(cluster.address, 1)
        for count in (2, 3):
            cluster.add()
            wait_for(cluster.address, count)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def address(nodes: Nodes) -> str:
    return nodes.address


def descendants(pid: int) -> list[int]:
    """Return the ids of the processes below a process."""
    parents = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal():
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, above in parents.items() if above == parent]
    return found[1:]


def wait_for(address: str, nodes: int) -> None:
    """Wait until a cluster has this number of nodes."""
    script = """
import sys, time, ray
ray.init(address=sys.argv[1], _node_ip_address="127.0.0.1", logging_level="error", log_to_driver=False)
while ray.cluster_resources().get("CPU", 0) < int(sys.argv[2]):
    time.sleep(0.2)
"""
    ends = time.monotonic() + 90
    while time.monotonic() < ends:
        try:
            subprocess.run(
                [sys.executable, "-c", script, address, str(nodes)], check=True, timeout=60, capture_output=True
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"no cluster of {nodes} nodes at {address}")


@pytest.fixture(autouse=True)
def leave() -> Iterator[None]:
    yield
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()


def pids(recognizer: FleetRecognizer) -> list[int]:
    import ray

    actors = recognizer._opener.actors  # type: ignore[attr-defined]
    return ray.get([actor.__ray_call__.remote(lambda self: os.getpid()) for actor in actors])


def test_ray_is_named_if_it_is_missing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "pairvpr.runtime.fleet.cluster", raising=False)
    with pytest.raises(EngineError, match=r'--address needs Ray .*pip install "pairvpr\[fleet\]"'):
        FleetRecognizer.open(home / "fleet", address="local")


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
        stop = threading.Event()

        def kill() -> None:
            while not stop.wait(4.0):
                os.kill(pids(fleet)[1], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            ends = time.monotonic() + 15
            asked = 0
            while time.monotonic() < ends:
                answer = fleet.recognize(QUERIES[asked % len(QUERIES)])
                assert plain(answer) == expected[asked % len(QUERIES)]
                asked += 1
        finally:
            stop.set()
            killer.join()
    assert asked > 10


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
def test_no_room_is_said(home: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pairvpr.runtime.fleet import cluster

    assert cluster.ROOM <= 30
    monkeypatch.setattr(cluster, "ROOM", 3.0)
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
