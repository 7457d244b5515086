"""Reload the map in a thread of its own when another process has changed it, so that answers never wait for it."""

from __future__ import annotations

import logging
import threading
import time

from pairvpr.errors import MapError
from pairvpr.runtime.recognizer import PlaceRecognizer

log = logging.getLogger(__name__)


class Refresher:
    """Keep the map of a running recognizer up to date. An error is logged once, until a refresh succeeds.

    A writer that stands still inside a commit, or a slow disk, holds up the thread and no answer.
    """

    INTERVAL = 1.0
    """Seconds between two looks at the map."""

    def __init__(self, recognizer: PlaceRecognizer) -> None:
        self._recognizer = recognizer
        self._due = time.monotonic() + self.INTERVAL
        self._logged = ""
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None

    def poll(self) -> None:
        """Start to refresh the map if INTERVAL has passed since the last look ended, and return at once.

        Raises the exception of the last look, unless it was a MapError, which is logged.
        """
        if self._fault is not None:
            raise self._fault
        if (self._thread is not None and self._thread.is_alive()) or time.monotonic() < self._due:
            return
        # A daemon: a writer that stands still must not hold up the end of the program either.
        self._thread = threading.Thread(target=self._look, name="pairvpr map", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        try:
            self._recognizer.refresh()
            self._logged = ""
        except MapError as error:
            if str(error) != self._logged:
                log.warning("%s; answers continue with the map read before", error)
            self._logged = str(error)
        except BaseException as fault:  # raised again in `poll`
            self._fault = fault
        self._due = time.monotonic() + self.INTERVAL
