"""Choose frames of a source, and undistort, rotate and crop its pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter

from PIL import Image

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.clocks import SteadyClock
from pairvpr.runtime.remarks import Tally
from pairvpr.runtime.sources.base import Frame, Source, Wanted, every_frame
from pairvpr.runtime.sources.options import SourceOptions
from pairvpr.runtime.sources.undistort import Lens

_TURNS = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}


class TransformedSource(Source):
    """Provide the chosen frames of another source, with transformed pictures. Closing closes the other source.

    Iterating raises SourceError if frames are chosen by time and have no time stamps, and if a picture does not fit
    the calibration or the crop.
    """

    def __init__(self, source: Source, options: SourceOptions, lens: Lens | None) -> None:
        self._source = source
        self._options = options
        self._lens = lens
        self.live = source.live
        self.single = source.single
        self.origin = source.origin
        if not options.by_time:
            self.names = None if source.names is None else source.names[:: options.every]
            self.length = None if source.length is None else math.ceil(source.length / options.every)

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """Yield the frames that the options choose and that are `wanted`."""
        filter_ = _FrameFilter(self._options)
        try:
            for frame in self._source.frames(lambda *asked: filter_.accept(*asked) and wanted(*asked)):
                self.dropped = self._source.dropped
                yield self._transform(frame)
        except _EndOfChoice:
            return

    def ready(self, seconds: float) -> bool:
        """See `Source`. The frame that is there may be one that the options leave out."""
        return self._source.ready(seconds)

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _transform(self, frame: Frame) -> Frame:
        """Return the transformed frame. In a live source a picture that does not fit is an error of its frame."""
        try:
            return transform_frame(frame, self._options, self._lens)
        except SourceError as error:
            if not self.live:
                raise
            return replace(frame, picture=None, error=str(error))


def transform_frame(frame: Frame, options: SourceOptions, lens: Lens | None) -> Frame:
    """Return the frame with its picture undistorted, turned and cropped.

    A frame without a picture is returned unchanged. Raises SourceError if the picture does not fit the calibration or
    the crop.
    """
    if frame.picture is None:
        return frame
    started, picture = perf_counter(), frame.picture
    if lens is not None:
        picture = lens.undistort(picture, frame.name)
    if options.rotate:
        picture = picture.transpose(_TURNS[options.rotate])
    if options.crop is not None:
        x, y, width, height = options.crop
        if x + width > picture.width or y + height > picture.height:
            size = f"{picture.width} x {picture.height}"
            raise SourceError(
                f"--crop {x},{y},{width},{height} exceeds {frame.name}, of {size} pixels: choose a part inside"
            )
        picture = picture.crop((x, y, x + width, y + height))
    return replace(frame, picture=picture, decode_ms=frame.decode_ms + (perf_counter() - started) * 1e3)


class _EndOfChoice(Exception):  # noqa: N818  not an error
    """Stop the source from reading on, because no later frame can be chosen."""


class _FrameFilter:
    """Choose frames by their numbers and times alone, so that a later run chooses the same."""

    def __init__(self, options: SourceOptions) -> None:
        self._options = options
        self._clock = SteadyClock()
        self._started = False
        self._still = Tally("frames have the time stamp of the frame before, and are left out by --max-fps")
        self._second_part = -1

    def accept(self, number: int, name: str, timestamp: float | None) -> bool:
        """Return whether the next frame is chosen. Raise `_EndOfChoice` after the last."""
        options = self._options
        if not options.by_time:
            return number % options.every == 0
        if timestamp is None and not self._started:
            raise SourceError(
                f"{name} has no time stamp, which --start, --duration and --max-fps need: use --every instead"
            )
        self._started = True
        still = self._clock.still
        if timestamp is not None:  # a packet that could not be decoded may lack it
            self._clock.advance(timestamp)
        elapsed = self._clock.elapsed - options.start
        if elapsed < 0:
            return False
        if options.duration is not None and elapsed >= options.duration:
            raise _EndOfChoice
        if number % options.every:
            return False
        if options.max_fps is None:
            return True
        # One frame for each 1/max_fps of a second. A wait from frame to frame would lower the rate when times jitter.
        part = math.floor(elapsed * options.max_fps + 1e-6)
        is_new, self._second_part = part > self._second_part, max(part, self._second_part)
        if self._clock.still > still:
            self._still.add(name)
        return is_new
