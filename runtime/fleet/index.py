"""Search the shards of a fleet as one index, and open them in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.calibrated.tuning import RuntimeSetting
from pairvpr.runtime.fleet.shard import Left, LocalShards, Rows, Shard, Shards
from pairvpr.runtime.fleet.tiles import deal, find_owners
from pairvpr.runtime.fleet.version import Version
from pairvpr.runtime.map import Map
from pairvpr.runtime.model import Model
from pairvpr.runtime.search import Found
from pairvpr.runtime.view import Candidates


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
        found = self.find(descriptor, k, None, None)
        return found.similarities, found.rows

    def find(self, descriptor: npt.NDArray[np.float32], k: int, among: Rows | None, left: Left | None) -> Candidates:
        """Return the k nearest pictures, and the shards that were asked. Ties are in the order of the rows.

        among: the rows to search, ascending. Only their shards are asked. None searches all rows.
        left: see `Shards.search`.
        Raises MapError if no shard answers.
        """
        wanted = dict.fromkeys(self._all) if among is None else self.split(among)
        results = self.shards.search(descriptor, k, wanted, left)
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


class Opener(Protocol):
    """Open the shards of a version. Versions of the same fleet follow each other."""

    def open(self, map_: Map, version: Version) -> FleetIndex:
        """Open a version, given also as one map of all its tiles."""
        ...

    def close(self) -> None:
        """Release what the versions share."""
        ...


@dataclass(frozen=True)
class ShardSetting:
    """The arguments of `PlaceRecognizer.open` with which a shard in another process opens its part."""

    setting: RuntimeSetting
    model: str | None
    rerank: bool
    strict: bool
    model_digest: str | None


class LocalOpener:
    """Open shards in this process."""

    def __init__(self, count: int, model: Model, cascade: Cascade | None, strict: bool) -> None:
        """Deal the segments out to at most `count` shards, which share a model. For the rest see `Shard`."""
        self._count, self._model, self._cascade, self._strict = count, model, cascade, strict

    def open(self, map_: Map, version: Version) -> FleetIndex:
        """Open a version. Raises MapError for a damaged descriptor."""
        dealt, shards = deal(map_, self._count), list[Shard]()
        try:
            for part, rows in dealt:
                shards.append(Shard(part, rows, self._model, self._cascade, self._strict))
        except BaseException:
            for part, _ in dealt:
                part.close()
            raise
        return FleetIndex(LocalShards(shards), find_owners(map_, self._count), version.number)

    def close(self) -> None:
        """Do nothing: shards close with their version."""
