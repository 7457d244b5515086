"""Closing loops: what is added to a map is first looked for in it, among what was added long enough before.

    model = load_model()
    with LoopCloser(model, Threshold(4.0), report=print) as closer:
        add_pictures("drive.bag", "map/", model, create=True, witness=closer)

or, with pictures of one's own, `closer(writer, name, source, timestamp, features)` before each `writer.add`.
"""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from pairvpr.errors import MapError, SourceError
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.calibrated.acceptance import Acceptance
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.features import Features
from pairvpr.runtime.map import Map, MapWriter
from pairvpr.runtime.model import Model
from pairvpr.runtime.rerank import STAGES, Reranker
from pairvpr.runtime.search import FaissIndex
from pairvpr.runtime.stopwatch import Stopwatch

FORMAT = 1
EXCLUDE = 30.0
"""Seconds: what was seen just before is no loop."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Threshold:
    """The pair score from which a loop is closed.

    acceptance: what it comes from, calibrated for the map `origin`; None for a number that somebody chose. A map that
    grows has no threshold of its own: one is calibrated for a map as it is, and the more pictures, the more look alike.
    """

    score: float
    acceptance: Acceptance | None = None
    origin: str | None = None

    @staticmethod
    def of(text: str, identity: str) -> Threshold:
        """That of a number, or of the folder of a map of the model `identity` with a threshold (`calibrate --accept`).

        Raises MapError or BundleError.
        """
        try:
            score = float(text)
        except ValueError:
            pass
        else:
            if not math.isfinite(score):
                raise MapError(f"threshold {text}: give a finite pair score")
            return Threshold(score)
        with Map.open(text) as places:
            acceptance = Acceptance.find_in(Bundle.open(places.model_path))
            if places.identity != identity:
                raise MapError(
                    f"{text}: made with model {places.identity[:12]}, whose scores say nothing of {identity[:12]}'s; "
                    "name a map of the same model, or give a score"
                )
        if acceptance is None:
            raise MapError(f"{text}: has no threshold; calibrate one (`pairvpr calibrate --accept`), or give a score")
        return Threshold(acceptance.threshold, acceptance, text)

    def __str__(self) -> str:
        if self.acceptance is None:
            return f"loops are closed from a pair score of {self.score:g} on, which was given: nothing is promised"
        return f"loops are closed from a pair score of {self.score:.3f} on, calibrated for {self.origin}: {PROMISE}"


PROMISE = "for this map, which grows, that is a hint and no promise"


@dataclass(frozen=True)
class Closure:
    """The picture `name` shows the place of the earlier picture `earlier`.

    timestamp, earlier_timestamp: seconds; the latter is None where a map that was there before has none.
    score: of the pair; similarity: of the descriptors. confidence: what the threshold's calibration makes of the score,
    None without one. How the two pictures lie to each other is not known: that is for whoever has geometry.
    """

    name: str
    timestamp: float
    earlier: str
    earlier_timestamp: float | None
    score: float
    similarity: float
    threshold: Threshold

    @property
    def confidence(self) -> float | None:
        """See above."""
        acceptance = self.threshold.acceptance
        return None if acceptance is None else acceptance.confidence(self.score)

    def to_json(self) -> str:
        """One line of JSON, format 1."""
        confidence = self.confidence
        return json.dumps(
            {
                "format": FORMAT,
                "from": self.name,
                "from_timestamp": self.timestamp,
                "to": self.earlier,
                "to_timestamp": self.earlier_timestamp,
                "score": round(self.score, 6),
                "similarity": round(self.similarity, 6),
                "threshold": round(self.threshold.score, 6),
                "confidence": None if confidence is None else round(confidence, 6),
                "calibrated_on": self.threshold.origin,
                "relative_pose": None,
            },
            ensure_ascii=False,
        )


class LoopCloser:
    """Looks for each picture in the map that it is about to be added to; a context manager, for one thread.

    What was added in the last `exclude` seconds is left out. The rest has to be in the map for good before it can be
    found, so the writer commits when its oldest picture becomes of interest: at most every `exclude` seconds. Memory:
    that of the map's descriptors and records, and of the names of the last `exclude` seconds.
    """

    def __init__(
        self,
        model: Model,
        threshold: Threshold,
        exclude: float = EXCLUDE,
        top_k: int | None = None,
        report: Callable[[Closure], None] | None = None,
    ) -> None:
        """model: the map's. top_k: candidates to compare, as far as the map has them; None takes the model's default.

        report: told of every loop. A cascade that was calibrated drops candidates here too.
        """
        if not 0 < exclude < math.inf:
            raise ValueError(f"exclude {exclude}: give more than 0 seconds")
        self.threshold = threshold
        self.exclude = exclude
        self.report = report
        self._model = model
        self._top_k = model.bundle.info.top_k if top_k is None else top_k
        self._cascade = Cascade.find_in(model.bundle)
        self._recent: deque[tuple[float, str]] = deque()
        self._waiting: float | None = None  # since when there is a picture that the map as it is known here lacks
        self._known: _Known | None = None

    def check(self, name: str, timestamp: float | None) -> float:
        """The time stamp; raises SourceError where there is none."""
        if timestamp is None:
            raise SourceError(
                f"{name}: has no time stamp, and what is too recent for a loop goes by time; give a video, bag, EuRoC "
                "folder or camera, or --poses by time for pictures that are named by it"
            )
        return timestamp

    def __call__(
        self, writer: MapWriter, name: str, source: str, timestamp: float | None, features: Features
    ) -> Closure | None:
        """The loop that a picture closes, None for none; before the picture is added, and whether or not it will be.

        timestamp: seconds, on one clock for all pictures of the source; what an earlier run added of it may be recent
        too. features: of this one picture. Raises SourceError without a time stamp, MapError where the map cannot be
        written or read.
        """
        timestamp = self.check(name, timestamp)
        while self._recent and abs(timestamp - self._recent[0][0]) > self.exclude:
            self._recent.popleft()
        if self._waiting is not None and abs(timestamp - self._waiting) > self.exclude:
            writer.commit()
            self._waiting = None
        known = self._look(writer.path, source, timestamp)
        closure = self._closure(known, name, timestamp, features)
        self._recent.append((timestamp, name))
        if self._waiting is None:
            self._waiting = timestamp
        if closure is not None and self.report is not None:
            self.report(closure)
        return closure

    def close(self) -> None:
        """Close the map's files."""
        if self._known is not None:
            self._known.places.close()

    def __enter__(self) -> LoopCloser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _look(self, path: Path, source: str, timestamp: float) -> _Known:
        """The map as of its last commit."""
        if self._known is None:
            places = Map.open(path)
            before = [(record.timestamp, record.name) for record in places.records if record.source == source]
            stamped = [(stamp, name) for stamp, name in before if stamp is not None]
            self._recent.extend(sorted(each for each in stamped if abs(timestamp - each[0]) <= self.exclude))
            self._known = self._knowing(places)
        elif self._waiting is None and (newer := self._known.places.newer()) is not None:
            self._known.places.close()
            self._known = self._knowing(newer)
        return self._known  # while something waits, all that was committed is too recent

    def _knowing(self, places: Map) -> _Known:
        return _Known(places, FaissIndex(places.descriptors), Reranker(places, self._model, self._cascade))

    def _closure(self, known: _Known, name: str, timestamp: float, features: Features) -> Closure | None:
        recent = {each for _, each in self._recent}
        depth = min(self._top_k + len(recent), len(known.places))
        if depth == 0:
            return None
        similarities, rows = known.index.search(features.descriptors, depth)
        old = np.array([known.places.records[row].name not in recent for row in rows])
        rows, similarities = rows[old][: self._top_k], similarities[old][: self._top_k]
        if not len(rows):
            return None
        ranking = known.reranker.rank(features, rows, Stopwatch())
        best = ranking.order()[0]
        score = float(ranking.scores[best])
        if ranking.stages[best] != STAGES.index("full") or score < self.threshold.score:
            return None
        found = known.places.records[rows[best]]
        return Closure(name, timestamp, found.name, found.timestamp, score, float(similarities[best]), self.threshold)


@dataclass(frozen=True)
class _Known:
    """One state of the map, and what finds pictures in it."""

    places: Map
    index: FaissIndex
    reranker: Reranker
