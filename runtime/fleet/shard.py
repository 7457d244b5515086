"""Search and compare in one part of a fleet, and call the parts one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.features import Features
from pairvpr.runtime.map import Map
from pairvpr.runtime.model import Model
from pairvpr.runtime.rerank import Ranking, Reranker
from pairvpr.runtime.search import FaissIndex, Found, search_among
from pairvpr.runtime.stopwatch import Stopwatch

Rows = npt.NDArray[np.int64]
Left = Callable[[], float]


@dataclass(frozen=True)
class Ranked:
    """Hold the ranking of a shard's candidates, and the milliseconds of its steps."""

    ranking: Ranking
    spent: Mapping[str, float]


class Shard:
    """Some segments of a fleet, beside the pair classifier that compares their pictures."""

    def __init__(
        self, map_: Map, rows: Rows, model: Model, cascade: Cascade | None = None, strict: bool = False
    ) -> None:
        """Take over a map of the segments.

        rows: (n,), of the map's pictures in the whole fleet, ascending.
        cascade, strict: see `Reranker`.
        """
        self._map, self._rows = map_, rows
        self._index = FaissIndex(map_.descriptors, map_.index_precision)
        self._reranker = Reranker(map_, model, cascade, strict)

    def search(self, descriptor: npt.NDArray[np.float32], k: int, among: Rows | None = None) -> Found:
        """Return similarities and rows in the whole fleet of the k nearest pictures to a descriptor (1, G).

        among: the rows to search, ascending. All are of this shard. None searches the whole shard.
        """
        if among is None:
            similarities, found = self._index.search(descriptor, min(k, len(self._rows)))
        else:
            here = np.searchsorted(self._rows, among)
            held = self._map.take_descriptors(here)
            similarities, found = search_among(held, here, descriptor, k, self._map.index_precision)
        return similarities, self._rows[found]

    def rank(self, query: Features, rows: Rows, budget_ms: float | None = None) -> Ranked:
        """Compare a query with candidates of this shard, given in descriptor order by their rows in the whole fleet.

        budget_ms: milliseconds from now on, see `Reranker.rank`.
        """
        clock = Stopwatch()
        ranking = self._reranker.rank(query, np.searchsorted(self._rows, rows), clock, budget_ms)
        timings = clock.timings()
        return Ranked(ranking, {step: timings[step] for step in ("gather", "rerank")})

    def close(self) -> None:
        """Close the map's files."""
        self._map.close()


class Shards(Protocol):
    """Call the shards of a fleet. A shard that does not answer is missing in the result.

    parallel: whether the shards work at the same time.
    """

    parallel: bool

    def search(
        self, descriptor: npt.NDArray[np.float32], k: int, among: Mapping[int, Rows | None], left: Left | None
    ) -> dict[int, Found]:
        """Call `Shard.search` of the shards with these numbers.

        left: returns the milliseconds left for the answer. None sets no limit.
        """
        ...

    def rank(self, query: Features, rows: Mapping[int, Rows], left: Left | None) -> dict[int, Ranked]:
        """Call `Shard.rank` of the shards with these numbers. left: see `search`."""
        ...

    def close(self) -> None:
        """Close the shards."""
        ...


class LocalShards:
    """Call shards in this process, one after the other. They share a model."""

    parallel = False

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Take over the shards."""
        self._shards = shards

    def search(
        self, descriptor: npt.NDArray[np.float32], k: int, among: Mapping[int, Rows | None], left: Left | None
    ) -> dict[int, Found]:
        """Search the shards, see `Shards.search`."""
        return {number: self._shards[number].search(descriptor, k, rows) for number, rows in among.items()}

    def rank(self, query: Features, rows: Mapping[int, Rows], left: Left | None) -> dict[int, Ranked]:
        """Compare in the shards. Each gets its share of the time that is left, by its number of candidates."""
        ranked, waiting = {}, sum(map(len, rows.values()))
        for number, here in rows.items():
            budget = None if left is None else left() * len(here) / waiting
            ranked[number] = self._shards[number].rank(query, here, budget)
            waiting -= len(here)
        return ranked

    def close(self) -> None:
        """Close the shards."""
        for shard in self._shards:
            shard.close()
