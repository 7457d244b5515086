"""What both commands share: one-line errors, exit codes, progress, and what is said of a model."""

from __future__ import annotations

import dataclasses
import errno
import functools
import io
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from logging.handlers import MemoryHandler
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from pairvpr.errors import PairVPRError, SourceError
from pairvpr.runtime.bundle import Bundle

INTERRUPTED, TERMINATED = 130, 143  # the shell's own codes for Ctrl-C and SIGTERM

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

log = logging.getLogger("pairvpr")


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a service manager sends it: whatever ends in order on Ctrl-C does so on this."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


@contextmanager
def if_interrupted(told: str) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM in the block say what they leave behind."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise type(error)(told) from error


class _OneLineErrors:
    """Exit 2 and one line on stderr for whatever the user can mend; a traceback is a bug."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        run: Callable[..., Any] = super().main  # type: ignore[misc]
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Whatever the locale: JSON lines are UTF-8, and a file name need not even be text.
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        try:
            code = run(*args, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.UsageError as error:
            hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
            _fail(error.format_message().rstrip(".") + hint)
        except (click.ClickException, PairVPRError) as error:
            _fail(error.format_message() if isinstance(error, click.ClickException) else str(error))
        except (click.Abort, KeyboardInterrupt) as error:
            cause = error.__cause__ or error
            click.echo(f"interrupted; {str(cause) or 'nothing that was committed is lost'}", err=True)
            sys.exit(TERMINATED if isinstance(cause, Terminated) else INTERRUPTED)
        release_log()
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what its output cannot take ends here, before click makes exit code 1 of it."""
        run: Callable[..., Any] = super().invoke  # type: ignore[misc]
        try:
            return run(ctx)
        except BrokenPipeError:  # the reader (`| head`) has seen enough
            _discard_output()
            sys.exit(0)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            _discard_output()
            where = error.filename or "the output"
            raise click.ClickException(
                f"{where} cannot be written ({error.strerror}); make room, run it again"
            ) from error


class Command(_OneLineErrors, click.Command):
    """A command with one-line errors."""


class Group(_OneLineErrors, click.Group):
    """A group of commands with one-line errors."""


def _fail(message: str) -> NoReturn:
    for handler in log.handlers:
        if isinstance(handler, MemoryHandler):
            handler.buffer.clear()  # else it comes out when Python leaves
            if handler.target is not None and isinstance(handler.target.formatter, JsonLines):
                log.error(" ".join(message.split()))
                sys.exit(2)
    click.echo("Error: " + " ".join(message.split()), err=True)
    sys.exit(2)


def _discard_output() -> None:
    """What is still buffered has nowhere to go; left there, Python would fail once more on leaving."""
    with suppress(OSError, ValueError):  # stdout may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class JsonLines(logging.Formatter):
    """A log line as a JSON object: time (UTC), level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        return json.dumps(line, ensure_ascii=False)


def log_to_stderr(style: str = "text") -> None:
    """Send the package's log to stderr, plain or as JSON ("jsonl"), from `release_log` or the first warning on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if style == "jsonl" else logging.Formatter("%(message)s"))
    log.handlers = [MemoryHandler(1000, logging.WARNING, handler, flushOnClose=False)]
    log.setLevel(logging.INFO)


def release_log() -> None:
    """Show the log from now on. It is held until there is a result, so that a failure says one line: its error."""
    for handler in log.handlers:
        if isinstance(handler, MemoryHandler):
            handler.flushLevel = logging.NOTSET
            handler.flush()


def say_model(bundle: Bundle, engine: str | None = None) -> None:
    """Say on stderr which weights answer, under which licence, whether they were ever trained, and on what they run."""
    weights = bundle.info.weights
    log.info(
        "model: %s %s, weights: %s, licence: %s%s",
        bundle.info.preset,
        bundle.identity[:12],
        weights.origin,
        weights.licence,
        "" if engine is None else f"; engine: {engine}",
    )
    say_untrained(bundle)


def say_untrained(bundle: Bundle) -> None:
    """Say on stderr that weights were never trained, if so."""
    if not bundle.info.weights.trained:
        log.info("these weights are seeded, never trained: answers show the machinery, not the method")


def _read_crop(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int, int, int] | None:
    if value is None:
        return None
    from pairvpr.runtime.sources.options import read_crop

    try:
        return read_crop(value)
    except SourceError as error:
        raise click.BadParameter(str(error)) from error


_SOURCE_OPTIONS = [
    click.option("--topic", help="A bag's images. Default: its only image topic."),
    click.option("--pose-topic", help="A bag's poses or GPS positions. Default: its only topic of these."),
    click.option("--every", type=click.IntRange(min=1), default=1, help="Take each N-th frame."),
    click.option("--start", type=click.FloatRange(min=0), default=0.0, help="Begin so many seconds into it."),
    click.option("--duration", type=click.FloatRange(min=0, min_open=True), help="End after so many seconds."),
    click.option("--max-fps", type=click.FloatRange(min=0, min_open=True), help="At most so many frames a second."),
    click.option(
        "--undistort",
        type=click.Path(path_type=Path),
        help="Undo the lens's distortion: a ROS camera_info YAML or EuRoC sensor.yaml.",
    ),
    click.option(
        "--rotate",
        type=click.Choice([0, 90, 180, 270]),
        default=0,
        help="Turn pictures clockwise by so many degrees, after --undistort.",
    ),
    click.option("--crop", metavar="X,Y,W,H", callback=_read_crop, help="Cut this part out, after --rotate."),
]


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a source, which reach it together as `options`."""

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        from pairvpr.runtime.sources.options import SourceOptions

        chosen = {field.name: given.pop(field.name) for field in dataclasses.fields(SourceOptions)}
        command(**given, options=SourceOptions(**chosen))

    for option in reversed(_SOURCE_OPTIONS):
        with_options = option(with_options)
    return with_options


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
