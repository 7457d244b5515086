"""Show progress on stderr."""

from __future__ import annotations

import sys
import time

import click

from pairvpr.cli.log import release_log
from pairvpr.printing import print_line


class Meter:
    """Progress of one piece of work: count, rate and time left.

    A terminal shows it on one line. Other outputs get a line every 10 seconds.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.terminal = sys.stderr.isatty()
        self.interval = 0.2 if self.terminal else 10.0
        self.start = self.shown = time.monotonic()

    def update(self, done: int, total: int | None) -> None:
        """Show that `done` of `total` (None: unknown) are done, unless the last line is newer than the interval.

        The end is always shown.
        """
        release_log()
        now = time.monotonic()
        if done != total and now - self.shown < self.interval:
            return
        self.shown = now
        spent = now - self.start
        line = f"{self.name}: {done}" + ("" if total is None else f" of {total}")
        if spent > 1:  # a rate means nothing before
            line += f", {done / spent:.1f} a second"
            if total is not None and 0 < done < total:
                line += f", {(total - done) * spent / done:.0f} s left"
        if self.terminal:
            click.echo(f"\r\033[K{line}", err=True, nl=done == total)
        else:
            print_line(line, err=True)


class Meters:
    """Progress of work in several steps, with a meter for each."""

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}

    def update(self, step: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` are done in `step`; see `Meter.update`."""
        self._meters.setdefault(step, Meter(step)).update(done, total)
