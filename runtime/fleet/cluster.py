"""Run the shards of a fleet as actors of a Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError
from pairvpr.runtime.features import Features
from pairvpr.runtime.fleet import ray_api
from pairvpr.runtime.fleet.index import FleetIndex, ShardSetting
from pairvpr.runtime.fleet.replicas import ReplicaCall, Replicas, collect_first
from pairvpr.runtime.fleet.shard import Left, Ranked, Rows, Shard
from pairvpr.runtime.fleet.storage import FolderStorage
from pairvpr.runtime.fleet.tiles import deal_one, find_owners, open_tiles
from pairvpr.runtime.fleet.version import Version, read_version
from pairvpr.runtime.map import Map
from pairvpr.runtime.recognizer_parts import load_parts
from pairvpr.runtime.search import Found

log = logging.getLogger(__name__)

START = 600.0
"""Seconds in which a shard must have opened its segments."""
PATIENCE = 60.0
"""Seconds to wait for an answer without a budget. A killed shard is there again before."""
LATE = 5.0
"""Seconds after which a call goes to another replica, too. With a budget it is half of the rest."""
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
    """The actors of a fleet's shards. They start again by themselves after a crash.

    parts: the replicas of each shard.
    """

    def __init__(self, address: str, fleet: Path, parts: int, replicas: int, how: ShardSetting) -> None:
        """Reserve a CPU for each replica of each part in a cluster, and start its actor there.

        The replicas of a part are on different nodes if there are enough.

        address: "local" starts a cluster in this computer for this process. "auto" and HOST:PORT join one.
        Raises EngineError if no cluster answers or it has no room in time.
        """
        self._own = address == ray_api.LOCAL
        ray_api.join(address, parts * replicas)
        self._room: ray_api.Room | None = None
        self.parts: list[Replicas] = []
        try:
            self._room = room = ray_api.Room(parts * replicas, how.setting.device in ("cuda", "tensorrt"))
            for part in range(parts):
                arguments = (str(fleet.absolute()), part, parts, how)
                self.parts.append(
                    Replicas([room.start(place, Worker, *arguments) for place in room.places[part::parts]])
                )
        except BaseException:
            self.close()
            raise

    def open(self, map_: Map, version: Version) -> FleetIndex:
        """Open a version in every shard. Raises the errors of `Worker.prepare`, and EngineError after START seconds."""
        name = (version.number, version.sha256)
        actors = [(part, actor) for part, each in enumerate(self.parts) for actor in each.actors]
        _, faults = ray_api.collect({i: actor.prepare.remote(name) for i, (_, actor) in enumerate(actors)}, START)
        for i, fault in faults.items():
            raise EngineError(f"shard {actors[i][0]} could not open {map_.path} ({fault}): see the cluster's log")
        return FleetIndex(RayShards(self, name), find_owners(map_, len(self.parts)), version.number)

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        for actor in [actor for part in self.parts for actor in part.actors]:
            ray_api.end(actor)
        if self._room is not None:
            self._room.close()
            self._room = None
        self.parts = []
        if self._own:
            ray_api.leave()


class RayShards:
    """Call the shards of a version in a cluster, all at the same time."""

    parallel = True

    def __init__(self, cluster: Cluster, version: tuple[int, str]) -> None:
        self._cluster, self._version = cluster, version

    def search(
        self, descriptor: npt.NDArray[np.float32], k: int, among: Mapping[int, Rows | None], left: Left | None
    ) -> dict[int, Found]:
        """Search the shards, see `Shards.search`."""

        def call(rows: Rows | None, actor: Any, retries: int) -> Any:
            return actor.search.options(max_task_retries=retries).remote(self._version, descriptor, k, rows)

        return self._ask(among, left, call)

    def rank(self, query: Features, rows: Mapping[int, Rows], left: Left | None) -> dict[int, Ranked]:
        """Compare in the shards. Each has all the time that is left."""

        def call(here: Rows | None, actor: Any, retries: int) -> Any:
            budget = None if left is None else left()
            return actor.rank.options(max_task_retries=retries).remote(self._version, query, here, budget)

        return self._ask(rows, left, call)

    def close(self) -> None:
        """Leave the cluster as it is. Its shards close old versions by themselves."""

    def _ask(
        self, wanted: Mapping[int, Rows | None], left: Left | None, call: Callable[[Rows | None, Any, int], Any]
    ) -> dict[int, Any]:
        seconds = PATIENCE if left is None else max(0.0, left() / 1e3) + GRACE
        calls = {
            part: ReplicaCall(self._cluster.parts[part], partial(call, rows), self._reopen)
            for part, rows in wanted.items()
        }
        results, faults = collect_first(calls, seconds, LATE if left is None else min(LATE, seconds / 2))
        for part, fault in faults.items():
            log.warning("shard %d: %s%s", part, fault, "; a replica answered" if part in results else "")
        return results

    def _reopen(self, actor: Any, retries: int) -> Any:
        return actor.prepare.options(max_task_retries=retries).remote(self._version)
