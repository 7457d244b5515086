"""Run the shards of a fleet as actors of a Ray cluster. No other module imports Ray."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Ray's workers run at nice 15 otherwise, behind every other program.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import numpy.typing as npt
import ray
import ray.exceptions
import ray.util
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pairvpr.errors import EngineError, PairVPRError, one_line
from pairvpr.runtime.features import Features
from pairvpr.runtime.fleet.index import FleetIndex, ShardSetting
from pairvpr.runtime.fleet.shard import Left, Ranked, Rows, Shard
from pairvpr.runtime.fleet.storage import FolderStorage
from pairvpr.runtime.fleet.tiles import deal_one, find_owners, open_tiles
from pairvpr.runtime.fleet.version import Version, read_version
from pairvpr.runtime.map import Map
from pairvpr.runtime.recognizer_parts import load_parts
from pairvpr.runtime.search import Found

log = logging.getLogger(__name__)

LOCAL = "local"
CONNECT = 10.0
"""Seconds to wait for the head of a cluster."""
ROOM = 30.0
"""Seconds to wait for free CPUs."""
START = 600.0
"""Seconds in which a shard must have opened its segments."""
PATIENCE = 60.0
"""Seconds to wait for an answer without a budget. A killed shard is there again before."""
GRACE = 0.1
"""Seconds to wait for a shard beyond a budget: at most one batch ends late."""
_KEPT = 2  # versions that a shard keeps open: the one in use and the one before


class Worker:
    """One shard in a process of its own. It opens a version when it is first asked for it."""

    def __init__(self, fleet: str, part: int, parts: int, how: ShardSetting) -> None:
        """Stand for part `part` of `parts` of the fleet in a folder."""
        self._path, self._part, self._parts, self._how = Path(fleet), part, parts, how
        self._open: dict[tuple[int, str], Shard] = {}

    def prepare(self, version: tuple[int, str]) -> None:
        """Open a version, given by number and sha256. Raises MapError, BundleError and EngineError."""
        if version in self._open:
            return
        how = self._how
        map_ = open_tiles(self._path, read_version(FolderStorage(self._path), *version))
        try:
            parts = load_parts(map_, how.setting, how.model, None, how.rerank, how.model_digest)
            held, rows = deal_one(map_, self._parts, self._part)
        finally:
            map_.close()
        while len(self._open) >= _KEPT:
            self._open.pop(min(self._open)).close()
        self._open[version] = Shard(held, rows, parts.model, parts.cascade, how.strict)

    def search(
        self, version: tuple[int, str], descriptor: npt.NDArray[np.float32], k: int, among: Rows | None
    ) -> Found:
        """Search this part of a version, see `Shard.search`."""
        self.prepare(version)
        return self._open[version].search(descriptor, k, among)

    def rank(self, version: tuple[int, str], query: Features, rows: Rows, budget_ms: float | None) -> Ranked:
        """Compare in this part of a version, see `Shard.rank`."""
        self.prepare(version)
        return self._open[version].rank(query, rows, budget_ms)


class Cluster:
    """The actors of a fleet's shards. They start again by themselves after a crash."""

    def __init__(self, address: str, fleet: Path, parts: int, how: ShardSetting) -> None:
        """Reserve a CPU for each part in a cluster, and start its actor there.

        address: "local" starts a cluster in this computer for this process. "auto" and HOST:PORT join one.
        Raises EngineError if no cluster answers or it has no room within ROOM seconds.
        """
        self._own = address == LOCAL
        _join(address, parts)
        self._group = None
        try:
            self._group = _reserve(parts, how.setting.device in ("cuda", "tensorrt"))
            actor = ray.remote(Worker)
            self.actors: list[Any] = []
            for part in range(parts):
                place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=part)
                options = {"num_cpus": 1, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": place}
                if "GPU" in self._group.bundle_specs[part]:
                    options["num_gpus"] = 1
                self.actors.append(actor.options(**options).remote(str(fleet.absolute()), part, parts, how))
        except BaseException:
            self.close()
            raise

    def open(self, map_: Map, version: Version) -> FleetIndex:
        """Open a version in every shard. Raises the errors of `Worker.prepare`, and EngineError after START seconds."""
        name = (version.number, version.sha256)
        calls = {part: actor.prepare.remote(name) for part, actor in enumerate(self.actors)}
        _, faults = _collect(calls, START)
        for part, fault in faults.items():
            raise EngineError(f"shard {part} could not open {map_.path} ({fault}): see the cluster's log")
        return FleetIndex(RayShards(self, name), find_owners(map_, len(self.actors)), version.number)

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        for actor in getattr(self, "actors", []):
            ray.kill(actor)
        if self._group is not None:
            ray.util.remove_placement_group(self._group)
            self._group = None
        self.actors = []
        if self._own:
            ray.shutdown()


class RayShards:
    """Call the shards of a version in a cluster, all at the same time."""

    parallel = True

    def __init__(self, cluster: Cluster, version: tuple[int, str]) -> None:
        self.cluster, self._version = cluster, version

    def search(
        self, descriptor: npt.NDArray[np.float32], k: int, among: Mapping[int, Rows | None], left: Left | None
    ) -> dict[int, Found]:
        """Search the shards, see `Shards.search`."""
        return self._ask(among, left, lambda actor, rows: actor.search.remote(self._version, descriptor, k, rows))

    def rank(self, query: Features, rows: Mapping[int, Rows], left: Left | None) -> dict[int, Ranked]:
        """Compare in the shards. Each has all the time that is left."""
        budget = None if left is None else left()
        return self._ask(rows, left, lambda actor, here: actor.rank.remote(self._version, query, here, budget))

    def close(self) -> None:
        """Leave the cluster as it is. Its shards close old versions by themselves."""

    def _ask(
        self, wanted: Mapping[int, Rows | None], left: Left | None, call: Callable[[Any, Any], Any]
    ) -> dict[int, Any]:
        calls = {part: call(self.cluster.actors[part], rows) for part, rows in wanted.items()}
        results, faults = _collect(calls, PATIENCE if left is None else max(0.0, left() / 1e3) + GRACE)
        for part, fault in faults.items():
            log.warning("shard %d: %s", part, fault)
        return results


def run_tasks(address: str, cpus: int, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call a function with each of some arguments in tasks of a cluster. A task whose process dies runs again.

    cpus: number of CPUs of a cluster that is started here.
    Return the results in order. Raises the PairVPRError of a task, and EngineError if no cluster answers.
    """
    _join(address, cpus)
    try:
        if not ray.cluster_resources().get("CPU"):
            raise EngineError(f"the cluster at {address!r} has no CPU: add nodes to it")
        task = ray.remote(function).options(num_cpus=1, max_retries=-1)
        results, faults = _collect({i: task.remote(*each) for i, each in enumerate(arguments)}, None)
        for fault in faults.values():
            raise EngineError(f"a task was lost ({fault}): run the command again to go on")
        return [results[i] for i in range(len(arguments))]
    finally:
        ray.shutdown()


def _collect(calls: Mapping[int, Any], seconds: float | None) -> tuple[dict[int, Any], dict[int, str]]:
    """Return the results of the calls that end within `seconds`, and a reason for each of the others, by its shard.

    seconds: None waits for all calls.
    Calls that are late are cancelled. Raises the PairVPRError of a shard.
    """
    done, late = ray.wait(list(calls.values()), num_returns=len(calls), timeout=seconds) if calls else ([], [])
    for call in late:  # otherwise a shard that comes back would work through them first
        with suppress(ray.exceptions.RayError, ValueError):
            ray.cancel(call)
    results, faults = {}, {}
    for part, call in calls.items():
        try:
            if call in done:
                results[part] = ray.get(call)
            else:
                faults[part] = f"no answer within {seconds:.1f} s"
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PairVPRError):
                raise type(error.cause)(str(error.cause)) from error
            raise
        except ray.exceptions.RayError as error:  # the shard is lost
            faults[part] = one_line(error)
    return results, faults


def _join(address: str, parts: int) -> None:
    """Start a cluster in this computer, or join one. Raises EngineError."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    if ray.is_initialized():
        raise EngineError("this process is in a Ray cluster already: leave it with ray.shutdown() first")
    try:
        if address not in (LOCAL, "auto"):
            _check_port(address)
        if address == LOCAL:
            # Its processes would listen at the computer's own address otherwise.
            ray.init(address=LOCAL, num_cpus=parts, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        else:
            # The nodes of a cluster on this computer alone must have the same address.
            if address.startswith("127.0.0.1:"):
                quiet["_node_ip_address"] = "127.0.0.1"
            ray.init(address=address, **quiet)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise EngineError(
            f"no Ray cluster answers at {address!r} ({one_line(error, 200)}): start one with `ray start --head`, or "
            "give --address local"
        ) from error


def _check_port(address: str) -> None:
    """Raise OSError or ValueError unless something listens at HOST:PORT. Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), CONNECT).close()


def _reserve(parts: int, gpus: bool) -> Any:
    """Reserve room for the shards, on as many nodes as there are. Raises EngineError."""
    bundle = {"CPU": 1, "GPU": 1} if gpus else {"CPU": 1}
    group = ray.util.placement_group([bundle] * parts, strategy="SPREAD")
    if not group.wait(ROOM):
        free = ray.available_resources()
        ray.util.remove_placement_group(group)
        needs = " and ".join(f"{parts} {name}s" for name in bundle)
        has = " and ".join(f"{free.get(name, 0):g} {name}s" for name in bundle)
        raise EngineError(f"the cluster has no room: {parts} shards need {needs}, free are {has}; give fewer --shards")
    return group
