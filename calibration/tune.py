"""Find the fastest setting that gives the exact answer's first match, on this device with this map and these pictures.

The steps go from cheap to costly. First, threads and batch size are chosen on a few pictures. Then all settings answer
more pictures in alternation, and after each round those that cannot win drop out. Last, the remaining settings answer
all pictures, fastest first, until one passes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from pairvpr import machine
from pairvpr.calibration.candidates import (
    RACED,
    VARIANTS,
    Candidate,
    Workshop,
    exact_setting,
    find_fastest,
    list_families,
)
from pairvpr.calibration.cascade import MIN_PICTURES, MIN_PLACES, SAME, Progress
from pairvpr.calibration.trials import Trial, Tuned
from pairvpr.errors import EngineError, MapError, SourceError
from pairvpr.runtime.calibrated.tuning import RuntimeSetting
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.map import Map
from pairvpr.runtime.sources import list_pictures
from pairvpr.spread import spread

EVIDENCE = 2
"""Expected changed answers at the largest allowed loss. With fewer, such a loss could not be told from none."""
BUDGET_PICTURES = 100
"""Fewest pictures for a budget: the 99th percentile of fewer answers is their largest."""
MORE = 1.5
"""Pictures taken, as a multiple of those needed: some cannot be read."""
ROUND, ROUNDS = 8, 3
"""Pictures in a round of all settings, and number of rounds. Settings that cannot win drop out after each round."""

log = logging.getLogger(__name__)


def tune(map_: Map, images: Path, max_loss: float, budget_ms: float | None, progress: Progress) -> Tuned:
    """Try settings on a map with the pictures in the folder `images`, on an otherwise idle computer.

    max_loss: largest share of pictures whose first match may differ from the exact answer's.
    budget_ms: limit for the 99th percentile of whole answers in milliseconds, or None.
    Pictures that are in the map themselves are left out.
    Raises SourceError for too few pictures, MapError for too small a map, EngineError, BundleError.
    """
    if len(map_) < MIN_PLACES:
        raise MapError(f"{map_.path}: a map of {len(map_)} pictures has nothing to choose from; tune on a larger map")
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
    """Return the number of pictures needed to test a loss and a budget."""
    return max(MIN_PICTURES, math.ceil(EVIDENCE / max_loss - 1e-9), 0 if budget_ms is None else BUDGET_PICTURES)


def _check_enough(images: Path, count: int, needed: int, max_loss: float, same: int = 0, unread: int = 0) -> None:
    if count < needed:
        besides = f" ({same} more are in the map, {unread} cannot be read)" if same or unread else ""
        raise SourceError(
            f"{images}: {count} usable pictures{besides}; a loss of {max_loss:.2%} needs at least {needed}; add other "
            "pictures from the robot, or allow a larger --max-loss"
        )


class _Session:
    """Carry out the steps of `tune` in order, and hold the results of each."""

    def __init__(self, workshop: Workshop, max_loss: float, budget_ms: float | None, progress: Progress) -> None:
        self.workshop, self.max_loss, self.budget_ms, self.progress = workshop, max_loss, budget_ms, progress
        self.pictures: list[Path] = []
        self.truth: list[str] = []
        self.same = self.unread = 0
        self.exact = workshop.open(exact_setting(workshop.bundle))
        self.candidates: list[Candidate] = []
        self.compared: Sequence[int] = []
        self.left_out: list[str] = []
        self.outcomes: dict[RuntimeSetting, str] = {}

    @property
    def allowed(self) -> int:
        """Return the number of changed answers that the loss allows."""
        return math.floor(self.max_loss * len(self.pictures) + 1e-9)

    def ask_exact(self, pictures: Sequence[Path]) -> None:
        """Record the first match of the exact answer to each picture. Unusable pictures are left out."""
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
        """Log the estimated duration: until the first setting is judged, and until all are."""
        engines = len(list(list_families(self.workshop.bundle, exact=True)))
        settings = engines * (1 if self.workshop.cascade is None else 2)
        milliseconds = self.exact.median(range(len(self.pictures)))
        answers = pictures + engines * VARIANTS * (RACED + 1) + settings * ROUND * ROUNDS
        least, most = (math.ceil((answers + judged * pictures) * milliseconds / 6e4) for judged in (0.5, settings))
        log.info(
            "%d settings, %d pictures, %d candidates, %.0f ms an exact answer: about %d minutes, up to %d if the "
            "fastest settings fail",
            settings,
            pictures,
            self.workshop.top_k,
            milliseconds,
            least,
            most,
        )

    def open_all(self) -> None:
        """Open every device and precision, with its fastest threads and batch size, with and without the cascade."""
        shown = list(list_families(self.workshop.bundle, exact=self.workshop.cascade is None))
        raced = spread(self.pictures, RACED)
        for number, family in enumerate(shown, 1):
            try:
                both = self.workshop.both(find_fastest(self.workshop, family, raced))
            except EngineError as error:
                both = []
                self.left_out.append(f"{family.device} {family.precision}: {error}")
            self.candidates += [each for each in both if each.setting != self.exact.setting]
            self.progress("threads and batches", number, len(shown))

    def compare_all(self) -> None:
        """Ask all settings the same pictures in alternation. Settings that cannot win drop out after each round."""
        order = spread(range(len(self.pictures)), min(ROUND * ROUNDS, len(self.pictures)))
        self.compared = order
        alive = [self.exact, *self.candidates]
        for each in alive:
            each.vpr.recognize(self.pictures[0])  # to warm up
        for number, picture in enumerate(order, 1):
            load_picture(
                self.pictures[picture]
            )  # into the system's cache, so that the first setting has no slower disk than the last
            for each in alive[number % len(alive) :] + alive[: number % len(alive)]:
                self._ask(each, picture)
            self.progress("all settings in turn", number, len(order))
            if number % ROUND == 0 or number == len(order):
                alive = [self.exact, *(each for each in alive[1:] if self._may_win(each))]

    def choose(self) -> Candidate | None:
        """Return the fastest setting that keeps loss and budget, or None."""
        rest = sorted(
            [self.exact, *(each for each in self.candidates if each.setting not in self.outcomes)], key=self._speed
        )
        for number, each in enumerate(rest, 1):
            if self.budget_ms is not None and self._speed(each) > self.budget_ms:
                self.outcomes[each.setting] = "over the budget at the median"
                continue
            self._judge(each, f"judging setting {number} of {len(rest)}")
            if each.setting not in self.outcomes:
                for other in rest[number:]:
                    self.outcomes[other.setting] = "slower than the chosen one"
                self.outcomes[each.setting] = "chosen"
                return each
        return None

    def result(self, chosen: Candidate | None) -> Tuned:
        """Return the trials and the chosen one."""
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
        """Return whether a candidate is faster than exact answers and within the loss. Note the reason if not."""
        asked = list(candidate.milliseconds)
        if sum(candidate.changed.values()) > self.allowed:
            self.outcomes[candidate.setting] = "too many other matches"
        elif candidate.median(asked) >= self.exact.median(asked):
            self.outcomes[candidate.setting] = "no faster than exact"
        return candidate.setting not in self.outcomes

    def _judge(self, candidate: Candidate, step: str) -> None:
        """Ask a setting all pictures until it exceeds the loss, then check its 99th percentile."""
        left = [i for i in range(len(self.pictures)) if i not in candidate.milliseconds]
        for number, picture in enumerate(left, 1):
            self._ask(candidate, picture)
            self.progress(step, number, len(left))
            if sum(candidate.changed.values()) > self.allowed:
                self.outcomes[candidate.setting] = "too many other matches"
                return
        if self.budget_ms is not None and candidate.p99() > self.budget_ms:
            self.outcomes[candidate.setting] = "over the budget at p99"

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
            outcome=self.outcomes.get(candidate.setting, ""),
        )
