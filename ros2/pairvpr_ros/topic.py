"""The images of a topic as a source of pictures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pairvpr.runtime.sources.base import Frame, Source, Wanted, every_frame
from pairvpr.runtime.sources.ros_messages import parse_frame, parse_header


class TopicSource(Source):
    """Images as they are offered, of which only the newest is kept, for a robot has no use for places of the past."""

    live = True
    single = False
    length: int | None = None
    names: Sequence[str] | None = None

    def __init__(self, topic: str) -> None:
        self.dropped = 0
        self.origin = topic
        self._changed = threading.Condition()  # guards all below
        self._newest: Any = None
        self._count = 0
        self._closed = False

    def offer(self, message: Any) -> None:
        """Take an Image or CompressedImage message, in place of one that nobody asked for in time."""
        with self._changed:
            self.dropped += self._newest is not None
            self._newest = message
            self._count += 1
            self._changed.notify_all()

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """The newest image, each time one is asked for, if it is wanted; else the next that is."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._newest is not None)
                if self._closed:
                    return
                message, self._newest, number = self._newest, None, self._count - 1
            header = parse_header(message, time.time_ns())
            name = f"{self.origin}#{number:06d}"
            if wanted(number, name, header.stamp / 1e9):
                yield parse_frame(message, name, header)

    def close(self) -> None:
        """Ends whoever waits for a frame."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
