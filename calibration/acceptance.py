"""Calibrating decisions: from which pair score on a robot may act on an answer, learnt from pictures of known places.

Neighbouring frames of a drive are no independent trials: whoever recognises one recognises the next. So of a traverse
only pictures count that are a radius apart, and the places are cut into stretches, as in spatial cross-validation
(Roberts et al., Ecography 2017): what is learnt in some is tested in others. What remains is an assumption, that such
pictures are independent and like those to come; pictures of one place from several traverses count each.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from pairvpr.calibration.cascade import SAME
from pairvpr.calibration.threshold import certify, fit_confidence, lower_bound, needed, sequence
from pairvpr.errors import MapError, SourceError
from pairvpr.runtime.acceptance import Acceptance, Setup
from pairvpr.runtime.cascade import Cascade
from pairvpr.runtime.map import Map
from pairvpr.runtime.model import Model
from pairvpr.runtime.poses import Gps, Place, PlaceFinder, Pose
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.search import FaissIndex
from pairvpr.runtime.selection import metres
from pairvpr.runtime.sources import Frame, Source, SourceOptions, open_source
from pairvpr.runtime.sources.options import DEFAULT

RADIUS = 25.0
"""Metres within which a match is right: the convention of Pitts30k, Tokyo 24/7, MSLS and others."""
PRECISION = 0.99
DELTA = 0.1
STRETCHES = 12
"""One in three to learn from, two to test on: the test is what takes many pictures."""
MIN_PICTURES = 40

Progress = Callable[[str, int, "int | None"], None]
"""Told what is being done, how many are done and of how many (None: not known)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Promise:
    """What is asked for: accepted answers are right in the share `precision`, or more, of all.

    delta: the chance that they are not after all. radius: metres (or the map's units) within which one is right.
    """

    precision: float = PRECISION
    delta: float = DELTA
    radius: float = RADIUS

    def pictures(self) -> int:
        """How many pictures, a radius apart, can show it if the map knows all of them; never fewer than 40."""
        return max(MIN_PICTURES, math.ceil(needed(self.precision, self.delta) * 1.5))


@dataclass(frozen=True)
class Asked:
    """A picture of a known place and the answer to it.

    score: of the best match. right: it lies within the radius. outside: nothing in the map does. own: the picture is
    of a traverse that the map was made of.
    """

    where: Pose | Gps
    traverse: str
    score: float
    right: bool
    outside: bool
    own: bool


def calibrate_acceptance(
    places: Map,
    model: Model,
    images: str | Path,
    promise: Promise,
    progress: Progress,
    *,
    poses: str | Path | None = None,
    options: SourceOptions = DEFAULT,
    top_k: int | None = None,
    exact: bool = False,
) -> Acceptance:
    """Find the lowest pair score from which answers of the map `places` keep the promise.

    images, options: pictures of known places, whatever `open_source` takes; poses: a file (see `PlaceFinder`).
    top_k, exact: how answers will come about, as for `PlaceRecognizer.open`. An answer whose own place is not known
    counts as wrong. Raises SourceError for too few pictures and where no score keeps the promise, MapError for a map
    without places, and what map, engine and source raise.
    """
    if not any(record.pose or record.gps for record in places.records):
        raise MapError(f"{places.path}: none of its pictures has a place; build it again with --poses or @UTM@ names")
    if top_k is not None and not 1 <= top_k <= len(places):
        raise MapError(
            f"{places.path}: top-k {top_k} is outside 1 to {len(places)}, the map's pictures; choose another"
        )
    k = min(model.bundle.info.top_k, len(places)) if top_k is None else top_k
    cascade = None if exact else Cascade.of(model.bundle)
    recognizer = PlaceRecognizer(places, model, FaissIndex(places.descriptors), k, cascade=cascade)
    with open_source(str(images), options) as source:
        if source.live:
            raise SourceError(f"{images}: is live, and where it is nobody knows; give pictures of known places")
        if source.length is not None:
            check_enough(images, source.length, promise)
        asked = ask(recognizer, source, PlaceFinder(poses), promise.radius, progress)
    check_enough(images, len(asked), promise)
    learning, checking = split([each.where for each in asked])
    scores, right = np.array([each.score for each in asked]), np.array([each.right for each in asked])
    thresholds = sequence(scores[learning], right[learning], promise.precision)
    threshold = certify(scores[checking], right[checking], thresholds, promise.precision, promise.delta)
    if threshold is None:
        first = scores[checking] >= thresholds[0]
        hits, count = int(np.sum(right[checking] & first)), int(np.sum(first))
        raise SourceError(
            f"{images}: no score shows a precision of {promise.precision:g}: from {thresholds[0]:.3f} on, the most "
            f"promising, {hits} of {count} answers were right, which shows "
            f"{math.floor(1000 * lower_bound(hits, count, promise.delta)) / 1000:.3f}; ask for less with "
            "--precision-target, or give more pictures"
        )
    slope, bias = fit_confidence(scores[learning], right[learning])
    accepted = scores[checking] >= threshold
    return Acceptance(
        identity=model.bundle.identity,
        engine=model.engines.description,
        setup=Setup.of(places, k, cascade),
        threshold=threshold,
        slope=slope,
        bias=bias,
        radius=promise.radius,
        precision=promise.precision,
        delta=promise.delta,
        fitted=len(learning),
        checked=len(checking),
        right=int(np.sum(right[checking])),
        outside=sum(asked[i].outside for i in checking),
        expected=float(np.sum(0.5 * (1 + np.tanh(0.5 * (slope * scores[checking] + bias))))),
        accepted=int(np.sum(accepted)),
        accepted_right=int(np.sum(right[checking] & accepted)),
        traverses=len({each.traverse for each in asked}),
        own=sum(each.own for each in asked),
    )


