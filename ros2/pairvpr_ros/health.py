"""What the node says of its inputs once a second, and how often it repeats itself."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pairvpr.runtime.outputs.ros_messages import Message, Status, compose_diagnostics
from pairvpr.runtime.sources.base import Header
from pairvpr_ros.cameras import CameraInput

SILENCE = 3.0  # seconds without an image that are worth a warning


class Throttle:
    """Say a thing at once, and again only after a while.

    seconds: between two times that `allows` permits the same key.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._last: dict[str, float] = {}

    def allows(self, key: str) -> bool:
        """Return whether it is time to say this, and take it as said if so."""
        now = time.monotonic()
        if now - self._last.get(key, float("-inf")) < self._seconds:
            return False
        self._last[key] = now
        return True


def silent_cameras(cameras: Sequence[CameraInput], since: float) -> dict[str, float]:
    """Return the topics without an image for SILENCE seconds, and for how many seconds they have had none.

    since: `time.monotonic()` from which on images were expected.
    """
    now = time.monotonic()
    quiet = {each.topic: now - max(since, each.seen or since) for each in cameras}
    return {topic: seconds for topic, seconds in quiet.items() if seconds >= SILENCE}


def input_status(node: str, cameras: Sequence[CameraInput], silent: dict[str, float], now: int) -> Message:
    """Return diagnostics of the images that come in; now: nanoseconds."""
    statuses = []
    for camera in cameras:
        seconds = silent.get(camera.topic)
        told = "images come in" if seconds is None else f"no images for {seconds:.0f} s on {camera.topic}"
        level = "OK" if seconds is None else "WARN"
        values = {"images_dropped": str(camera.dropped)}
        statuses.append(Status(level, f"{node}: images of {camera.topic}", told, camera.topic, values))
    return compose_diagnostics(Header(now, ""), statuses)
