"""Tuning: which setting answers fastest here, with this map and these pictures, and gives the exact answer's match.

Cheap things first: threads and batches on a few pictures, then all settings in alternation on some more, in rounds
after which those that cannot win leave; then, fastest first, one after the other on all pictures until one passes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from pairvpr import machine
from pairvpr.calibration.candidates import RACED, VARIANTS, Candidate, Workshop, exact_setting, families, fastest
from pairvpr.calibration.cascade import MIN_PICTURES, MIN_PLACES, SAME, Progress
from pairvpr.calibration.trials import Trial, Tuned
from pairvpr.errors import EngineError, MapError, SourceError
from pairvpr.runtime.calibrated.tuning import RuntimeSetting
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.map import Map
from pairvpr.runtime.sources import list_pictures
from pairvpr.spread import spread

EVIDENCE = 2
"""Changed answers that a loss just allowed has among the pictures: with fewer it could not be told from none."""
BUDGET_PICTURES = 100
"""A 99th percentile of fewer answers is their largest."""
MORE = 1.5
"""So many times the pictures that are needed are used where there are more: some cannot be read."""
ROUND, ROUNDS = 8, 3
"""Pictures of a round of all settings, and rounds; after each those leave that cannot win."""

log = logging.getLogger(__name__)


def tune(map_: Map, images: Path, max_loss: float, budget_ms: float | None, progress: Progress) -> Tuned:
    """Try settings on the map `places` with the pictures in the folder `images`, on an otherwise idle computer.

    max_loss: the share of pictures in which the first match may be another than the exact answer's. budget_ms: what the
    99th percentile of whole answers must keep. Pictures that are the map's own say nothing and are left out. Raises
    SourceError for too few pictures, MapError for a map of too few, EngineError, BundleError.
    """
    if len(map_) < MIN_PLACES:
        raise MapError(f"{map_.path}: {len(map_)} pictures leave nothing to choose; tune on a larger map")
    needed = pictures_needed(max_loss, budget_ms)
    pictures = [path for _, path in list_pictures(images)]
    _check_enough(images, len(pictures), needed, max_loss)
    session = _Session(Workshop.from_map(map_), max_loss, budget_ms, progress)
    session.ask_exact(spread(pictures, min(len(pictures), math.ceil(MORE * needed))))
    _check_enough(images, len(session.pictures), needed, max_loss, session.same, session.unread)
    session.open_all()
    session.compare_all()
    return session.result(session.choose())


def pictures_needed(max_loss: float, budget_ms: float | None) -> int:
    """How many pictures can tell that a loss is at most so large, and that a budget is kept."""
    return max(MIN_PICTURES, math.ceil(EVIDENCE / max_loss - 1e-9), 0 if budget_ms is None else BUDGET_PICTURES)


def _check_enough(images: Path, count: int, needed: int, max_loss: float, same: int = 0, unread: int = 0) -> None:
    if count < needed:
        besides = f" ({same} more are the map's own, {unread} cannot be read)" if same or unread else ""
        raise SourceError(
            f"{images}: {count} pictures that can be asked{besides}; a loss of {max_loss:.2%} can be told from none "
            f"with {needed} or more: add other pictures of the robot's, or allow a larger --max-loss"
        )


class _Session:
    """The steps of `tune`, in order, and what is known after each."""

    def __init__(self, workshop: Workshop, max_loss: float, budget_ms: float | None, progress: Progress) -> None:
        self.workshop, self.max_loss, self.budget_ms, self.progress = workshop, max_loss, budget_ms, progress
        self.pictures: list[Path] = []
        self.truth: list[str] = []
        self.same = self.unread = 0
        self.exact = workshop.open(exact_setting(workshop.bundle))
        self.candidates: list[Candidate] = []
        self.compared: Sequence[int] = []
        self.left_out: list[str] = []
        self.told: dict[RuntimeSetting, str] = {}

    @property
    def allowed(self) -> int:
        """Changed answers that the loss allows."""
        return math.floor(self.max_loss * len(self.pictures) + 1e-9)

    def ask_exact(self, pictures: Sequence[Path]) -> None:
        """The first match of the exact answer to each picture; those that cannot be used are left out."""
        for number, path in enumerate(pictures):
            self.progress("exact answers", number, len(pictures))
            try:
                answer = self.exact.vpr.recognize(path)
            except SourceError as error:
                log.warning("skipped: %s", error)
                self.unread += 1
                continue
            if max(match.similarity for match in answer.matches) >= SAME:
                self.same += 1
                continue
            self.exact.milliseconds[len(self.pictures)] = answer.timings["total"]
            self.exact.changed[len(self.pictures)] = False
            self.pictures.append(path)
            self.truth.append(answer.best.name)
            if len(self.pictures) == ROUND:
                self._say_cost(len(pictures))
        self.progress("exact answers", len(pictures), len(pictures))

    def _say_cost(self, pictures: int) -> None:
        """About how long it takes: up to the first judged setting, and if all have to be judged."""
        engines = len(list(families(self.workshop.bundle, exact=True)))
        settings = engines * (1 if self.workshop.cascade is None else 2)
        milliseconds = self.exact.median(range(len(self.pictures)))
        answers = pictures + engines * VARIANTS * (RACED + 1) + settings * ROUND * ROUNDS
        least, most = (math.ceil((answers + judged * pictures) * milliseconds / 6e4) for judged in (0.5, settings))
        log.info(
            "%d settings, %d pictures, %d candidates, %.0f ms an exact answer: about %d minutes, up to %d where the "
            "fastest settings fail one after the other",
            settings,
            pictures,
            self.workshop.top_k,
            milliseconds,
            least,
            most,
        )

    def open_all(self) -> None:
        """Every device and precision with the threads and the batch that suit it, with and without the cascade."""
        shown = list(families(self.workshop.bundle, exact=self.workshop.cascade is None))
        raced = spread(self.pictures, RACED)
        for number, family in enumerate(shown, 1):
            try:
                both = self.workshop.both(fastest(self.workshop, family, raced))
            except EngineError as error:
                both = []
                self.left_out.append(f"{family.device} {family.precision}: {error}")
            self.candidates += [each for each in both if each.setting != self.exact.setting]
            self.progress("threads and batches", number, len(shown))

    def compare_all(self) -> None:
        """All settings on the same pictures in alternation; after every round those leave that cannot win."""
        order = spread(range(len(self.pictures)), min(ROUND * ROUNDS, len(self.pictures)))
        self.compared = order
        alive = [self.exact, *self.candidates]
        for each in alive:
            each.vpr.recognize(self.pictures[0])  # to warm up
        for number, picture in enumerate(order, 1):
            load_picture(self.pictures[picture])  # into the system's cache, for the first as for the last
            for each in alive[number % len(alive) :] + alive[: number % len(alive)]:
                self._ask(each, picture)
            self.progress("all settings in turn", number, len(order))
            if number % ROUND == 0 or number == len(order):
                alive = [self.exact, *(each for each in alive[1:] if self._may_win(each))]

    def choose(self) -> Candidate | None:
        """The fastest setting whose loss is allowed and that keeps the budget, each asked until it cannot win."""
        rest = sorted(
            [self.exact, *(each for each in self.candidates if each.setting not in self.told)], key=self._speed
        )
        for number, each in enumerate(rest, 1):
            if self.budget_ms is not None and self._speed(each) > self.budget_ms:
                self.told[each.setting] = "over the budget at the median"
                continue
            self._judge(each, f"judging setting {number} of {len(rest)}")
            if each.setting not in self.told:
                for other in rest[number:]:
                    self.told[other.setting] = "slower than the chosen one"
                self.told[each.setting] = "chosen"
                return each
        return None

    def result(self, chosen: Candidate | None) -> Tuned:
        """What is told of it all."""
        trials = {each.setting: self._trial(each) for each in sorted([self.exact, *self.candidates], key=self._speed)}
        return Tuned(
            trials=list(trials.values()),
            exact=trials[self.exact.setting],
            chosen=None if chosen is None else trials[chosen.setting],
            left_out=self.left_out,
            map=self.workshop.map_.info(),
            candidates=self.workshop.top_k,
            cascade=self.workshop.cascade is not None,
            computer=machine.name(),
            max_loss=self.max_loss,
            budget_ms=self.budget_ms,
            same=self.same,
            unread=self.unread,
        )

    def _ask(self, candidate: Candidate, picture: int) -> None:
        answer = candidate.vpr.recognize(self.pictures[picture])
        candidate.milliseconds[picture] = answer.timings["total"]
        candidate.changed[picture] = answer.best.name != self.truth[picture]

    def _may_win(self, candidate: Candidate) -> bool:
        """Whether it is faster than exact answers and has not changed too many; what it is not is written down."""
        asked = list(candidate.milliseconds)
        if sum(candidate.changed.values()) > self.allowed:
            self.told[candidate.setting] = "too many other matches"
        elif candidate.median(asked) >= self.exact.median(asked):
            self.told[candidate.setting] = "no faster than exact"
        return candidate.setting not in self.told

    def _judge(self, candidate: Candidate, step: str) -> None:
        """Ask a setting all pictures, until it has changed too many, and look at its 99th percentile."""
        left = [i for i in range(len(self.pictures)) if i not in candidate.milliseconds]
        for number, picture in enumerate(left, 1):
            self._ask(candidate, picture)
            self.progress(step, number, len(left))
            if sum(candidate.changed.values()) > self.allowed:
                self.told[candidate.setting] = "too many other matches"
                return
        if self.budget_ms is not None and candidate.p99() > self.budget_ms:
            self.told[candidate.setting] = "over the budget at p99"

    def _speed(self, candidate: Candidate) -> float:
        return candidate.median(self.compared)

    def _trial(self, candidate: Candidate) -> Trial:
        return Trial(
            setting=candidate.setting,
            engine=candidate.engine,
            median_ms=self._speed(candidate),
            p99_ms=candidate.p99(),
            pictures=len(candidate.changed),
            changed=sum(candidate.changed.values()),
            told=self.told.get(candidate.setting, ""),
        )
