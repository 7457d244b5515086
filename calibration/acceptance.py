"""Calibrating decisions: from which pair score on a robot may act on an answer, from pictures of known places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pairvpr.calibration.known_places import AnsweredPicture, Progress, ask, split
from pairvpr.calibration.located import Locator
from pairvpr.calibration.threshold import Bools, Floats, certify, fit_confidence, lower_bound, needed, sequence
from pairvpr.errors import MapError, SourceError
from pairvpr.runtime.calibrated.acceptance import FRAMES, METRES, Acceptance, ScoreSetup, Traverse, chance
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.map import Map
from pairvpr.runtime.model import Model
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.search import FaissIndex
from pairvpr.runtime.sources import SourceOptions, open_source
from pairvpr.runtime.sources.options import DEFAULT

RADIUS = 25.0
"""Metres within which a match is right: the convention of Pitts30k, Tokyo 24/7, MSLS and others."""
PRECISION = 0.99
DELTA = 0.1
MIN_PICTURES = 40


@dataclass(frozen=True)
class PrecisionTarget:
    """What is asked for: accepted answers are right in the share `precision`, or more, of all.

    delta: the chance that they are not after all. radius: within which one is right. unit: what the radius is in, "m"
    (or the map's units), or "frames" where the numbers in pictures' names are places (see `frame_number`).
    """

    precision: float = PRECISION
    delta: float = DELTA
    radius: float = RADIUS
    unit: str = METRES

    def pictures(self) -> int:
        """How many pictures, a radius apart, can show it if the map knows all of them; never fewer than 40."""
        return max(MIN_PICTURES, math.ceil(needed(self.precision, self.delta) * 1.5))


@dataclass(frozen=True)
class ThresholdFit:
    """What answers of known places decide: the threshold, and slope and bias of `confidence` (see `Acceptance`).

    fitted: how many of the answers confidence and the thresholds to test come from. checked: the others, which the
    threshold was tested on.
    """

    threshold: float
    slope: float
    bias: float
    fitted: int
    checked: tuple[AnsweredPicture, ...]


def calibrate_acceptance(
    map_: Map,
    model: Model,
    images: str | Path,
    promise: PrecisionTarget,
    progress: Progress,
    *,
    poses: str | Path | None = None,
    options: SourceOptions = DEFAULT,
    top_k: int | None = None,
    exact: bool = False,
) -> Acceptance:
    """Find the lowest pair score from which answers of the map `places` keep the promise.

    images, options: pictures of known places, whatever `open_source` takes; poses: a file (see `PlaceFinder`), where
    the promise is not in frames.
    top_k, exact: how answers will come about, as for `PlaceRecognizer.open`. An answer whose own place is not known
    counts as wrong. Raises SourceError for too few pictures and where no score keeps the promise, MapError for a map
    without places (in frames: with places), and what map, engine and source raise.
    """
    k = candidates(map_, model, top_k)
    cascade = None if exact else Cascade.find_in(model.bundle)
    recognizer = PlaceRecognizer(map_, model, FaissIndex(map_.descriptors), k, cascade=cascade)
    with open_source(str(images), options) as source:
        if source.live:
            raise SourceError(f"{images}: is live, and where it is nobody knows; give pictures of known places")
        in_frames = promise.unit == FRAMES
        located = Locator.from_frame_numbers(map_, source) if in_frames else Locator.from_places(map_, poses)
        if source.length is not None:
            check_enough(images, source.length, promise)
        asked = ask(recognizer, source, located, promise.radius, progress)
    decision = decide(asked, promise, images)
    checked = decision.checked
    traverses = by_traverse(checked, decision.threshold, images)
    return Acceptance(
        identity=model.bundle.identity,
        engine=model.engines.description,
        setup=ScoreSetup.from_map(map_, k, cascade),
        threshold=decision.threshold,
        slope=decision.slope,
        bias=decision.bias,
        radius=promise.radius,
        unit=promise.unit,
        precision=promise.precision,
        delta=promise.delta,
        fitted=decision.fitted,
        checked=len(checked),
        right=sum(each.right for each in checked),
        outside=sum(each.outside for each in checked),
        expected=sum(chance(decision.slope, decision.bias, each.score) for each in checked),
        accepted=sum(each.accepted for each in traverses),
        accepted_right=sum(each.right for each in traverses),
        traverses=traverses,
        own=sum(each.own for each in asked),
    )


def candidates(map_: Map, model: Model, top_k: int | None) -> int:
    """How many candidates an answer of the map will have; raises MapError where it cannot have so many."""
    if top_k is None:
        return min(model.bundle.info.top_k, len(map_))
    if not 1 <= top_k <= len(map_):
        raise MapError(f"{map_.path}: top-k {top_k} is outside 1 to {len(map_)}, the map's pictures; choose another")
    return top_k


def check_enough(images: str | Path, count: int, promise: PrecisionTarget) -> None:
    """Raise SourceError where so many pictures cannot show what is promised."""
    if count < promise.pictures():
        raise SourceError(
            f"{images}: {count} pictures that can be used, a precision of {promise.precision:g} needs at least "
            f"{promise.pictures()}, of known places {promise.radius:g} {promise.unit} apart within a traverse, even if "
            "every answer is right; give more, or ask for less with --precision-target"
        )


def decide(asked: Sequence[AnsweredPicture], promise: PrecisionTarget, images: str | Path) -> ThresholdFit:
    """Learn in some stretches of the places, test in the others.

    images: what the answers come from, for messages. Raises SourceError for too few of them and where no score keeps
    the promise.
    """
    check_enough(images, len(asked), promise)
    scores, right = np.array([each.score for each in asked]), np.array([each.right for each in asked])
    learning, checking = split([each.where for each in asked])
    thresholds = sequence(scores[learning], right[learning], promise.precision)
    threshold = certify(scores[checking], right[checking], thresholds, promise.precision, promise.delta)
    if threshold is None:
        raise _not_shown(images, promise, thresholds[0], scores[checking], right[checking])
    slope, bias = fit_confidence(scores[learning], right[learning])
    return ThresholdFit(threshold, slope, bias, len(learning), tuple(asked[i] for i in checking))


def by_traverse(checked: Sequence[AnsweredPicture], threshold: float, images: str | Path) -> tuple[Traverse, ...]:
    """What became of the pictures of each folder, by its name in `images`; of those right in it, by its own."""
    found = []
    for name in sorted({each.traverse for each in checked}):
        own = [each for each in checked if each.traverse == name]
        accepted = [each for each in own if each.score >= threshold]
        shown = Path(images).resolve().name if name == "." else name
        found.append(Traverse(shown, len(own), len(accepted), sum(each.right for each in accepted)))
    return tuple(found)


def _not_shown(
    images: str | Path, promise: PrecisionTarget, threshold: float, scores: Floats, right: Bools
) -> SourceError:
    accepted = scores >= threshold
    hits, count = int(np.sum(right & accepted)), int(np.sum(accepted))
    shown = math.floor(1000 * lower_bound(hits, count, promise.delta)) / 1000
    return SourceError(
        f"{images}: no score shows a precision of {promise.precision:g}: from {threshold:.3f} on, the most promising, "
        f"{hits} of {count} answers were right, which shows {shown:.3f}; ask for less with --precision-target, or give "
        "more pictures"
    )
