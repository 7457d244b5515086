"""The options of `pairvpr-run` that restrict an answer to a part of the map."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pairvpr.cli.log import log
from pairvpr.cli.options import FILE, Number, grouped, take
from pairvpr.errors import MapError

if TYPE_CHECKING:
    from pairvpr.runtime.prior import Prior
    from pairvpr.runtime.recognizer import PlaceRecognizer
    from pairvpr.runtime.sources import Frame

SOURCE, HOURS = "source:", "hours:"
NEEDS = {"near": "pose or GPS position", "heading": "pose with an orientation", "hours": "time of day"}
"""The options that take a value of the query's own, with that value."""


@dataclass(frozen=True)
class PriorOptions:
    """The part of the map in which the answer can be.

    near: metres around the query's own position.
    heading: degrees around the query's own heading.
    hours: hours around the query's own time of day.
    poses: a file of the queries' poses.
    only: conditions on map pictures, see `parse_only`.
    """

    near: float | None = None
    heading: float | None = None
    hours: float | None = None
    poses: Path | None = None
    only: tuple[str, ...] = ()

    @property
    def own(self) -> list[str]:
        """Return the given options of NEEDS."""
        return [name for name in NEEDS if getattr(self, name) is not None]


_OPTIONS = [
    click.option(
        "--near",
        metavar="METRES",
        type=Number(min=0, min_open=True, max=1e9),
        help="Compare only map pictures within METRES of the query's own pose or GPS position.",
    ),
    click.option(
        "--heading",
        metavar="DEGREES",
        type=Number(min=0, min_open=True, max=180),
        help="Compare only map pictures whose heading is within DEGREES of the query's own.",
    ),
    click.option(
        "--hours",
        metavar="HOURS",
        type=Number(min=0, min_open=True, max=12, max_open=True),
        help="Compare only map pictures recorded within HOURS of the query's own time of day.",
    ),
    click.option(
        "--poses",
        type=FILE,
        help="Take the queries' places for --near, --heading and --hours from this CSV or TUM file.",
    ),
    click.option(
        "--only",
        metavar="PATTERN",
        multiple=True,
        help="Compare only map pictures with such names: 'floor3/*', say. source:PATTERN: from such sources. "
        "hours:FROM-TO: recorded between these hours of the day, UTC. Several --only hold together.",
    ),
]
prior_options = grouped(_OPTIONS, "prior", lambda given: take(PriorOptions, given))
"""Give a command the options of a prior, passed to it together as `prior`, a `PriorOptions`."""


def parse_only(text: str) -> dict[str, Any]:
    """Return the fields of `Prior` that one --only gives. Raises UsageError for hours that are none."""
    if text.startswith(SOURCE):
        return {"sources": text.removeprefix(SOURCE)}
    if not text.startswith(HOURS):
        return {"names": text}
    try:
        begin, end = map(float, text.removeprefix(HOURS).split("-"))
    except ValueError:
        begin = end = -1.0
    if not (0 <= begin <= 24 and 0 <= end <= 24 and (end - begin) % 24 > 0):
        raise click.UsageError(f"--only {text}: write hours:FROM-TO with two hours from 0 to 24, as hours:20-4")
    half = (end - begin) % 24 / 2
    return {"hour": (begin + half) % 24, "hours": half}


class PriorMaker:
    """Make the prior of each frame of a run, and count the frames that lack a value for it."""

    def __init__(self, options: PriorOptions) -> None:
        """Check the options. Raises UsageError for those that exclude each other, and SourceError for a pose file."""
        from pairvpr.runtime.geometry.pose_files import PlaceFinder
        from pairvpr.runtime.prior import Prior

        if options.poses is not None and not options.own:
            raise click.UsageError("--poses needs --near, --heading or --hours")
        fields: dict[str, Any] = {}
        for text in options.only:
            given = parse_only(text)
            if given.keys() & fields.keys():
                raise click.UsageError(f"--only {text}: another --only is of the same kind; give one of each")
            fields |= given
        if options.hours is not None and "hour" in fields:
            raise click.UsageError("--hours and --only hours: exclude each other")
        self._options = options
        self._each = {text: Prior(**parse_only(text)) for text in options.only}
        self._only = Prior(**fields) if fields else None
        self._finder = PlaceFinder(options.poses)
        self._without: Counter[str] = Counter()

    def check(self, recognizer: PlaceRecognizer, *, live: bool) -> None:
        """Refuse an --only that no picture of the map meets. With a live source it is a warning: the map may grow.

        Raises MapError.
        """
        together = [] if self._only is None else [(" ".join(self._each), self._only)]
        for text, prior in [*self._each.items(), *together]:
            if len(recognizer.find_allowed(prior)):
                continue
            fault = f"{recognizer.map.path}: no picture of the map is {prior}"
            if not live:
                listed = "`pairvpr map list --format jsonl` has names and sources"
                raise MapError(f"{fault}; correct --only {text}, or leave it out: {listed}")
            log.warning("%s, so --only %s has no answers until one is added", fault, text)
            return

    def make(self, frame: Frame) -> Prior | None:
        """Return the prior of a frame, None if all of the map may be compared."""
        from pairvpr.runtime.geometry.clocks import hours_of_day
        from pairvpr.runtime.geometry.poses import Place
        from pairvpr.runtime.prior import Prior

        own = self._options.own
        if not own:
            return self._only
        place = self._finder.find_place(frame.name, frame.path, Place(frame.pose, frame.gps, frame.timestamp))
        hour = float(hours_of_day([place.timestamp])[0])
        near, turned = place.pose or place.gps, place.pose is not None and place.pose.q is not None
        known = {"near": near is not None, "heading": turned, "hours": hour == hour}
        self._without.update(name for name in own if not known[name])
        fields: dict[str, Any] = {}
        if self._options.near is not None and known["near"]:
            fields |= {"near": near, "radius": self._options.near}
        if self._options.heading is not None and known["heading"]:
            fields |= {"near": near, "turn": self._options.heading}
        if self._options.hours is not None and known["hours"]:
            fields |= {"hour": hour, "hours": self._options.hours}
        if not fields:
            return self._only
        return Prior(**fields) if self._only is None else dataclasses.replace(self._only, **fields)

    def warn(self, query: str, total: int) -> None:
        """Warn of frames without a value that an option needs, among `total` frames of the source `query`."""
        for name, count in self._without.items():
            log.warning(
                "%s: %d of %d pictures have no %s, so --%s was left out for them",
                query,
                count,
                total,
                NEEDS[name],
                name,
            )
