"""Answer a picture from all tiles of a fleet: two rounds over its shards, merged to the answer of one map."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError, MapError, one_line
from pairvpr.runtime.answer import Recognition, ShardCount
from pairvpr.runtime.calibrated.tuning import RuntimeSetting
from pairvpr.runtime.features import Features
from pairvpr.runtime.fleet.index import FleetIndex, LocalOpener, Opener, ShardSetting
from pairvpr.runtime.fleet.shard import Left, Rows
from pairvpr.runtime.fleet.storage import FolderStorage
from pairvpr.runtime.fleet.tiles import open_tiles
from pairvpr.runtime.fleet.version import read_current, read_start
from pairvpr.runtime.map import Map
from pairvpr.runtime.prior import Prior
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.recognizer_parts import load_parts
from pairvpr.runtime.rerank import Ranking, Reranker
from pairvpr.runtime.search import DescriptorIndex
from pairvpr.runtime.stopwatch import Stopwatch
from pairvpr.runtime.view import Candidates, View

log = logging.getLogger(__name__)


@dataclass
class FleetView(View):
    """Hold one version of a fleet. `index` is a `FleetIndex`."""

    def search(
        self, descriptor: npt.NDArray[np.float32], prior: Prior | None, clock: Stopwatch, budget_ms: float | None
    ) -> Candidates:
        """Return the candidates for a descriptor (1, G) from the shards that can have some."""
        among = None if prior is None else self.find_allowed(prior)
        return self._fleet.find(descriptor, self.top_k, among, _left(clock, budget_ms))

    def rank(
        self,
        reranker: Reranker,
        query: Features,
        rows: Rows,
        clock: Stopwatch,
        budget_ms: float | None,
    ) -> Ranking:
        """Let the shards compare the query with their candidates, and put the results together."""
        ranking = Ranking.by_descriptor(len(rows))
        wanted = self._fleet.split(rows)
        shards = self._fleet.shards
        results = shards.rank(query, wanted, _left(clock, budget_ms))
        owners, compared, damaged = self._fleet.owners[rows], 0, list[int]()
        for number, ranked in results.items():
            here, part = np.flatnonzero(owners == number), ranked.ranking
            ranking.scores[here], ranking.stages[here] = part.scores, part.stages
            compared += part.compared
            damaged += here[list(part.damaged)].tolist()
        for step in ("gather", "rerank"):
            spent = [ranked.spent[step] for ranked in results.values()]
            clock.add(step, max(spent, default=0.0) if shards.parallel else sum(spent))
        missing = frozenset(wanted) - frozenset(results)
        return Ranking(ranking.scores, ranking.stages, compared, damaged, missing)

    def decide(self, answer: Recognition, found: Candidates, ranking: Ranking, *, monitored: bool) -> Recognition:
        """Return the answer with a decision. Without all shards it is not complete, and has none."""
        missing = found.missing | ranking.missing
        count = ShardCount(len(found.asked), len(found.asked) - len(missing), self._fleet.version)
        answer = dataclasses.replace(answer, shards=count)
        if not missing:
            return super().decide(answer, found, ranking, monitored=monitored)
        names = ", ".join(map(str, sorted(missing)))
        return dataclasses.replace(answer, complete=False, reason=f"incomplete: no answer from shard {names}")

    def close(self) -> None:
        """Close the shards and the map's files."""
        self._fleet.shards.close()
        super().close()

    @property
    def _fleet(self) -> FleetIndex:
        if not isinstance(self.index, FleetIndex):
            raise TypeError("the index of a fleet's view is a FleetIndex")
        return self.index


