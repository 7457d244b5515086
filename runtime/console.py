"""What both commands share: one-line errors, exit codes, progress, and what is said of a model."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import click

from pairvpr.errors import PairVPRError
from pairvpr.runtime.bundle import Bundle

INTERRUPTED = 130  # the shell's own code for Ctrl-C


class _OneLineErrors:
    """Exit 2 and one line on stderr for whatever the user can mend; a traceback is a bug."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        run: Callable[..., Any] = super().main  # type: ignore[misc]
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        try:
            code = run(*args, standalone_mode=False, **extra)
        except click.UsageError as error:
            hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
            _fail(error.format_message().rstrip(".") + hint)
        except (click.ClickException, PairVPRError) as error:
            _fail(error.format_message() if isinstance(error, click.ClickException) else str(error))
        except (click.Abort, KeyboardInterrupt):
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # The reader (`| head`) has seen enough; what is still buffered has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        sys.exit(code if isinstance(code, int) else 0)


class Command(_OneLineErrors, click.Command):
    """A command with one-line errors."""


class Group(_OneLineErrors, click.Group):
    """A group of commands with one-line errors."""


def _fail(message: str) -> NoReturn:
    click.echo("Error: " + " ".join(message.split()), err=True)
    sys.exit(2)


def log_to_stderr() -> None:
    """Send the package's log to stderr as plain lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("pairvpr")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


def say_model(bundle: Bundle) -> None:
    """Say on stderr which weights answer, under which licence, and whether they were ever trained."""
    weights = bundle.info.weights
    click.echo(
        f"model: {bundle.info.preset} {bundle.identity[:12]}, weights: {weights.origin}, licence: {weights.licence}",
        err=True,
    )
    if not weights.trained:
        click.echo("these weights are seeded, never trained: answers show the machinery, not the method", err=True)


class Meter:
    """Progress on stderr: count, rate and time left; a line now and then where stderr is no terminal."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.terminal = sys.stderr.isatty()
        self.interval = 0.2 if self.terminal else 10.0
        self.start = self.shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done, if the last showing was long enough ago or it is the end."""
        now = time.monotonic()
        if done < total and now - self.shown < self.interval:
            return
        self.shown = now
        rate = done / max(now - self.start, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if 0 < done < total else ""
        line = f"{self.what}: {done} of {total}, {rate:.1f} a second{left}"
        if self.terminal:
            click.echo(f"\r\033[K{line}", err=True, nl=done >= total)
        else:
            click.echo(line, err=True)
