"""Show progress on stderr."""

from __future__ import annotations

import sys
import time

import click

from pairvpr.runtime.cli.log import release_log


class Meter:
    """Progress on stderr: count, rate and time left; a line now and then where stderr is no terminal."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.terminal = sys.stderr.isatty()
        self.interval = 0.2 if self.terminal else 10.0
        self.start = self.shown = time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        """Show that `done` of `total` (None: not known) are done, if it was not just shown or it is the end."""
        release_log()
        now = time.monotonic()
        if done != total and now - self.shown < self.interval:
            return
        self.shown = now
        spent = now - self.start
        line = f"{self.what}: {done}" + ("" if total is None else f" of {total}")
        if spent > 1:  # before that a rate says nothing
            line += f", {done / spent:.1f} a second"
            if total is not None and 0 < done < total:
                line += f", {(total - done) * spent / done:.0f} s left"
        if self.terminal:
            click.echo(f"\r\033[K{line}", err=True, nl=done == total)
        else:
            click.echo(line, err=True)


class Meters:
    """Progress of work in several steps, a meter for each."""

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` are done in `step`; see `Meter`."""
        self._meters.setdefault(step, Meter(step))(done, total)
