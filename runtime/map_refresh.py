"""Reload the map when another process has changed it, without interrupting queries."""

from __future__ import annotations

import logging
import time

from pairvpr.errors import MapError
from pairvpr.runtime.recognizer import PlaceRecognizer

log = logging.getLogger(__name__)


class Refresher:
    """Keep the map of a running recognizer up to date. An error is logged once, until a refresh succeeds."""

    INTERVAL = 1.0
    """Seconds between two looks at the map."""

    def __init__(self, recognizer: PlaceRecognizer) -> None:
        self._recognizer = recognizer
        self._due = time.monotonic() + self.INTERVAL
        self._logged = ""

    def poll(self) -> None:
        """Refresh the map if INTERVAL has passed since the last look."""
        if time.monotonic() < self._due:
            return
        try:
            self._recognizer.refresh()
            self._logged = ""
        except MapError as error:
            if str(error) != self._logged:
                log.warning("%s; answers continue with the map read before", error)
            self._logged = str(error)
        self._due = time.monotonic() + self.INTERVAL
