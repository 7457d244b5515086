"""The runtime's log as the node's log."""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rclpy.logging import LoggingSeverity

from pairvpr_ros.parameters import Parameters

LOG = logging.getLogger("pairvpr")
NAMES = {each.name for each in dataclasses.fields(Parameters)}


def in_parameters(text: str) -> str:
    """Return the text with names of parameters in place of the command line's options of the same name."""

    def parameter(option: re.Match[str]) -> str:
        name = option[1].replace("-", "_")
        return name if name in NAMES else option[0]

    return re.sub(r"--([a-z][a-z-]*[a-z])", parameter, text)


class RosLog(logging.Handler):
    """Passes records of the threads of one node to its logger.

    logger: the node's. Several nodes in one process each have their own.
    """

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger
        self._threads: set[int | None] = set()
        LOG.addHandler(self)
        is_debugged = logger.get_effective_level() <= LoggingSeverity.DEBUG
        LOG.setLevel(logging.DEBUG if is_debugged else logging.INFO)

    @contextmanager
    def of_this_thread(self) -> Iterator[None]:
        """Pass records of the calling thread until the block ends."""
        thread = threading.get_ident()
        self._threads.add(thread)
        try:
            yield
        finally:
            self._threads.discard(thread)

    def of_thread(self, thread: int | None) -> None:
        """Pass records of another thread."""
        self._threads.add(thread)

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record of one of the threads at its level."""
        if record.thread not in self._threads:
            return
        text = in_parameters(self.format(record))
        if record.levelno >= logging.ERROR:  # each level from a line of its own, as rclpy demands
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        elif record.levelno >= logging.INFO:
            self._logger.info(text)
        else:
            self._logger.debug(text)

    def close(self) -> None:
        """Pass no more records."""
        LOG.removeHandler(self)
        super().close()
