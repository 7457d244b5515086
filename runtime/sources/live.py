"""Cameras and endless streams, of which only the newest frame counts."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from pairvpr.errors import SourceError
from pairvpr.runtime.sources.base import Frame, Source, Wanted, every_frame

READ_TIMEOUT = 10.0  # seconds without data after which a camera or stream counts as lost
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds until a lost one is tried again; doubled from try to try

logger = logging.getLogger(__name__)


class Shot(Protocol):
    """A frame as it arrived, not converted yet."""

    def as_frame(self, name: str, timestamp: float | None) -> Frame:
        """The frame with its picture in RGB, or with what was wrong."""
        ...


class Feed(Protocol):
    """An open camera or stream."""

    def shots(self) -> Iterator[Shot]:
        """Its frames in order until it ends; raises SourceError when it is lost. Keeps none that it gave away."""
        ...

    def close(self) -> None:
        """Releases the camera or connection."""
        ...


class LiveSource(Source):
    """A camera or stream, read in a thread that keeps only the newest frame.

    A slow consumer so never answers for a picture of the past: what arrives while it works is counted in
    `dropped` and forgotten. Frames are numbered as they arrive, dropped ones too. One that is lost (unplugged, cut,
    silent for READ_TIMEOUT) is opened again after FIRST_WAIT, twice as long after each try that fails up to
    LONGEST_WAIT, until it is closed; each loss and try is logged. It can be iterated once.

    connect: opens it; raises SourceError, in the constructor too. first: one that is open already, in its place.
    endless: an end is a loss; else it ends the iteration.
    """

    live = True
    single = False
    length: int | None = None
    names: Sequence[str] | None = None

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
        self._changed = threading.Condition()  # guards all below
        self._newest: _Arrived | None = None
        self._closing = False
        self._ended = False
        self._fault: BaseException | None = None
        feed = connect() if first is None else first
        self._thread = threading.Thread(target=self._run, args=(feed,), name=f"pairvpr {name}", daemon=True)
        self._thread.start()

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
                # Converted while the lock keeps the thread from closing the feed.
                is_wanted = wanted(newest.number, newest.name, newest.timestamp)
                frame = newest.convert() if is_wanted else None
                newest = None
            if frame is not None:
                yield frame

    def close(self) -> None:
        """Stops the thread, which with the next frame or timeout releases the camera or connection."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # A driver that hangs inside the kernel cannot be interrupted: then the device goes with the process.
        self._thread.join(READ_TIMEOUT + 1)
        if self._thread.is_alive():
            logger.warning("%s does not answer: it is released only when the program ends", self._name)

    def _run(self, feed: Feed | None) -> None:
        try:
            while feed is not None:
                loss = self._read(feed)
                feed = None if loss is None else self._connect_again(loss)
        except BaseException as fault:  # raised again where the frames are wanted
            _forget_locals(fault)
            self._fault = fault
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _read(self, feed: Feed) -> str | None:
        """Publishes the feed's frames, closes it, and says how it was lost; None where it is not wanted any more."""
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
            # In this thread, because closing under a running read would crash; and only now that no frame is
            # left, because a camera's frames lie in the driver's memory, which goes with the feed.
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
        """The feed opened again, however long it takes; None where it is not wanted any more."""
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
                logger.warning("%s is there again", self._name)
                return feed

    def _arrived(self, shot: Shot) -> _Arrived:
        name, now = f"{self._name}#{self._number:06d}", time.time()
        return _Arrived(self._number, name, now, partial(shot.as_frame, name, now))


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
