"""Search, compare and judge in one state of a map: the steps of an answer that depend on the map."""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError
from pairvpr.runtime.answer import Match, Recognition
from pairvpr.runtime.calibrated.judge import Judge
from pairvpr.runtime.features import Features
from pairvpr.runtime.map import Map
from pairvpr.runtime.prior import Prior, PriorIndex
from pairvpr.runtime.rerank import STAGES, Ranking, Reranker
from pairvpr.runtime.search import DescriptorIndex, FaissIndex, search_among
from pairvpr.runtime.stopwatch import Stopwatch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidates:
    """Hold the result of a search, best first.

    similarities, rows: (k,) of the map's pictures.
    asked, missing: shards of a fleet that were asked, and those of them that did not answer.
    """

    similarities: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    asked: frozenset[int] = frozenset()
    missing: frozenset[int] = frozenset()


@dataclass
class View:
    """Hold one state of the map and everything that depends on it.

    users: number of users: the recognizer while it shows this state, and the answers in progress.
    """

    map: Map
    index: DescriptorIndex
    top_k: int
    reranker: Reranker | None
    judge: Judge
    users: int = 1

    @functools.cached_property
    def priors(self) -> PriorIndex:
        """Return the index of names, places and times, made when a prior is first used."""
        return PriorIndex(self.map.records)

    def search(
        self, descriptor: npt.NDArray[np.float32], prior: Prior | None, clock: Stopwatch, budget_ms: float | None
    ) -> Candidates:
        """Return the candidates for a descriptor (1, G).

        budget_ms: milliseconds on the `clock` after which the shards of a fleet are not waited for.
        Raises MapError if no picture of the map has the kind of place or time that the prior gives.
        """
        if prior is None:
            return Candidates(*self.index.search(descriptor, self.top_k))
        rows = self.find_allowed(prior)
        held = self.map.take_descriptors(rows)
        return Candidates(*search_among(held, rows, descriptor, self.top_k, self.map.index_precision))

    def find_allowed(self, prior: Prior) -> npt.NDArray[np.int64]:
        """Return the rows (m,) that a prior allows; see `PlaceRecognizer.find_allowed`."""
        lack = self.priors.find_lack(prior)
        if lack is not None:
            raise MapError(f"{self.map.path}: no picture of the map has {lack}, or search all of it")
        return self.priors.rows(prior)

    def rank(
        self,
        reranker: Reranker,
        query: Features,
        rows: npt.NDArray[np.int64],
        clock: Stopwatch,
        budget_ms: float | None,
    ) -> Ranking:
        """Compare one query with candidates (k,), given in descriptor order; see `Reranker.rank`."""
        return reranker.rank(query, rows, clock, budget_ms)

    def decide(self, answer: Recognition, found: Candidates, ranking: Ranking, *, monitored: bool) -> Recognition:
        """Return the answer with a decision; see `Judge.judge`.

        found, ranking: the candidates of the answer and their scores.
        """
        return self.judge.judge(answer, found.rows, monitored=monitored)

    def make_matches(self, found: Candidates, ranking: Ranking) -> tuple[Match, ...]:
        """Return the candidates as matches, best first."""
        matches = []
        for i in ranking.order():
            record, score = self.map.records[found.rows[i]], float(ranking.scores[i])
            matches.append(
                Match(
                    name=record.name,
                    score=None if math.isnan(score) else score,
                    similarity=min(float(found.similarities[i]), 1.0),  # rounding; the order is found already
                    stage=STAGES[ranking.stages[i]],
                    pose=record.pose or record.gps,
                )
            )
        return tuple(matches)

    def leave(self) -> None:
        """Count one user less. The last one closes the map's files."""
        self.users -= 1
        if not self.users:
            self.close()

    def close(self) -> None:
        """Close the map's files."""
        self.map.close()


def open_index(map_: Map) -> FaissIndex:
    """Return the index that the map asks for."""
    if (advice := map_.list_advice) is not None:
        log.warning("%s", advice)
    return FaissIndex(map_.descriptors, map_.index_precision, map_.read_lists())


def follow_index(index: DescriptorIndex, map_: Map) -> FaissIndex:
    """Return the index of a map that was opened with `open_newer`, from the index of the map before."""
    if map_.change is None or not isinstance(index, FaissIndex):
        return open_index(map_)
    return index.updated(map_.change.removed, map_.last_descriptors(map_.change.added))
