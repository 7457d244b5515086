"""Close loops: search a growing map for each picture just before the picture is added.

    model = load_model()
    with LoopCloser(model, Threshold(4.0), report=print) as closer:
        add_pictures("drive.bag", "map/", model, create=True, loop_closer=closer)

To add pictures yourself, call `closer.find_loop(writer, name, source, timestamp, features)` before each `writer.add`.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import SourceError
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.features import Features
from pairvpr.runtime.geometry.clocks import SteadyClock
from pairvpr.runtime.geometry.poses import Pose
from pairvpr.runtime.geometry.rotations import inverse, multiply, normalize, rotate
from pairvpr.runtime.map import Map, MapWriter, Record
from pairvpr.runtime.mapping.closure import Closure, Threshold
from pairvpr.runtime.model import Model
from pairvpr.runtime.rerank import STAGES, Reranker
from pairvpr.runtime.search import FaissIndex
from pairvpr.runtime.stopwatch import Stopwatch

EXCLUDE = 30.0
"""Seconds for which a picture closes no loop with the pictures added before it."""

log = logging.getLogger(__name__)


class LoopCloser(AbstractContextManager["LoopCloser"]):
    """Search a map for each picture that is about to be added to it. Use as a context manager, in one thread.

    Pictures of the last `exclude` seconds are ignored. These are the pictures added in that time by a clock that never
    runs backwards, and the pictures of the same source whose time stamps are that near, for a source whose clock was
    set or that is continued.

    An older picture can be found only after a commit, so the writer commits when its oldest uncommitted picture leaves
    the last `exclude` seconds: at most every `exclude` seconds. The memory holds the map's descriptors and records, and
    the names of the last `exclude` seconds.
    """

    def __init__(
        self,
        model: Model,
        threshold: Threshold,
        exclude: float = EXCLUDE,
        top_k: int | None = None,
        report: Callable[[Closure], None] | None = None,
    ) -> None:
        """Prepare the search.

        model: the map's model. Its calibrated cascade, if it has one, drops candidates here too.
        threshold: the pair score from which a loop is closed, or the similarity if the model has no pair classifier.
        exclude: seconds for which added pictures are ignored.
        top_k: candidates to compare. None takes the number that the threshold was calibrated with, else the model's.
        report: called with every loop.

        Raises ValueError if `exclude` is not positive and finite.
        """
        if not 0 < exclude < math.inf:
            raise ValueError(f"exclude {exclude}: give more than 0 seconds")
        self.threshold = threshold
        self.exclude = exclude
        self.report = report
        self._model = model
        calibrated = model.bundle.info.top_k if threshold.acceptance is None else threshold.acceptance.setup.top_k
        self._top_k = calibrated if top_k is None else top_k
        self._cascade = Cascade.find_in(model.bundle)
        self._clock = SteadyClock()
        self._recent: deque[tuple[float, str]] = deque()  # by the steady clock
        self._waiting: float | None = None  # time of the oldest picture that `_snapshot` lacks, by the steady clock
        self._snapshot: _Snapshot | None = None

    @staticmethod
    def require_timestamp(name: str, timestamp: float | None) -> float:
        """Return the time stamp. Raise SourceError if there is none."""
        if timestamp is None:
            raise SourceError(
                f"{name}: has no time stamp, which --exclude needs; give a video, bag, EuRoC folder or camera, or "
                "--poses by time for pictures that are named by it"
            )
        return timestamp

    def find_loop(
        self,
        writer: MapWriter,
        name: str,
        source: str,
        timestamp: float | None,
        features: Features,
        pose: Pose | None = None,
    ) -> Closure | None:
        """Return the loop that a picture closes, None if there is none. Call this before the picture is added.

        writer: the map's open writer.
        name: the picture's name in the map.
        source: the picture's source. Pictures that an earlier run added from the same source may be recent too.
        timestamp: seconds. A clock that is set takes the source into a new stretch of time.
        features: the features of this one picture.
        pose: the picture's pose.

        Raises SourceError without a time stamp, and MapError if the map cannot be written or read.
        """
        timestamp = self.require_timestamp(name, timestamp)
        now = self._clock.advance(timestamp)
        while self._recent and now - self._recent[0][0] > self.exclude:
            self._recent.popleft()
        if self._waiting is not None and now - self._waiting > self.exclude:
            writer.commit()
            self._waiting = None
        snapshot = self._look(writer.path, source)
        closure = self._closure(snapshot, name, timestamp, features, pose)
        self._recent.append((now, name))
        if self._waiting is None:
            self._waiting = now
        if closure is not None and self.report is not None:
            self.report(closure)
        return closure

    def close(self) -> None:
        """Close the map's files."""
        if self._snapshot is not None:
            self._snapshot.map_.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _look(self, path: Path, source: str) -> _Snapshot:
        """Return the state of the map at its last commit."""
        if self._snapshot is None:
            self._snapshot = self._take(Map.open(path), source)
        elif self._waiting is None and (newer := self._snapshot.map_.open_newer()) is not None:
            earlier, self._snapshot = self._snapshot, self._follow(self._snapshot, newer, source)
            earlier.map_.close()
        return self._snapshot  # while a picture waits, all newly committed ones are too recent

    def _take(self, map_: Map, source: str) -> _Snapshot:
        index = FaissIndex(map_.descriptors, map_.index_precision)
        compared = self._model.bundle.info.pair_classifier
        reranker = Reranker(map_, self._model, self._cascade) if compared else None
        return _Snapshot(map_, _stamps(map_.records, source), index, reranker)

    def _follow(self, earlier: _Snapshot, map_: Map, source: str) -> _Snapshot:
        """Return the snapshot of a newer state, at a cost that follows from the change."""
        change = map_.change
        if change is None:
            return self._take(map_, source)
        added = map_.records[len(map_) - change.added :]
        stamps = np.concatenate([np.delete(earlier.stamps, change.removed), _stamps(added, source)])
        index = earlier.index.updated(change.removed, map_.last_descriptors(change.added))
        reranker = None if earlier.reranker is None else earlier.reranker.on(map_)
        return _Snapshot(map_, stamps, index, reranker)

    def _closure(
        self, snapshot: _Snapshot, name: str, timestamp: float, features: Features, pose: Pose | None
    ) -> Closure | None:
        names = {each for _, each in self._recent}
        recent = np.abs(snapshot.stamps - timestamp) <= self.exclude
        depth = min(self._top_k + len(names) + int(recent.sum()), len(snapshot.map_))
        if depth == 0:
            return None
        similarities, rows = snapshot.index.search(features.descriptors, depth)
        old = np.array([not recent[row] and snapshot.map_.records[row].name not in names for row in rows])
        rows, similarities = rows[old][: self._top_k], similarities[old][: self._top_k]
        if not len(rows):
            return None
        best, score = 0, None  # the most similar candidate
        if snapshot.reranker is not None:
            ranking = snapshot.reranker.rank(features, rows, Stopwatch())
            best = int(ranking.order()[0])
            score = float(ranking.scores[best])
            if ranking.stages[best] != STAGES.index("full"):
                return None
        similarity = float(similarities[best])
        if (similarity if score is None else score) < self.threshold.score:
            return None
        found = snapshot.map_.records[rows[best]]
        by_poses = seen_from(found.pose, pose)
        return Closure(name, timestamp, found.name, found.timestamp, score, similarity, self.threshold, by_poses)


def seen_from(outer: Pose | None, inner: Pose | None) -> Pose | None:
    """Return the pose `inner` seen from `outer`. Return None unless both have an orientation, in one frame."""
    if outer is None or inner is None or outer.q is None or inner.q is None or outer.frame != inner.frame:
        return None
    back = inverse(outer.q)
    x, y, z = rotate(back, np.array([inner.x - outer.x, inner.y - outer.y, inner.z - outer.z])).tolist()
    return Pose(x, y, z, normalize(multiply(back, inner.q)))


def _stamps(records: Sequence[Record], source: str) -> npt.NDArray[np.float64]:
    """Return the time stamps (n,) of the records of a source in seconds, NaN for others."""
    stamps = [math.nan if each.source != source or each.timestamp is None else each.timestamp for each in records]
    return np.array(stamps, np.float64)


@dataclass(frozen=True)
class _Snapshot:
    """Hold one state of the map, with the index and the reranker that search it.

    reranker: None if the model has no pair classifier.
    stamps: time stamps (n,) of the records of the present source in seconds, NaN for others.
    """

    map_: Map
    stamps: npt.NDArray[np.float64]
    index: FaissIndex
    reranker: Reranker | None
