"""Re-ranking: compare the query with its candidates, as many as the time allows, and put them in order."""

from __future__ import annotations

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
"""In the order of an answer."""


@dataclass(frozen=True)
class Ranking:
    """What became of k candidates, which come in descriptor order.

    scores: (k,) float32; predicted ones at stage "prefix", NaN at "descriptor". stages: (k,) indices into STAGES.
    compared: the first so many were compared.
    """

    scores: npt.NDArray[np.float32]
    stages: npt.NDArray[np.int64]
    compared: int

    def order(self) -> npt.NDArray[np.int64]:
        """Candidates (k,), best first: by stage, then by score, then by descriptor similarity."""
        return np.lexsort((-np.nan_to_num(self.scores), self.stages))

    @staticmethod
    def by_descriptor(count: int) -> Ranking:
        """Of `count` candidates none of which was compared."""
        return Ranking(np.full(count, np.nan, np.float32), np.full(count, STAGES.index("descriptor")), 0)


class Reranker:
    """Compares queries with candidates from a map, batch by batch, so that their tokens need not fit in memory."""

    def __init__(self, map_: Map, model: Model, cascade: Cascade | None = None) -> None:
        """cascade: drops candidates without prospects after the prefix; without one every answer is exact."""
        self._map = map_
        self._model = model
        self._cascade = cascade
        self._cost = CostEstimate()

    def on(self, map_: Map) -> Reranker:
        """The same for another state of the map, with the pace measured so far."""
        other = Reranker(map_, self._model, self._cascade)
        other._cost = self._cost
        return other

    def rank(
        self, query: Features, rows: npt.NDArray[np.int64], clock: Stopwatch, budget_ms: float | None = None
    ) -> Ranking:
        """Compare one query with the map's `rows` (k,), which come in descriptor order.

        budget_ms: until when, in milliseconds on the `clock`; what is left then is not compared. A batch is begun only
        if it should end in time, so one batch at most ends late. Without a budget the next batch is read while a
        device works out the scores of the last; with one, how large it may be is known only afterwards.
        """
        ranking = Ranking.by_descriptor(len(rows))
        scores, stages = ranking.scores, ranking.stages
        best = -np.inf  # of the predicted scores
        done, ahead = 0, None
        while done < len(rows):
            size = self._model.batch_size
            if budget_ms is not None:
                size = min(size, self._cost.affordable_pairs(budget_ms - clock.elapsed()))
            if size == 0:
                break
            began = clock.elapsed()
            batch = slice(done, done + size)
            tokens = self._gather(rows[batch], clock) if ahead is None else ahead
            size, ahead, pending = len(tokens), None, None
            with clock.step("rerank"):
                pairs = self._model.prefix(query.tokens, tokens)
                keep = np.arange(size)
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
                    scores[done + keep] = self._model.finish(pending)
                stages[done + keep] = STAGES.index("full")
            done += size
            self._cost.update(clock.elapsed() - began, size)
        return Ranking(scores, stages, done)

    def _gather(self, rows: npt.NDArray[np.int64], clock: Stopwatch) -> npt.NDArray[np.floating]:
        """The tokens of some rows, on their way to the device."""
        with clock.step("gather"):
            return self._model.stage(self._map.read_tokens(rows))


class CostEstimate:
    """Milliseconds that a pair takes here and now, as measured: it rises at once and falls slowly.

    Other work comes and goes on a robot's computer: an estimate that believes good news at once would break budgets.
    """

    SHARE = 0.5
    """A batch gets this part of the time that is left, so that one which takes twice as long still ends in time."""
    WEIGHT_OF_FASTER = 0.2
    """Weight of a batch that was faster than the estimate."""
    DECAY = 0.9
    """What an estimate under which nothing fits keeps; else one that was once too high would never be mended."""

    def __init__(self) -> None:
        self._pair_ms: float | None = None

    def affordable_pairs(self, remaining_ms: float) -> int:
        """How many pairs to compare next where so much time is left; a single one where nothing is known yet."""
        if remaining_ms <= 0:
            return 0
        if self._pair_ms is None:
            return 1
        if self._pair_ms > remaining_ms:
            self._pair_ms *= self.DECAY
            return 0
        return max(1, int(min(remaining_ms * self.SHARE / self._pair_ms, 1e9)))

    def update(self, spent_ms: float, pairs: int) -> None:
        """Take note of a batch."""
        news = max(spent_ms / pairs, 1e-6)
        known = news if self._pair_ms is None else self._pair_ms
        self._pair_ms = max(news, known + self.WEIGHT_OF_FASTER * (news - known))
