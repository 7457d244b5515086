"""Send the package's log to stderr, as text or as JSON lines."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from logging.handlers import MemoryHandler

from pairvpr.runtime.bundle import Bundle

log = logging.getLogger("pairvpr")


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
