"""Re-rank: compare the query with as many candidates as the time allows, and sort them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.answer import Stage
from pairvpr.runtime.bundle_info import LOOK
from pairvpr.runtime.calibrated.cascade import PREFIX, Cascade, select_similar
from pairvpr.runtime.features import Features, similarities_of
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
    compared: number of candidates that were compared, or that the cascade left out for their similarity.
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
        """Set up for a map. The cascade drops poor candidates early; without it every answer is exact.

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
        descent = Descent(self._model, self._cascade)
        similarities = self._similarities(query, rows)
        places = np.flatnonzero(descent.select_similar(similarities))  # of the candidates to compare
        damaged: list[int] = []
        done, ahead = 0, None
        while done < len(places):
            size = self._model.batch_size
            if budget_ms is not None:
                size = min(size, self._cost.affordable_pairs(budget_ms - clock.elapsed()))
            if size == 0:
                break
            began = clock.elapsed()
            batch = places[done : done + size]
            gathered, ahead = self._gather(rows[batch], clock) if ahead is None else ahead, None
            damaged += batch[~gathered.intact].tolist()
            size, batch = len(batch), batch[gathered.intact]
            pending = None
            if len(batch):
                with clock.step("rerank"):
                    pending = descent.start(query, gathered, similarities[batch])
            if budget_ms is None and done + size < len(places):
                ahead = self._gather(rows[places[done + size : done + size + self._model.batch_size]], clock)
            if pending is not None:
                with clock.step("rerank"):
                    ranking.scores[batch], full = descent.finish(pending)
                ranking.stages[batch] = np.where(full, STAGES.index("full"), STAGES.index("prefix"))
            done += size
            self._cost.update(clock.elapsed() - began, size)
        compared = len(rows) - len(places) + done - len(damaged)
        return Ranking(ranking.scores, ranking.stages, compared, damaged)

    def _similarities(self, query: Features, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the similarities (k,) of the query's descriptor with those of some rows. Zeros without a cascade."""
        if self._cascade is None:
            return np.zeros(len(rows), np.float32)
        return similarities_of(query.descriptors[0], self._map.take_descriptors(rows))

    def _gather(self, rows: npt.NDArray[np.int64], clock: Stopwatch) -> Gathered:
        """Read the tokens of some rows and start to copy them to the device."""
        with clock.step("gather"):
            if self._strict:
                tokens, intact = self._map.read_tokens(rows), np.ones(len(rows), np.bool_)
            else:
                tokens, intact = self._map.read_intact_tokens(rows)
            return Gathered(tokens, self._model.stage(tokens), intact)


@dataclass(frozen=True)
class Gathered:
    """Hold the tokens of a batch of candidates.

    tokens: (n, M, D) of the intact candidates.
    staged: the same tokens on the device.
    intact: a mask of the candidates whose tokens could be read.
    """

    tokens: npt.NDArray[np.floating]
    staged: npt.NDArray[np.floating]
    intact: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pending:
    """Hold a batch whose scores are being computed.

    predicted: (n,) predicted scores, NaN without a cascade.
    keep: (m,) indices of the pairs that are compared in full.
    scores: (m,) their scores, which the device may still compute. None if no pair is.
    """

    predicted: npt.NDArray[np.float32]
    keep: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32] | None


class Descent:
    """Compare one query with batches of candidates, look by look. Each look drops the candidates that it predicts poor.

    Without a cascade every candidate is compared in full.
    """

    def __init__(self, model: Model, cascade: Cascade | None) -> None:
        self._model, self._cascade = model, cascade
        self._looks = {} if cascade is None else {look.graph: look for look in cascade.looks}
        self._seen = dict.fromkeys(self._looks, np.zeros(0, np.float32))  # predictions of each look so far

    def select_similar(self, similarities: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Return a mask (k,) of the candidates to compare, from all similarities."""
        return select_similar(similarities, None if self._cascade is None else self._cascade.similarity_margin)

    def start(self, query: Features, batch: Gathered, similarities: npt.NDArray[np.float32]) -> Pending:
        """Start to compare a batch of n pairs. similarities: (n,) of their descriptors."""
        model, everyone = self._model, np.arange(len(batch.tokens))
        predicted, keep = np.full(len(everyone), np.nan, np.float32), everyone
        if LOOK in self._looks:
            keep = self._drop(LOOK, predicted, keep, model.look(query.tokens, batch.staged), similarities)
        if not len(keep):
            return Pending(predicted, keep, None)
        some = batch.staged if len(keep) == len(everyone) else batch.tokens[keep]
        pairs = model.prefix(query.tokens, some)
        seen = keep
        if PREFIX in self._looks:
            keep = self._drop(PREFIX, predicted, keep, pairs.summaries, similarities)
        scores = model.start_suffix(pairs, np.searchsorted(seen, keep)) if len(keep) else None
        return Pending(predicted, keep, scores)

    def finish(self, pending: Pending) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Wait for a batch. Return its scores (n,), predicted ones included, and a mask of those compared in full."""
        scores, full = pending.predicted.copy(), np.zeros(len(pending.predicted), np.bool_)
        full[pending.keep] = True
        if pending.scores is not None:
            scores[full] = self._model.finish(pending.scores)
        return scores, full

    def _drop(
        self,
        graph: str,
        predicted: npt.NDArray[np.float32],
        among: npt.NDArray[np.int64],
        outputs: npt.NDArray[np.float32],
        similarities: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.int64]:
        """Write a look's predictions for the pairs `among` (m,) into `predicted`. Return the pairs that go on.

        outputs: (m, d) of the look. similarities: (n,) of all pairs.
        """
        look = self._looks[graph]
        predicted[among] = now = look.predict(outputs, similarities[among])
        earlier = self._seen[graph]
        self._seen[graph] = np.concatenate([earlier, now])
        return among[look.keep(now, earlier)]


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
