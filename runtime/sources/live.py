"""Cameras and endless streams, of which only the newest frame counts."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pairvpr.runtime.sources.base import Frame, Source, Wanted, every_frame
from pairvpr.runtime.sources.video import Decoded, decode, open_container

if TYPE_CHECKING:
    from av.container import InputContainer

READ_TIMEOUT = 10.0  # seconds without data after which a camera or stream counts as lost

logger = logging.getLogger(__name__)


class LiveSource(Source):
    """A camera or stream, read in a thread that keeps only the newest frame.

    A slow consumer so never answers for a picture of the past: what arrives while it works is counted in
    `dropped` and forgotten. Frames are numbered as they arrive, dropped ones too. The end of the stream ends
    the iteration, a fault raises SourceError there. Takes over the container; it can be iterated once.
    """

    live = True
    single = False
    length: int | None = None
    names: Sequence[str] | None = None

    def __init__(self, container: InputContainer, name: str) -> None:
        self.dropped = 0
        self.origin = name
        self._name = name
        self._container = container
        self._changed = threading.Condition()  # guards all below
        self._newest: _Arrived | None = None
        self._closing = False
        self._ended = False
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name=f"pairvpr {name}", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        url: str,
        name: str,
        *,
        format: str | None = None,  # noqa: A002  FFmpeg's word for the kind of container or device
        advice: str = "check the address",
    ) -> LiveSource:
        """Opens a stream address or device; raises SourceError, ending in `advice`, if it cannot be had."""
        return cls(open_container(url, name, format=format, timeout=READ_TIMEOUT, advice=advice), name)

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """The newest frame, each time one is asked for, if it is wanted; else the next that is."""
        while True:
            with self._changed:
                while self._newest is None and not self._ended:
                    self._changed.wait()
                newest, self._newest = self._newest, None
                if newest is None or self._closing:
                    if self._fault is not None:
                        raise self._fault
                    return
                # Converted while the lock keeps the thread from closing the container.
                is_wanted = wanted(newest.number, newest.name, newest.timestamp)
                frame = newest.convert() if is_wanted else None
                newest = None
            if frame is not None:
                yield frame

    def close(self) -> None:
        """Stops the thread, which with the next frame or timeout releases the camera or connection."""
        with self._changed:
            self._closing = True
        # A driver that hangs inside the kernel cannot be interrupted: then the device goes with the process.
        self._thread.join(READ_TIMEOUT + 1)
        if self._thread.is_alive():
            logger.warning("%s does not answer: it is released only when the program ends", self._name)

    def _read(self) -> None:
        try:
            try:
                self._publish()
            finally:
                with self._changed:
                    if self._newest is not None:
                        frame = self._newest.convert()
                        self._newest = replace(self._newest, convert=lambda: frame)
        except BaseException as fault:  # raised again where the frames are wanted
            _forget_locals(fault)
            self._fault = fault
        finally:
            # In this thread, because closing under a running read would crash; and only now that no frame is
            # left, because a camera's frames lie in the driver's memory, which goes with the container.
            self._container.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _publish(self) -> None:
        number = 0  # not enumerate, which holds on to the last frame
        for decoded in decode(self._container, self._name):
            with self._changed:
                if self._closing:
                    return
                self.dropped += self._newest is not None
                self._newest = self._arrived(number, decoded)
                self._changed.notify_all()
            number += 1  # noqa: SIM113

    def _arrived(self, number: int, decoded: Decoded) -> _Arrived:
        name, now = f"{self._name}#{number:06d}", time.time()
        return _Arrived(number, name, now, partial(decoded.as_frame, name, now))


@dataclass(frozen=True)
class _Arrived:
    """The newest frame, not converted yet; `timestamp` is the Unix time at which it arrived."""

    number: int
    name: str
    timestamp: float
    convert: Callable[[], Frame]


def _forget_locals(fault: BaseException | None) -> None:
    """Releases what the traceback holds: the variables of every function the fault came through."""
    while fault is not None:
        traceback.clear_frames(fault.__traceback__)
        fault = fault.__cause__ or fault.__context__