class FleetRecognizer(PlaceRecognizer):
    """Recognize the places of a fleet. The answers are those of one map of all its pictures.

    vpr = FleetRecognizer.open("fleet/")
    answer = vpr.recognize("query.jpg")
    """

    _path: Path
    _opener: Opener

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        shards: int = 1,
        replicas: int = 1,
        address: str | None = None,
        model: str | Path | None = None,
        top_k: int | None = None,
        rerank: bool = True,
        device: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        batch_size: int | None = None,
        budget_ms: float | None = None,
        exact: bool | None = None,
        strict: bool = False,
        model_digest: str | None = None,
    ) -> FleetRecognizer:
        """Open the current version of the fleet in a folder.

        shards: number of parts, at most one for each segment. In one process they work one after the other.
        replicas: number of equal processes of each part in a cluster. Queries go to them in turn, and go on with
        another one if one is killed.
        address: run each part in a process of its own, with Ray: "local" on this computer, "auto" or HOST:PORT in a
        cluster whose nodes find the fleet under the same path. A part has one CPU, and a GPU if `device` is one. None
        runs all in this process.
        For the rest and the errors see `PlaceRecognizer.open`. MapError is also raised for a damaged or missing tile.
        """
        if shards < 1:
            raise MapError(f"{path}: {shards} shards; give 1 or more")
        if replicas < 1 or (replicas > 1 and address is None):
            raise EngineError(f"{replicas} replicas: give 1 or more with --replicas, and --address for more than one")
        folder = Path(path)
        version = read_current(FolderStorage(folder))
        setting = RuntimeSetting(device, precision, threads, batch_size, exact)
        with ExitStack() as stack:
            map_ = open_tiles(folder, version)
            stack.callback(map_.close)
            parts = load_parts(map_, setting, model, top_k, rerank, model_digest)
            if address is None:
                opener: Opener = LocalOpener(shards, parts.model, parts.cascade, strict)
            else:
                count = min(shards, version.meta.segments)
                how = ShardSetting(setting, None if model is None else str(model), rerank, strict, model_digest)
                opener = _start(address, folder, count, replicas, how)
            stack.callback(opener.close)
            index = opener.open(map_, version)
            stack.callback(index.shards.close)
            recognizer = cls(
                map_, parts.model, index, parts.top_k, rerank, budget_ms, parts.cascade, judged=True, strict=strict
            )
            recognizer._path, recognizer._opener = folder, opener
            stack.pop_all()
        log.info("%s; version %d of %s", recognizer._describe(parts.note), version.number, folder)
        return recognizer

    def close(self) -> None:
        """Close the map's files, and end the shards."""
        super().close()
        self._opener.close()

    def refresh(self) -> bool:
        """Open the fleet's current version if it is another one. Return whether it was.

        For threads, errors and thresholds see `PlaceRecognizer.refresh`. MapError is also raised if a shard is lost.
        """
        with self._refreshing:
            old, storage = self._view, FolderStorage(self._path)
            if not isinstance(old.index, FleetIndex) or read_start(storage)[0] == old.index.version:
                return False
            version = read_current(storage)
            if version.identity != self.model.bundle.identity:
                raise MapError(f"{self._path}: is now a fleet of another model; open it again")
            map_ = open_tiles(self._path, version)
            try:
                index = self._opener.open(map_, version)
                view = self._show(map_, index, old.reranker)
            except EngineError as error:  # a lost shard: answers go on from the version before
                map_.close()
                raise MapError(f"{self._path}: version {version.number} is not taken over yet: {error}") from error
            except BaseException:
                map_.close()
                raise
            log.info("%s: version %d, %d pictures", self._path, version.number, len(map_))
            with self._switching:
                self._view = view
                old.leave()
        return True

    def _show(self, map_: Map, index: DescriptorIndex, reranker: Reranker | None) -> View:
        k = min(self._wanted, len(map_))
        return FleetView(map_, index, k, reranker, self._make_judge(map_, k, reranker is not None))


def _left(clock: Stopwatch, budget_ms: float | None) -> Left | None:
    """Return a function that gives the milliseconds left of a budget."""
    return None if budget_ms is None else lambda: budget_ms - clock.elapsed()


def _start(address: str, fleet: Path, count: int, replicas: int, how: ShardSetting) -> Opener:
    """Start shards in a cluster. Raises EngineError without Ray or a cluster with room."""
    try:
        from pairvpr.runtime.fleet.cluster import Cluster
    except ImportError as error:
        raise EngineError(
            f'--address needs Ray ({one_line(error)}): run pip install "pairvpr[fleet]", or leave it out'
        ) from error
    return Cluster(address, fleet, count, replicas, how)