def check_enough(images: str | Path, count: int, promise: Promise) -> None:
    """Raise SourceError where so many pictures cannot show what is promised."""
    if count < promise.pictures():
        raise SourceError(
            f"{images}: {count} pictures that can be used, a precision of {promise.precision:g} needs at least "
            f"{promise.pictures()}, of known places {promise.radius:g} m apart within a traverse, even if every answer "
            "is right; give more, or ask for less with --precision-target"
        )


def ask(
    recognizer: PlaceRecognizer, source: Source, finder: PlaceFinder, radius: float, progress: Progress
) -> list[Asked]:
    """The answers to the source's pictures, as far as these can be read, have a place and are no pictures of the map.

    Of each folder (a traverse) only pictures are taken that are at least `radius` from all taken before. Raises
    MapError where nothing in the map has a place in the frame of a picture's.
    """
    records = [record for record in recognizer.map.records if record.pose or record.gps]
    sources = {record.source for record in recognizer.map.records}
    taken: dict[str, list[Pose | Gps]] = defaultdict(list)
    asked: list[Asked] = []
    without = same = 0
    for number, frame in enumerate(source, 1):
        progress("recognising pictures", number, source.length)
        if frame.picture is None:
            log.warning("skipped: %s", frame.error)
            continue
        place = finder(frame.name, frame.path, Place(frame.pose, frame.gps, frame.timestamp))
        where, traverse = place.pose or place.gps, str(PurePosixPath(frame.name).parent)
        if where is None:
            without += 1
            continue
        if any(metres(where, other) < radius for other in taken[traverse]):
            continue
        answer = recognizer.recognize_frame(frame)
        if max(match.similarity for match in answer.matches) >= SAME:  # a picture that a robot never meets again
            same += 1
            continue
        best = answer.best
        right = best.pose is not None and metres(where, best.pose) <= radius
        distances = [0.0] if right else [metres(where, r.pose or r.gps) for r in records]  # type: ignore[arg-type]
        if math.isinf(min(distances)):
            frame_of = where.frame if isinstance(where, Pose) else "wgs84"
            raise MapError(
                f"{recognizer.map.path}: none of its pictures has a place in {frame_of!r}, as {frame.name} has; give "
                "--poses in the map's frame"
            )
        taken[traverse].append(where)
        assert best.score is not None  # all candidates were compared
        asked.append(Asked(where, traverse, best.score, right, min(distances) > radius, _own(frame, source, sources)))
    if without:
        log.warning("%d pictures have no place and tell nothing", without)
    if same:
        log.warning("%d pictures are the map's own and tell nothing", same)
        asked = [Asked(**{**vars(each), "own": True}) for each in asked]
    return asked


def split(wheres: Sequence[Pose | Gps]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of n places: those to learn from and those to test on, in whole stretches across the longest way through them.

    All traverses are cut at the same places, so that no place is in both but where stretches meet.
    """
    positions = np.array([_plane(where) for where in wheres])
    centred = positions - positions.mean(axis=0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    stretches = np.array_split(np.argsort(along, kind="stable"), STRETCHES)
    learning = np.sort(np.concatenate(stretches[1::3]))
    return learning, np.setdiff1d(np.arange(len(wheres)), learning)


def _plane(where: Pose | Gps) -> tuple[float, float, float]:
    if isinstance(where, Pose):
        return where.x, where.y, where.z
    return where.latitude, where.longitude * math.cos(math.radians(where.latitude)), 0.0


def _own(frame: Frame, source: Source, sources: set[str]) -> bool:
    """Whether the frame comes from a folder or file that the map was made of."""
    path = None if frame.path is None else frame.path.resolve()
    return source.origin in sources or (path is not None and not sources.isdisjoint(map(str, (path, *path.parents))))
