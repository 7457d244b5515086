"""Read cameras and endless streams, keeping only the newest frame."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from pairvpr.errors import SourceError
from pairvpr.runtime.sources.base import Frame, NotThereError, Source, Wanted, every_frame

READ_TIMEOUT = 10.0  # seconds without data after which a camera or stream counts as lost
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a lost source is tried again, doubled after each try

logger = logging.getLogger(__name__)


class Shot(Protocol):
    """Hold a frame as it arrived, before conversion."""

    def as_frame(self, name: str, timestamp: float | None) -> Frame:
        """Return the frame with its picture in RGB, or with an error."""
        ...


class Feed(Protocol):
    """Read an open camera or stream."""

    def shots(self) -> Iterator[Shot]:
        """Yield the frames in order until the end. Raise SourceError when the camera or stream is lost.

        No reference to a yielded frame is kept.
        """
        ...

    def close(self) -> None:
        """Release the camera or connection."""
        ...


class LiveSource(Source):
    """Read a camera or stream in a thread that keeps only the newest frame.

    A slow consumer therefore never answers for an old picture. Frames that arrive while the consumer works are counted
    in `dropped` and forgotten. Frames are numbered as they arrive, dropped frames too. The source can be iterated once.

    A lost camera or stream (unplugged, cut, silent for READ_TIMEOUT) is opened again after FIRST_WAIT. The wait doubles
    after each failed try, up to LONGEST_WAIT. Each loss and try is logged. One that is not there at first counts as
    lost.

    name: the name of the source in frames, messages and logs.
    connect: opens the camera or stream. It may raise SourceError, which the constructor passes on, except a
    NotThereError.
    first: a feed that is open already, used in place of the first `connect`.
    endless: if True, the end of the feed is a loss. If False, it ends the iteration.
    """

    live = True

    def __init__(
        self, name: str, connect: Callable[[], Feed], *, first: Feed | None = None, endless: bool = True
    ) -> None:
        self.dropped = 0
        self.origin = name
        self._name = name
        self._connect = connect
        self._endless = endless
        self._wait = FIRST_WAIT
        self._number = 0
        self._changed = threading.Condition()  # guards all attributes below
        self._newest: _Arrived | None = None
        self._closing = False
        self._ended = False
        self._fault: BaseException | None = None
        feed, loss = first, None
        if feed is None:
            try:
                feed = connect()
            except NotThereError as fault:
                _forget_locals(fault)
                loss = str(fault)
        self._thread = threading.Thread(target=self._run, args=(feed, loss), name=f"pairvpr {name}", daemon=True)
        self._thread.start()

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """Yield the newest frame that is wanted, each time the consumer asks for one."""
        while True:
            with self._changed:
                while self._newest is None and not self._ended:
                    self._changed.wait()
                newest, self._newest = self._newest, None
                if newest is None or self._closing:
                    if self._fault is not None:
                        raise self._fault
                    return
                # Converted while the lock keeps the thread from closing the feed.
                is_wanted = wanted(newest.number, newest.name, newest.timestamp)
                frame = newest.convert() if is_wanted else None
                newest = None
            if frame is not None:
                yield frame

    def ready(self, seconds: float) -> bool:
        """See `Source`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._newest is not None or self._ended, seconds)

    def close(self) -> None:
        """Stop the thread, which releases the camera or connection at the next frame or timeout."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # A driver that hangs inside the kernel cannot be interrupted. The device is then released with the process.
        self._thread.join(READ_TIMEOUT + 1)
        if self._thread.is_alive():
            logger.warning("%s does not respond; it is released when the program ends", self._name)

    def _run(self, feed: Feed | None, loss: str | None) -> None:
        try:
            if loss is not None:
                feed = self._connect_again(loss)
            while feed is not None:
                loss = self._read(feed)
                feed = None if loss is None else self._connect_again(loss)
        except BaseException as fault:  # raised again in `frames`
            _forget_locals(fault)
            self._fault = fault
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _read(self, feed: Feed) -> str | None:
        """Publish the feed's frames and close it. Return the reason of a loss, None if the source is finished."""
        try:
            self._publish(feed)
            loss = f"{self._name} has ended" if self._endless else None
        except SourceError as fault:
            _forget_locals(fault)
            loss = str(fault)
        finally:
            with self._changed:
                if self._newest is not None:
                    frame = self._newest.convert()
                    self._newest = replace(self._newest, convert=lambda: frame)
            # In this thread, because closing during a read would crash. After the last frame is converted, because
            # a camera's frames lie in the driver's memory, which is released with the feed.
            feed.close()
        return None if self._closing else loss

    def _publish(self, feed: Feed) -> None:
        for shot in feed.shots():
            with self._changed:
                if self._closing:
                    return
                self.dropped += self._newest is not None
                self._newest = self._arrived(shot)
                self._changed.notify_all()
            self._number += 1
            self._wait = FIRST_WAIT

    def _connect_again(self, loss: str) -> Feed | None:
        """Open the feed again, however long it takes. Return None if the source is closed meanwhile."""
        while True:
            logger.warning("%s; trying again in %.1f s", loss, self._wait)
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, self._wait):
                    return None
            self._wait = min(2 * self._wait, LONGEST_WAIT)
            try:
                feed = self._connect()
            except SourceError as fault:
                _forget_locals(fault)
                loss = str(fault)
            else:
                logger.warning("%s is connected", self._name)
                return feed

    def _arrived(self, shot: Shot) -> _Arrived:
        name, now = f"{self._name}#{self._number:06d}", time.time()
        return _Arrived(self._number, name, now, partial(shot.as_frame, name, now))


@dataclass(frozen=True)
class _Arrived:
    """Hold the newest frame before conversion.

    timestamp: Unix time of arrival.
    """

    number: int
    name: str
    timestamp: float
    convert: Callable[[], Frame]


def _forget_locals(fault: BaseException | None) -> None:
    """Release the local variables that the traceback holds."""
    while fault is not None:
        traceback.clear_frames(fault.__traceback__)
        fault = fault.__cause__ or fault.__context__
