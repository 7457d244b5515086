"""What both commands share: one-line errors, exit codes, progress, and what is said of a model."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from types import FrameType
from typing import Any, NoReturn

import click

from pairvpr.errors import PairVPRError
from pairvpr.runtime.cli.log import JsonLines, log, release_log

INTERRUPTED, TERMINATED = 130, 143  # the shell's own codes for Ctrl-C and SIGTERM

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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
