"""Send the package's log to stderr, as text or as JSON lines."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from logging.handlers import MemoryHandler
from typing import TYPE_CHECKING

from pairvpr.machine import load_above_cores, usable_cores
from pairvpr.printing import json_line, printable
from pairvpr.runtime.measure import DESCRIPTOR_ALONE

if TYPE_CHECKING:
    from pairvpr.runtime.bundle import Bundle

log = logging.getLogger("pairvpr")


class JsonLines(logging.Formatter):
    """Format a log record as a JSON object with time (UTC), level, logger and message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for a record."""
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        return json_line(line)


class Lines(logging.Formatter):
    """Format a log record as one printable line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for a record, and a traceback below it if the record has one."""
        line = printable(record.getMessage())
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


def log_to_stderr(style: str = "text") -> None:
    """Send the package's log to stderr, as plain lines ("text") or as JSON ("jsonl").

    Lines are held back until `release_log` or the first warning.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if style == "jsonl" else Lines())
    log.handlers = [MemoryHandler(1000, logging.WARNING, handler, flushOnClose=False)]
    log.setLevel(logging.INFO)


def release_log() -> None:
    """Show the log from now on. Commands call it at the first result, so that a failure shows its error alone."""
    for handler in log.handlers:
        if isinstance(handler, MemoryHandler):
            handler.flushLevel = logging.NOTSET
            handler.flush()


def say_renamed(old: str, new: str) -> None:
    """Log that a command line has a new spelling. The old one works for one more version."""
    log.info("`%s` will go with the next version: use `%s`", old, new)


def say_model(bundle: Bundle, engine: str | None = None) -> None:
    """Log the model, its weights' origin and licence, the engine if given, and whether it is a descriptor alone."""
    log.info(
        "model: %s %s, weights: %s, licence: %s%s",
        bundle.info.preset,
        bundle.identity[:12],
        bundle.info.origin,
        bundle.info.licence,
        "" if engine is None else f"; engine: {engine}",
    )
    if not bundle.info.pair_classifier:
        log.info(DESCRIPTOR_ALONE)
    say_untrained(bundle)


def say_untrained(bundle: Bundle) -> None:
    """Log a note if the weights were never trained."""
    if not bundle.info.weights.trained:
        log.info("these weights are seeded and were never trained: the answers test the software, not the method")


def say_busy() -> None:
    """Warn if other programs take this computer's cores, so that measured times are too long."""
    if (load := load_above_cores()) is not None:
        log.warning(
            "this computer is busy (load %.1f, %d cores): times will be too long; end other programs and measure again",
            load,
            usable_cores(),
        )
