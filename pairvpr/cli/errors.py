"""Turn errors and signals into exit codes and one line on stderr."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from types import FrameType
from typing import Any, NoReturn

import click

from pairvpr.cli.log import JsonLines, log, release_log
from pairvpr.errors import PairVPRError
from pairvpr.printing import print_line
from pairvpr.runtime.remarks import remark_scope

INTERRUPTED, TERMINATED = 130, 143  # the exit codes of shells for Ctrl-C and SIGTERM

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Terminated(KeyboardInterrupt):
    """SIGTERM, which service managers send. It ends a command in the same way as Ctrl-C."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


@contextmanager
def if_interrupted(message: str) -> Iterator[None]:
    """Make Ctrl-C and SIGTERM in the block end the command with `message`."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise type(error)(message) from error


@contextmanager
def _handle_sigterm() -> Iterator[None]:
    """Raise Terminated on SIGTERM inside the block. Python allows this in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        # None stands for a handler that was not installed from Python, which cannot be put back.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class Command(click.Command):
    """A command that exits with 2 and one line on stderr for every error a user can mend.

    Any other exception is a bug and shows its traceback.
    """

    def main(self, *args: Any, **named: Any) -> Any:
        """Run the command and exit; return its result if not in standalone mode."""
        named["standalone_mode"], standalone = False, named.get("standalone_mode", True)
        if not standalone:
            return super().main(*args, **named)
        if isinstance(sys.stdout, io.TextIOWrapper):
            # JSON lines are UTF-8 in any locale, and file names need not be text.
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        try:
            with _handle_sigterm(), remark_scope():
                code = super().main(*args, **named)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.UsageError as error:
            hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
            _fail(error.format_message().rstrip(".") + hint)
        except (click.ClickException, PairVPRError) as error:
            _fail(error.format_message() if isinstance(error, click.ClickException) else str(error))
        except (MemoryError, ImportError, OSError) as error:
            if not _lacks_memory(error):
                raise
            _fail("too little memory is free; end other programs and run it again; committed pictures are kept")
        except (click.Abort, KeyboardInterrupt) as error:
            cause = error.__cause__ or error
            print_line(f"interrupted; {str(cause) or 'nothing that was committed is lost'}", err=True)
            sys.exit(TERMINATED if isinstance(cause, Terminated) else INTERRUPTED)
        release_log()
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command's function. Handle a closed pipe and a full disk, which click would turn into exit code 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader (`| head`) has seen enough
            _discard_output()
            sys.exit(0)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            _discard_output()
            file = error.filename or "the output"
            raise click.ClickException(
                f"{file} cannot be written ({error.strerror}); make room and run the command again"
            ) from error


class Group(Command, click.Group):
    """A group of commands with the errors of `Command`."""


def _fail(message: str) -> NoReturn:
    for handler in log.handlers:
        if isinstance(handler, MemoryHandler):
            handler.buffer.clear()  # otherwise Python prints it when it exits
            if handler.target is not None and isinstance(handler.target.formatter, JsonLines):
                log.error(" ".join(message.split()))
                sys.exit(2)
    print_line("Error: " + " ".join(message.split()), err=True)
    sys.exit(2)


def _lacks_memory(error: Exception) -> bool:
    """Return whether an error is for want of memory. Libraries that cannot be loaded say so in their message."""
    if isinstance(error, ImportError):
        return "failed to map segment" in str(error) or "cannot allocate memory" in str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def _discard_output() -> None:
    """Drop the buffer of stdout. Python would fail again when it flushes the buffer at exit."""
    with suppress(OSError, ValueError):  # stdout need not be a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
