"""Taking in, while answers go on, what other programs make of the map."""

from __future__ import annotations

import logging
import time

from pairvpr.errors import MapError
from pairvpr.runtime.recognizer import PlaceRecognizer

log = logging.getLogger(__name__)


class Refresher:
    """Keeps a running recogniser's map up to date: a look every second, and what stands in the way is said once."""

    INTERVAL = 1.0

    def __init__(self, recognizer: PlaceRecognizer) -> None:
        self._recognizer = recognizer
        self._due = time.monotonic() + self.INTERVAL
        self._said = ""

    def poll(self) -> None:
        """Look, if it is time to."""
        if time.monotonic() < self._due:
            return
        try:
            self._recognizer.refresh()
            self._said = ""
        except MapError as error:
            if str(error) != self._said:
                log.warning("%s; answers go on from the map as it was", error)
            self._said = str(error)
        self._due = time.monotonic() + self.INTERVAL
