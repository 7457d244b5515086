"""Calibrate the acceptance threshold of a map on pictures of known places."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from pairvpr.calibration.kept_answers import KeptAnswers, answers_file
from pairvpr.calibration.known_places import AnsweredPicture, Progress, ask, split_places
from pairvpr.calibration.locator import Locator
from pairvpr.calibration.threshold import (
    Bools,
    Floats,
    certify,
    fit_confidence,
    lower_bound,
    order_thresholds,
    trials_needed,
)
from pairvpr.errors import MapError, SourceError
from pairvpr.runtime.calibrated.acceptance import FRAMES, METRES, Acceptance, ScoreSetup, Traverse, logistic
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.calibrated.score_monitor import summarize
from pairvpr.runtime.map import Map
from pairvpr.runtime.measure import Measure
from pairvpr.runtime.model import Model
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.search import FaissIndex
from pairvpr.runtime.sources import Source, SourceOptions, open_source
from pairvpr.runtime.sources.options import DEFAULT

RADIUS = 25.0
"""Largest distance of a right match in metres: the convention of Pitts30k, Tokyo 24/7, MSLS and others."""
PRECISION = 0.99
DELTA = 0.1
MIN_PICTURES = 40

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrecisionTarget:
    """Hold the promise that a threshold must keep.

    precision: lowest share of accepted answers that are right.
    delta: chance that the share is lower after all.
    radius: distance within which a match is right, in `unit`.
    unit: METRES (the map's units), or FRAMES if the numbers in the pictures' names are places (see `frame_number`).
    """

    precision: float = PRECISION
    delta: float = DELTA
    radius: float = RADIUS
    unit: str = METRES

    def min_pictures(self) -> int:
        """Return the least number of pictures, a radius apart, that can show the precision. It is at least 40."""
        return max(MIN_PICTURES, math.ceil(trials_needed(self.precision, self.delta) * 1.5))


@dataclass(frozen=True)
class ThresholdFit:
    """Hold a threshold, slope and bias of the confidence (see `Acceptance`), and the answers behind them.

    fitted: number of answers used to fit the confidence and to choose the thresholds to test.
    checked: the other answers, which the threshold was tested on.
    """

    threshold: float
    slope: float
    bias: float
    fitted: int
    checked: tuple[AnsweredPicture, ...]


def calibrate_acceptance(
    map_: Map,
    model: Model,
    images: Sequence[str | Path],
    target: PrecisionTarget,
    progress: Progress,
    *,
    poses: Sequence[str | Path] = (),
    options: SourceOptions = DEFAULT,
    top_k: int | None = None,
    exact: bool = False,
    keep: bool = False,
) -> Acceptance:
    """Find the lowest pair score, or similarity, from which accepted answers of a map keep a precision.

    images, options: sources of pictures of known places, as for `open_source`.
    target: the precision to keep, and the distance within which a match is right.
    poses: a file of poses (see `PlaceFinder`) for all sources, or one for each. Empty if the target's unit is frames.
    top_k, exact: settings of the answers. None takes the model's number of candidates. They become the map's defaults.
    keep: keep the answers in the user's cache, and take those of earlier calibrations from there.
    A best match with no known place counts as wrong.
    Raises SourceError for too few pictures and if no score keeps the precision. Raises MapError for a map without
    places, or with places if the unit is frames. Errors of map, engine and source pass through.
    """
    k = count_candidates(map_, model, top_k)
    cascade = None if exact else Cascade.find_in(model.bundle)
    setup = ScoreSetup.from_map(map_, k, cascade)
    recognizer = PlaceRecognizer(map_, model, FaissIndex(map_.descriptors, map_.index_precision), k, cascade=cascade)
    with KeptAnswers(recognizer, answers_file(model, setup) if keep else None) as kept:
        answered = _ask_all(map_, images, options, poses, target, progress, kept)
    fit = fit_threshold(answered, target, ", ".join(map(str, images)), model.bundle.info.measure)
    traverses = count_by_traverse(fit.checked, fit.threshold)
    return Acceptance(
        identity=model.bundle.identity,
        engine=model.engines.description,
        setup=setup,
        exact=exact,
        threshold=fit.threshold,
        slope=fit.slope,
        bias=fit.bias,
        radius=target.radius,
        unit=target.unit,
        precision=target.precision,
        delta=target.delta,
        fitted=fit.fitted,
        checked=len(fit.checked),
        right=sum(each.right for each in fit.checked),
        outside=sum(each.outside for each in fit.checked),
        expected=sum(logistic(fit.slope, fit.bias, each.score) for each in fit.checked),
        accepted=sum(each.accepted for each in traverses),
        accepted_right=sum(each.right for each in traverses),
        traverses=traverses,
        own=sum(each.own for each in answered),
        samples=summarize([each.reading for each in answered], model.bundle.info.measure),
        measure=model.bundle.info.measure,
    )


def _ask_all(
    map_: Map,
    images: Sequence[str | Path],
    options: SourceOptions,
    poses: Sequence[str | Path],
    target: PrecisionTarget,
    progress: Progress,
    kept: KeptAnswers,
) -> list[AnsweredPicture]:
    """Return the answers to all sources. Raises SourceError if they are known to have too few pictures."""
    answered: list[AnsweredPicture] = []
    with ExitStack() as stack:
        sources = [stack.enter_context(open_source(str(each), options)) for each in images]
        locators = _locate(map_, sources, target, poses)
        lengths = [source.length for source in sources]
        if None not in lengths:
            check_enough(", ".join(map(str, images)), sum(length or 0 for length in lengths), target, at_most=True)
        for source, locator, name_traverse in zip(sources, locators, _traverse_names(images), strict=True):
            answered += ask(map_, source, locator, target.radius, progress, kept, name_traverse)
    if kept.reused:
        log.info("%d of %d answers are kept from an earlier calibration", kept.reused, len(answered))
    return answered


def count_candidates(map_: Map, model: Model, top_k: int | None) -> int:
    """Return the number of candidates of an answer. Raises MapError if `top_k` is outside 1 to the map's size."""
    if top_k is None:
        return min(model.bundle.info.top_k, len(map_))
    if not 1 <= top_k <= len(map_):
        raise MapError(f"{map_.path}: --top-k {top_k} is outside 1 to {len(map_)}, the map's pictures; choose another")
    return top_k


def _locate(
    map_: Map, sources: Sequence[Source], target: PrecisionTarget, poses: Sequence[str | Path]
) -> list[Locator]:
    """Return a locator for each source. Raises SourceError for a live source."""
    for source in sources:
        if source.live:
            raise SourceError(
                f"{source.origin}: a live source has no known places; give recorded pictures with --images"
            )
    if target.unit == FRAMES:
        return [Locator.from_frame_numbers(map_, source) for source in sources]
    files = list(poses) if len(poses) == len(sources) else [*poses, None][:1] * len(sources)
    return [Locator.from_places(map_, file) for file in files]


def _traverse_names(images: Sequence[str | Path]) -> list[Callable[[str], str]]:
    """Return for each source a function from a picture's folder, "." for the source itself, to the name to show."""
    names = [Path(each).resolve().name for each in images]
    if len(set(names)) < len(names):
        names = [str(each) for each in images]

    def name(source: str, folder: str) -> str:
        if folder == ".":
            return source
        return folder if len(images) == 1 else f"{source}/{folder}"

    return [partial(name, source) for source in names]


def check_enough(images: str, count: int, target: PrecisionTarget, found: str = "", *, at_most: bool = False) -> None:
    """Raise SourceError if `count` pictures cannot show the precision. The message gives `found`, the results.

    at_most: the number still has pictures without a place, or too close to others.
    """
    if count < target.min_pictures():
        raise SourceError(
            f"{images}: {'at most ' if at_most else ''}{count} usable pictures; a precision of {target.precision:g} "
            f"needs at least {target.min_pictures()} of known places, {target.radius:g} {target.unit} apart within a "
            f"traverse, even if all answers are right{found}; give more, or ask for less with --precision-target"
        )


def fit_threshold(
    answered: Sequence[AnsweredPicture], target: PrecisionTarget, images: str, measure: Measure = Measure.SCORE
) -> ThresholdFit:
    """Fit the threshold in some stretches of the places and test it in the others.

    images, measure: source and number of the answers, for error messages.
    Raises SourceError for too few answers and if no score keeps the precision.
    """
    found = describe_first_matches(answered, target)
    check_enough(images, len(answered), target, f" ({found})" if answered else "")
    scores, right = np.array([each.score for each in answered]), np.array([each.right for each in answered])
    learning, checking = split_places([each.where for each in answered])
    thresholds = order_thresholds(scores[learning], right[learning], target.precision)
    threshold = certify(scores[checking], right[checking], thresholds, target.precision, target.delta)
    if threshold is None:
        raise _not_shown(images, measure, target, thresholds[0], scores[checking], right[checking], found)
    slope, bias = fit_confidence(scores[learning], right[learning])
    return ThresholdFit(threshold, slope, bias, len(learning), tuple(answered[i] for i in checking))


def describe_first_matches(answered: Sequence[AnsweredPicture], target: PrecisionTarget) -> str:
    """Return how many first matches are right, and how far off the wrong ones are."""
    wrong = [each.off for each in answered if not each.right]
    placed = sorted(off for off in wrong if off is not None)
    text = f"{len(answered) - len(wrong)} of {len(answered)} first matches are right"
    if placed:
        low, middle, high = (f"{off:,.{0 if off >= 10 else 1}f}" for off in (placed[0], median(placed), placed[-1]))
        text += f", the wrong ones are {low} to {high} {target.unit} off (median {middle})"
    if len(placed) < len(wrong):
        text += f", {len(wrong) - len(placed)} have no known place"
    return text


def count_by_traverse(checked: Sequence[AnsweredPicture], threshold: float) -> tuple[Traverse, ...]:
    """Count the checked pictures of each traverse."""
    found = []
    for name in sorted({each.traverse for each in checked}):
        own = [each for each in checked if each.traverse == name]
        accepted = [each for each in own if each.score >= threshold]
        found.append(Traverse(name, len(own), len(accepted), sum(each.right for each in accepted)))
    return tuple(found)


def _not_shown(
    images: str,
    measure: Measure,
    target: PrecisionTarget,
    threshold: float,
    scores: Floats,
    right: Bools,
    found: str,
) -> SourceError:
    accepted = scores >= threshold
    hits, count = int(np.sum(right & accepted)), int(np.sum(accepted))
    shown = math.floor(1000 * lower_bound(hits, count, target.delta)) / 1000
    return SourceError(
        f"{images}: no {measure.value} shows a precision of {target.precision:g}: at the most promising threshold, "
        f"{threshold:.3f}, {hits} of {count} answers were right, which shows {shown:.3f} (of all, {found}); ask for "
        "less with --precision-target, allow more with --radius or --tolerance, or give more pictures"
    )
