"""The newest image of each camera."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pairvpr.errors import SourceError
from pairvpr.runtime.outputs.ros_messages import LAST_STAMP
from pairvpr.runtime.sources.base import Frame, Header
from pairvpr.runtime.sources.options import SourceOptions
from pairvpr.runtime.sources.ros_messages import parse_frame, parse_header
from pairvpr.runtime.sources.transforms import transform_frame
from pairvpr.runtime.sources.undistort import Lens, parse_camera, read_camera

TOGETHER = 0.05  # seconds after the first image of a round in which the other cameras' images join it


class CameraInput:
    """One camera: its newest message, and its images as the map's looked.

    topic: its name in messages, as resolved. options: the changes to images. from_info: the calibration comes as
    CameraInfo messages. clock: nanoseconds now, for images without a time stamp.
    Raises SourceError if the calibration that options name cannot be used.
    """

    def __init__(self, topic: str, options: SourceOptions, from_info: bool, clock: Callable[[], int]) -> None:
        self.topic = topic
        self.dropped = 0
        self.seen: float | None = None  # time.monotonic() of the last message
        self._options, self._clock, self._from_info = options, clock, from_info
        self._lens = None if options.undistort is None else Lens(read_camera(options.undistort))
        self._info: Any = None
        self._seen_by: tuple[Any, ...] = ()  # the calibration that the lens was made of
        self._count = 0
        self._newest: Any = None

    def put(self, message: Any) -> None:
        """Keep an image message in place of one that nobody took."""
        self.dropped += self._newest is not None
        self._newest = message
        self._count += 1
        self.seen = time.monotonic()

    def take(self) -> tuple[Any, int] | None:
        """Return the newest message and its number, once."""
        message, self._newest = self._newest, None
        return None if message is None else (message, self._count - 1)

    @property
    def waiting(self) -> bool:
        """Return whether there is a message to take."""
        return self._newest is not None

    def put_info(self, message: Any) -> None:
        """Keep a CameraInfo message, which the next image is undistorted by."""
        self._info = message

    def frame(self, message: Any, number: int) -> Frame:
        """Return the message's picture as the map's pictures looked, or why there is none."""
        name = f"{self.topic}#{number:06d}"
        header = parse_header(message, self._clock())
        if not 0 <= header.stamp < LAST_STAMP:
            told = (
                f"{name}: its time stamp, {header.stamp / 1e9:.3f} s, is outside 1970 to 2038: set the camera's clock"
            )
            header = Header(self._clock(), header.frame_id)
            return Frame(name, header.stamp / 1e9, None, told, 0.0, header=header)
        frame = parse_frame(message, name, header)
        if frame.picture is None:
            return frame
        try:
            return transform_frame(frame, self._options, self._find_lens())
        except SourceError as error:
            return replace(frame, picture=None, error=str(error))

    def _find_lens(self) -> Lens | None:
        """Return the lens of the newest CameraInfo, made anew if that changed; raises SourceError."""
        if not self._from_info:
            return self._lens
        info = self._info
        if info is not None:
            fields = (info.width, info.height, info.distortion_model, *map(tuple, (info.d, info.k, info.r, info.p)))
            if fields != self._seen_by:
                self._lens = Lens(parse_camera(info, f"the CameraInfo of {self.topic}"))
                self._seen_by = fields
        if self._lens is None:
            raise SourceError(f"{self.topic}: no CameraInfo has come yet: publish it, or set undistort to a file")
        return self._lens


class Cameras:
    """The cameras of a robot, of which a round takes the newest image of each."""

    def __init__(self, cameras: list[CameraInput]) -> None:
        self.all = cameras
        self._changed = threading.Condition()
        self._closed = False

    def offer(self, index: int, message: Any) -> None:
        """Take an Image or CompressedImage message of a camera; it replaces one that is still waiting."""
        with self._changed:
            if not self._closed:
                self.all[index].put(message)
                self._changed.notify_all()

    def offer_info(self, index: int, message: Any) -> None:
        """Take a CameraInfo message of a camera."""
        with self._changed:
            self.all[index].put_info(message)

    def wait(self) -> list[tuple[CameraInput, Any, int]] | None:
        """Return the newest images, at least one and with their numbers; None once closed.

        Images that come within TOGETHER of the first belong to the round.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or any(each.waiting for each in self.all))
            self._changed.wait_for(lambda: self._closed or all(each.waiting for each in self.all), TOGETHER)
            if self._closed:
                return None
            taken = ((each, each.take()) for each in self.all)
            return [(camera, *found) for camera, found in taken if found is not None]

    def sleep(self, seconds: float) -> None:
        """Wait, at most until `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def forget(self) -> None:
        """Drop the images that wait."""
        with self._changed:
            for each in self.all:
                each.take()

    def close(self) -> None:
        """End whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
