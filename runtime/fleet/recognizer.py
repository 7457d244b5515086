"""Answer a picture from all tiles of a fleet: two rounds over its shards, merged to the answer of one map."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError
from pairvpr.runtime.answer import Recognition, ShardCount
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.calibrated.tuning import RuntimeSetting
from pairvpr.runtime.features import Features
from pairvpr.runtime.fleet.shard import LocalShards, Rows, Shard, Shards
from pairvpr.runtime.fleet.storage import FolderStorage
from pairvpr.runtime.fleet.tiles import deal, open_tiles
from pairvpr.runtime.fleet.version import Version, read_current, read_start
from pairvpr.runtime.map import Map
from pairvpr.runtime.model import Model
from pairvpr.runtime.prior import Prior
from pairvpr.runtime.recognizer import PlaceRecognizer, load_parts
from pairvpr.runtime.rerank import Ranking, Reranker
from pairvpr.runtime.search import DescriptorIndex, Found
from pairvpr.runtime.stopwatch import Stopwatch
from pairvpr.runtime.view import Candidates, View

log = logging.getLogger(__name__)


class FleetIndex:
    """Search the shards of one version of a fleet as one index.

    shards: the open shards.
    owners: (n,), number of the shard of each row of the whole fleet.
    version: number of the version.
    """

    def __init__(self, shards: Shards, owners: npt.NDArray[np.int64], version: int) -> None:
        self.shards, self.owners, self.version = shards, owners, version
        self._all = np.unique(owners).tolist()

    def search(self, descriptor: npt.NDArray[np.float32], k: int) -> Found:
        """Return similarities and rows as `DescriptorIndex` does."""
        found = self.find(descriptor, k, None)
        return found.similarities, found.rows

    def find(self, descriptor: npt.NDArray[np.float32], k: int, among: Rows | None) -> Candidates:
        """Return the k nearest pictures, and the shards that were asked. Ties are in the order of the rows.

        among: the rows to search, ascending. Only their shards are asked. None searches all rows.
        Raises MapError if no shard answers.
        """
        wanted = dict.fromkeys(self._all) if among is None else self.split(among)
        results = self.shards.search(descriptor, k, wanted)
        asked = frozenset(wanted)
        if asked and not results:
            raise MapError("no shard of the fleet answers: see its service, and ask again")
        similarities = np.concatenate([np.zeros(0, np.float32), *(each for each, _ in results.values())])
        rows = np.concatenate([np.zeros(0, np.int64), *(each for _, each in results.values())])
        order = np.lexsort((rows, -similarities))[:k]
        return Candidates(similarities[order], rows[order], asked, asked - set(results))

    def split(self, rows: Rows) -> dict[int, Rows]:
        """Return the rows of each shard, in their order."""
        owners = self.owners[rows]
        return {number: rows[owners == number] for number in np.unique(owners).tolist()}


@dataclass
class FleetView(View):
    """Hold one version of a fleet. `index` is a `FleetIndex`."""

    def search(self, descriptor: npt.NDArray[np.float32], prior: Prior | None) -> Candidates:
        """Return the candidates for a descriptor (1, G) from the shards that can have some."""
        return self._fleet.find(descriptor, self.top_k, None if prior is None else self.find_allowed(prior))

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
        results = shards.rank(query, wanted, None if budget_ms is None else lambda: budget_ms - clock.elapsed())
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
    _count: int
    _strict: bool

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        shards: int = 1,
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
        For the rest and the errors see `PlaceRecognizer.open`. MapError is also raised for a damaged or missing tile.
        """
        if shards < 1:
            raise MapError(f"{path}: {shards} shards; give 1 or more")
        folder = Path(path)
        version = read_current(FolderStorage(folder))
        map_ = open_tiles(folder, version)
        try:
            setting = RuntimeSetting(device, precision, threads, batch_size, exact)
            parts = load_parts(map_, setting, model, top_k, rerank, model_digest)
            index = open_shards(map_, shards, version, parts.model, parts.cascade, strict)
            recognizer = cls(
                map_, parts.model, index, parts.top_k, rerank, budget_ms, parts.cascade, judged=True, strict=strict
            )
        except BaseException:
            map_.close()
            raise
        recognizer._path, recognizer._count, recognizer._strict = folder, shards, strict
        log.info("%s; version %d of %s", recognizer._describe(parts.note), version.number, folder)
        return recognizer

    def refresh(self) -> bool:
        """Open the fleet's current version if it is another one. Return whether it was.

        For threads, errors and thresholds see `PlaceRecognizer.refresh`.
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
                index = open_shards(map_, self._count, version, self.model, self._cascade, self._strict)
                view = self._show(map_, index, old.reranker)
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


def open_shards(
    map_: Map, count: int, version: Version, model: Model, cascade: Cascade | None, strict: bool
) -> FleetIndex:
    """Deal the segments of a fleet's map out to shards in this process. Raises MapError for a damaged descriptor."""
    dealt = deal(map_, count)
    owners = np.zeros(len(map_), np.int64)
    for number, (_, rows) in enumerate(dealt):
        owners[rows] = number
    shards = []
    try:
        for part, rows in dealt:
            shards.append(Shard(part, rows, model, cascade, strict))
    except BaseException:
        for part, _ in dealt:
            part.close()
        raise
    return FleetIndex(LocalShards(shards), owners, version.number)
