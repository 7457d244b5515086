"""Re-rank: compare the query with as many candidates as the time allows, and sort them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.answer import Stage
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.features import Features
from pairvpr.runtime.map import Map
from pairvpr.runtime.model import Model
from pairvpr.runtime.stopwatch import Stopwatch

STAGES: tuple[Stage, ...] = ("full", "prefix", "descriptor")
"""Stages in the order of an answer."""


@dataclass(frozen=True)
class Ranking:
    """Hold scores and stages of k candidates in descriptor order.

    scores: (k,) float32. Predicted scores at stage "prefix", NaN at stage "descriptor".
    stages: (k,) indices into STAGES.
    compared: number of compared candidates, from the first on.
    damaged: indices of candidates that were left out, because their tokens cannot be read.
    missing: shards of a fleet that did not compare their candidates.
    """

    scores: npt.NDArray[np.float32]
    stages: npt.NDArray[np.int64]
    compared: int
    damaged: Sequence[int] = ()
    missing: frozenset[int] = frozenset()

    def order(self) -> npt.NDArray[np.int64]:
        """Return the indices of the candidates, sorted by stage, then score, then similarity, without damaged ones."""
        order = np.lexsort((-np.nan_to_num(self.scores), self.stages))
        return order[~np.isin(order, self.damaged)] if self.damaged else order

    @staticmethod
    def by_descriptor(count: int) -> Ranking:
        """Return the ranking of `count` candidates, none of which was compared."""
        return Ranking(np.full(count, np.nan, np.float32), np.full(count, STAGES.index("descriptor")), 0)


class Reranker:
    """Compare queries with candidates from a map. Batches keep the candidates' tokens from filling the memory."""

    def __init__(self, map_: Map, model: Model, cascade: Cascade | None = None, strict: bool = False) -> None:
        """Set up for a map. The cascade drops poor candidates after the prefix; without it every answer is exact.

        strict: raise MapError for a candidate whose tokens are damaged, instead of leaving it out.
        """
        self._strict = strict
        self._map = map_
        self._model = model
        self._cascade = cascade
        self._cost = CostEstimate()

    def on(self, map_: Map) -> Reranker:
        """Return a reranker for another state of the map, with the cost measured so far."""
        other = Reranker(map_, self._model, self._cascade, self._strict)
        other._cost = self._cost
        return other

    def rank(
        self, query: Features, rows: npt.NDArray[np.int64], clock: Stopwatch, budget_ms: float | None = None
    ) -> Ranking:
        """Compare one query with the map's `rows` (k,), given in descriptor order.

        budget_ms: deadline in milliseconds on the `clock`. Later candidates are not compared. A batch starts only if
        it is expected to end in time, so at most one batch ends late.
        Without a budget the next batch is read while the device computes the scores of the last one. With a budget
        this is impossible: the size of the next batch depends on the time of the last one.
        A candidate whose tokens are damaged is left out, unless strict.
        """
        ranking = Ranking.by_descriptor(len(rows))
        scores, stages = ranking.scores, ranking.stages
        best = -np.inf  # of the predicted scores
        damaged: list[int] = []
        done, ahead = 0, None
        while done < len(rows):
            size = self._model.batch_size
            if budget_ms is not None:
                size = min(size, self._cost.affordable_pairs(budget_ms - clock.elapsed()))
            if size == 0:
                break
            began = clock.elapsed()
            tokens, intact = self._gather(rows[done : done + size], clock) if ahead is None else ahead
            size, ahead, pending = len(intact), None, None
            batch = done + np.flatnonzero(intact)
            damaged += (done + np.flatnonzero(~intact)).tolist()
            keep = np.arange(len(batch))
            if len(batch):
                with clock.step("rerank"):
                    pairs = self._model.prefix(query.tokens, tokens)
                    if self._cascade is not None:
                        scores[batch] = predicted = self._cascade.predict(pairs.summaries)
                        stages[batch] = STAGES.index("prefix")
                        best = max(best, float(predicted.max()))
                        keep = self._cascade.keep(predicted, best)
                    if len(keep):
                        pending = self._model.start_suffix(pairs, keep)
            if budget_ms is None and done + size < len(rows):
                ahead = self._gather(rows[done + size : done + size + self._model.batch_size], clock)
            if pending is not None:
                with clock.step("rerank"):
                    scores[batch[keep]] = self._model.finish(pending)
                stages[batch[keep]] = STAGES.index("full")
            done += size
            self._cost.update(clock.elapsed() - began, size)
        return Ranking(scores, stages, done - len(damaged), damaged)

    def _gather(
        self, rows: npt.NDArray[np.int64], clock: Stopwatch
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.bool_]]:
        """Read the tokens of some rows and start to copy them to the device. Return also a mask of the intact rows."""
        with clock.step("gather"):
            if self._strict:
                return self._model.stage(self._map.read_tokens(rows)), np.ones(len(rows), np.bool_)
            tokens, intact = self._map.read_intact_tokens(rows)
            return self._model.stage(tokens), intact


class CostEstimate:
    """Estimate the milliseconds a pair takes, from measured batches. The estimate rises at once and falls slowly.

    Other programs come and go on a robot's computer. An estimate that fell at once would break budgets.
    """

    SHARE = 0.5
    """Share of the remaining time planned for a batch, so that a batch of twice the estimate still ends in time."""
    WEIGHT_OF_FASTER = 0.2
    """Weight of a batch that was faster than the estimate, in its moving average."""
    DECAY = 0.9
    """Factor by which a too-high estimate decays when nothing fits the budget, so that it recovers."""

    def __init__(self) -> None:
        self._pair_ms: float | None = None

    def affordable_pairs(self, remaining_ms: float) -> int:
        """Return the number of pairs to compare next in `remaining_ms` milliseconds. It is 1 before the first batch."""
        if remaining_ms <= 0:
            return 0
        if self._pair_ms is None:
            return 1
        if self._pair_ms > remaining_ms:
            self._pair_ms *= self.DECAY
            return 0
        return max(1, int(min(remaining_ms * self.SHARE / self._pair_ms, 1e9)))

    def update(self, spent_ms: float, pairs: int) -> None:
        """Update the estimate with a batch of `pairs` pairs that took `spent_ms` milliseconds."""
        measured = max(spent_ms / pairs, 1e-6)
        known = measured if self._pair_ms is None else self._pair_ms
        self._pair_ms = max(measured, known + self.WEIGHT_OF_FASTER * (measured - known))
