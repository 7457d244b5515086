"""Define the interface that every source of pictures implements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.clocks import SteadyClock
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.geometry.transforms import Transform
from pairvpr.runtime.remarks import Tally

Wanted = Callable[[int, str, "float | None"], bool]
"""Decides, from a frame's number, name and timestamp, whether its picture is converted and yielded."""

S = TypeVar("S", bound="Source")


class NotThereError(SourceError):
    """A camera or stream cannot be reached now, and may be later."""


class Header(NamedTuple):
    """Hold the header of a ROS message: exact nanoseconds since 1970, and the id of its coordinate frame."""

    stamp: int
    frame_id: str


@dataclass(frozen=True)
class Frame:
    """Hold one picture of a source, or the error that kept it from being read.

    name: the picture's path relative to the folder, or `clip.mp4#000123` for a video frame, counted from 0.
    timestamp: seconds. A video file or finite stream counts from its start. A recording gives Unix time, and a live
    source the Unix time of arrival.
    picture: upright RGB, None if there is an error.
    error: one line, None if there is a picture.
    decode_ms: milliseconds spent on reading and decoding.
    pose, gps: the place, if the source itself has it.
    path: the picture's own file, if there is one.
    header: the header of the ROS message that held the picture, if there was one.
    beside: frames of the robot's other cameras at the same moment.
    mount: pose of the camera in the robot's base, if it is known.
    fitted: the picture in the sizes of the graphs of a model, if it was resized ahead.
    fit_ms: milliseconds spent on resizing ahead.
    """

    name: str
    timestamp: float | None
    picture: Image.Image | None
    error: str | None
    decode_ms: float
    pose: Pose | None = None
    gps: Gps | None = None
    path: Path | None = None
    header: Header | None = None
    beside: tuple[Frame, ...] = ()
    mount: Transform | None = None
    fitted: tuple[npt.NDArray[np.uint8], ...] | None = None
    fit_ms: float = 0.0

    @property
    def cameras(self) -> tuple[Frame, ...]:
        """Return the frames of all cameras at this moment, this one first."""
        return self, *self.beside


def every_frame(number: int, name: str, timestamp: float | None) -> bool:
    """Accept every frame."""
    return True


class ClockWatch:
    """Count the jumps of a recording's clock, and say them once."""

    def __init__(self) -> None:
        self._clock = SteadyClock()
        self._jumps = Tally("jumps of the clock; times before and after a jump are not compared")

    def look(self, name: str, stamp: float | None) -> None:
        """Look at the next frame's time stamp in seconds."""
        if stamp is None:
            return
        jumps = self._clock.jumps
        self._clock.advance(stamp)
        if self._clock.jumps > jumps:
            self._jumps.add(name)


class Source(Protocol):
    """Provide pictures in order. Iterating raises SourceError when a fault ends the source.

    live: True if pictures arrive at their own pace and only the newest is kept.
    single: True if the source is exactly one picture, whose fault is raised and not put into a Frame.
    length: number of frames, None if the source does not know it.
    names: names of the frames, None if they are not known before reading.
    origin: the folder, file or device that names are relative to. Origin and name together identify a picture.
    dropped: frames of a live source that were replaced by newer ones before they were read.
    """

    live: bool = False
    single: bool = False
    length: int | None = None
    names: Sequence[str] | None = None
    origin: str
    dropped: int = 0

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """Yield the frames that `wanted` accepts, in order. The others cost as little as the source allows.

        `wanted` is called for a frame only after all earlier frames were yielded.
        """
        ...

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def ready(self, seconds: float) -> bool:
        """Wait at most some seconds for a frame or the end, and return whether one is there. A recording always is."""
        return True

    def close(self) -> None:
        """Release files, threads and devices. May be called again."""
        ...

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
