"""Decode videos and streams with PyAV. No other module imports PyAV."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pairvpr.errors import SourceError
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.sources.base import ClockWatch, Frame, NotThereError, Source, Wanted, every_frame

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

# fmt: off
# Errors of a camera or stream that may be there later.
_PASSING = {
    errno.EBUSY,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.EIO,  # also a name that cannot be resolved yet
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENODEV,
    errno.ENOENT,
    errno.ENXIO,
    errno.ETIMEDOUT,
}
VIDEO_EXTENSIONS = (
    ".264", ".265", ".3gp", ".asf", ".avi", ".dav", ".flv", ".h264", ".h265",
    ".hevc", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)
# fmt: on


class VideoSource(Source):
    """Provide every frame of a video file or finite stream, with the stream's own time stamps in seconds.

    Closing the source closes the container. A packet that cannot be decoded gives a Frame with its error. Iterating
    raises SourceError when a fault ends the stream. The source can be iterated once.
    """

    def __init__(self, container: InputContainer, name: str, origin: str) -> None:
        self._container = container
        self._name = name
        self.origin = origin
        self.length = video_stream(container).frames or None

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """Yield the frames that are wanted. The others are decoded, but not converted."""
        clock = ClockWatch()
        for number, decoded in enumerate(decode(self._container, self._name)):
            name = f"{self._name}#{number:06d}"
            clock.look(name, decoded.seconds)
            if wanted(number, name, decoded.seconds):
                yield decoded.as_frame(name, decoded.seconds)

    def close(self) -> None:
        """Close the file or connection."""
        self._container.close()


class VideoFeed:
    """Read an open camera or stream. Closing the feed closes the container."""

    def __init__(self, container: InputContainer, title: str) -> None:
        self._container = container
        self._title = title

    def shots(self) -> Iterator[Decoded]:
        """Yield the frames in order. Raise SourceError when the camera or stream is lost."""
        return decode(self._container, self._title)

    def close(self) -> None:
        """Close the device or connection."""
        self._container.close()


@dataclass(frozen=True)
class Decoded:
    """Hold a decoded frame, or the error of its packet.

    seconds: the stream's own time stamp.
    """

    video_frame: av.VideoFrame | None
    seconds: float | None
    error: str | None
    decode_ms: float

    def as_frame(self, name: str, timestamp: float | None) -> Frame:
        """Convert the colours to RGB and turn the picture upright."""
        if self.video_frame is None:
            return Frame(name, timestamp, None, self.error, self.decode_ms)
        started = perf_counter()
        picture, error = None, None
        try:
            picture = load_picture(_upright(self.video_frame))
        except (SourceError, ValueError, OSError) as fault:  # PyAV's errors on odd pixel formats are of these
            error = f"{name} cannot be converted to RGB ({' '.join(str(fault).split())}): convert the video"
        return Frame(name, timestamp, picture, error, self.decode_ms + (perf_counter() - started) * 1e3)


def open_container(
    url: str,
    title: str,
    *,
    format: str | None = None,  # noqa: A002  FFmpeg's word for the kind of container or device
    options: dict[str, str] | None = None,
    timeout: float | None = None,
    advice: str = "check that it is a whole video file",
) -> InputContainer:
    """Open a file, stream or device that holds video.

    url: the path or address, as FFmpeg takes it.
    title: the name in error messages.
    format: FFmpeg's name of the container or device, None to detect it.
    options: FFmpeg's options.
    timeout: seconds without data after which opening and reading fail.
    advice: the remedy in error messages.

    Raises SourceError if PyAV is missing or there is no video that can be decoded.
    """
    try:
        import av
    except ImportError as error:
        raise SourceError(f'reading {title} needs PyAV ({error}): pip install "pairvpr[video]"') from error
    try:
        # Metadata is often not UTF-8, and its pictures can still be read.
        container = av.open(url, format=format, options=options, timeout=timeout, metadata_errors="replace")
    except av.error.FFmpegError as error:
        kind = NotThereError if error.errno in _PASSING or isinstance(error, av.error.ExitError) else SourceError
        raise kind(f"{title} cannot be opened ({_reason(error)}): {advice}") from error
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        container.close()
        what = "holds no video" if stream is None else "is in a video format that PyAV has no decoder for"
        raise SourceError(f"{title} {what}: {advice}")
    return container


def video_stream(container: InputContainer) -> VideoStream:
    """Return the video stream of a container from `open_container`."""
    stream = container.streams.best("video")
    assert stream is not None, "open_container returns only containers with video"
    return stream  # type: ignore[return-value]  # PyAV types this as a Stream of any kind


def decode(container: InputContainer, title: str) -> Iterator[Decoded]:
    """Yield the frames of a container in order. Raise SourceError when reading fails.

    No reference to a yielded frame or packet is kept, so that the consumer decides when they are released.
    """
    packets = iter(container.demux(video_stream(container)))
    while (frames := _next_frames(packets, title)) is not None:
        while frames:
            yield frames.pop(0)


def _next_frames(packets: Iterator[av.Packet[VideoStream]], title: str) -> list[Decoded] | None:
    """Return the frames of the next packet, None at the end."""
    import av

    started = perf_counter()
    try:
        packet = next(packets, None)
        if packet is None:
            return None
    except av.error.FFmpegError as error:
        advice = "check its connection or file"
        raise SourceError(f"{title} ended with a fault ({_reason(error)}): {advice}") from error
    try:
        video_frames = packet.decode()
    except av.error.FFmpegError as error:
        fault = f"{title} has data that cannot be decoded ({_reason(error)}): left out"
        return [Decoded(None, _seconds(packet), fault, (perf_counter() - started) * 1e3)]
    share = (perf_counter() - started) * 1e3 / max(len(video_frames), 1)
    return [Decoded(video_frame, video_frame.time, None, share) for video_frame in video_frames]


def _seconds(packet: av.Packet[VideoStream]) -> float | None:
    return None if packet.pts is None else float(packet.pts * packet.time_base)


def _upright(video_frame: av.VideoFrame) -> Image.Image:
    """Return the frame in RGB, rotated by its display matrix, which telephones set for sideways videos."""
    picture: Image.Image = video_frame.to_image()  # type: ignore[no-untyped-call]
    turns = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
    turn = turns.get(round(_rotation(video_frame) / 90) % 4)
    return picture if turn is None else picture.transpose(turn)


def _rotation(video_frame: av.VideoFrame) -> float:
    """Return the counterclockwise rotation in degrees that makes the picture upright."""
    if hasattr(video_frame, "rotation"):
        return video_frame.rotation
    # Before PyAV 14.1. `video_frame.side_data` would tie the frame into a reference cycle.
    from av.sidedata.sidedata import SideDataContainer

    side_data: Any = SideDataContainer(video_frame)  # type: ignore[call-arg]
    matrix = side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0.0
    a, b = np.frombuffer(bytes(matrix), np.int32)[:2].tolist()
    return -math.degrees(math.atan2(b, a))


def _reason(error: av.error.FFmpegError) -> str:
    """Return FFmpeg's reason without the address, which may hold a password."""
    if error.strerror == "Immediate exit requested":  # FFmpeg's message after PyAV's timeout
        return "no data in time"
    return str(error.strerror)
