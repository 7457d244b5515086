"""Read pictures, places and time stamps from ROS 1 and ROS 2 messages, as rosbags provides them."""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairvpr.errors import SourceError, one_line
from pairvpr.runtime.bit_depth import BAND, scale_16_bit, scale_floats
from pairvpr.runtime.geometry.poses import UNKNOWN, Place, find_fix, is_position
from pairvpr.runtime.geometry.rotations import normalize
from pairvpr.runtime.image import MIN_SIDE, decode_picture, load_picture
from pairvpr.runtime.sources.base import Frame, Header

# Pillow's name for the order of an encoding's bytes, and bytes per pixel. 8UC1 and 8UC3 do not define colours: OpenCV
# and ROS's viewers show them as grey, and as blue, green and red.
_CHANNELS = {
    "rgb8": ("RGB", 3),
    "bgr8": ("BGR", 3),
    "8uc3": ("BGR", 3),
    "rgba8": ("RGBX", 4),
    "bgra8": ("BGRX", 4),
    "mono8": ("L", 1),
    "8uc1": ("L", 1),
}
# The order of channels of 16 bits, and their number.
_WIDE = {
    "mono16": ([0], 1),
    "16uc1": ([0], 1),
    "rgb16": ([0, 1, 2], 3),
    "bgr16": ([2, 1, 0], 3),
    "16uc3": ([2, 1, 0], 3),
    "rgba16": ([0, 1, 2], 4),
    "bgra16": ([2, 1, 0], 4),
}
# The positions of luma (of two pixels), blue and red difference in the four bytes of two pixels.
_YUV = {
    "yuv422": ([1, 3], 0, 2),
    "uyvy": ([1, 3], 0, 2),
    "yuv422_yuy2": ([0, 2], 1, 3),
    "yuyv": ([0, 2], 1, 3),
}
# A plane of luma, then one of colour differences: pixels across and down that share one, and whether blue comes first.
_PLANES = {"nv12": (2, 2, True), "nv21": (2, 2, False), "nv24": (1, 1, True)}
_BAYER = ("bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8")
_WIDE_BAYER = tuple(f"{each[:-1]}16" for each in _BAYER)
_FLOATS = {"32fc1": "f4", "64fc1": "f8"}
ENCODINGS = (*_CHANNELS, *_WIDE, *_YUV, *_PLANES, *_BAYER, *_WIDE_BAYER, *_FLOATS)
MAX_PIXELS = 50_000_000  # of a message, about a GB while it is converted
COMPRESSED = ("JPEG", "PNG", "TIFF", "WEBP")
VIDEO_FORMATS = ("h264", "h265", "hevc", "av1", "vp8", "vp9")


def decode_image(message: Any) -> Image.Image:
    """Decode the picture of an Image or CompressedImage message. Raise SourceError if this fails."""
    if not hasattr(message, "encoding"):
        form, content = message.format.lower(), bytes(message.data)
        if "compresseddepth" in form:
            raise SourceError(f"format {message.format!r} holds depth and no picture: choose another --topic")
        if form in VIDEO_FORMATS or content.startswith((b"\0\0\0\x01", b"\0\0\x01")):
            raise SourceError(
                f"format {message.format!r} holds video, whose messages are no pictures: record JPEG images, or "
                "convert the topic to a video file"
            )
        # Some drivers put zeros in front, with which none of these formats begins.
        return decode_picture(content.lstrip(b"\0"), "its JPEG, PNG, TIFF or WebP data", MAX_PIXELS, COMPRESSED)
    encoding = message.encoding.lower()
    if encoding not in ENCODINGS:
        raise SourceError(f"encoding {message.encoding!r} is not one of {' '.join(ENCODINGS)}: convert the images")
    if min(message.height, message.width) < MIN_SIDE or message.height * message.width > MAX_PIXELS:
        raise SourceError(
            f"{message.width} x {message.height} pixels: a picture needs {MIN_SIDE} on each side, and at most "
            f"{MAX_PIXELS // 1_000_000} megapixels"
        )
    if encoding in _CHANNELS:
        return _from_channels(message, *_CHANNELS[encoding])
    if encoding in _WIDE:
        order, count = _WIDE[encoding]
        values = scale_16_bit(_wide_pixels(message, count)[:, :, order])
        return load_picture(values.repeat(3, axis=2) if len(order) == 1 else values)
    if encoding in _FLOATS:
        return load_picture(scale_floats(_float_pixels(message, _FLOATS[encoding]))[:, :, None].repeat(3, axis=2))
    if encoding in _WIDE_BAYER:
        return load_picture(_from_bayer(scale_16_bit(_wide_pixels(message, 1))[:, :, 0], encoding[6:10]))
    if encoding in _YUV:
        return load_picture(_from_yuv(_pixels(message, 2), *_YUV[encoding]))
    if encoding in _PLANES:
        return load_picture(_from_planes(message, *_PLANES[encoding]))
    return load_picture(_from_bayer(_pixels(message, 1)[:, :, 0], encoding[6:10]))


def parse_frame(message: Any, name: str, header: Header, read_ms: float = 0.0, place: Place = UNKNOWN) -> Frame:
    """Return the frame of a message.

    message: an Image or CompressedImage message, or the SourceError in its place.
    name: the frame's name.
    header: the message's header.
    read_ms: milliseconds spent on reading the message.
    place: the place at the message's time.
    """
    started, picture, error = perf_counter(), None, None
    try:
        if isinstance(message, SourceError):
            raise message
        picture = decode_image(message)
    except SourceError as fault:
        error = f"{name}: {fault}"
    except Exception as fault:  # a message may hold anything, and the next one may be sound
        error = f"{name} cannot be read ({one_line(fault)}): check the program that sent it"
    decode_ms = read_ms + (perf_counter() - started) * 1e3
    return Frame(name, header.stamp / 1e9, picture, error, decode_ms, place.pose, place.gps, header=header)


def parse_header(message: Any, logged: int) -> Header:
    """Read a message's header. An unset time becomes `logged`, the time of recording in nanoseconds."""
    if not hasattr(message, "header"):  # transforms of tf have one each
        return Header(logged, "")
    stamp = message.header.stamp
    return Header(stamp.sec * 10**9 + stamp.nanosec or logged, message.header.frame_id)


def parse_pose(message: Any) -> list[float]:
    """Read x, y, z in metres and a unit quaternion (x, y, z, w). All are NaN if one is not finite or too large.

    message: an Odometry, PoseStamped or PoseWithCovarianceStamped message.
    """
    pose = message.pose if hasattr(message.pose, "position") else message.pose.pose
    return _pose_row(pose.position, pose.orientation)


def parse_gps(message: Any) -> list[float]:
    """Read latitude and longitude in degrees and altitude in metres. All are NaN without a fix.

    message: a NavSatFix message.
    """
    fixed = message.status.status >= 0  # STATUS_NO_FIX is -1
    gps = find_fix(message.latitude, message.longitude, message.altitude) if fixed else None
    if gps is None:
        return [math.nan] * 3
    return [gps.latitude, gps.longitude, math.nan if gps.altitude is None else gps.altitude]


def parse_transform(message: Any) -> list[float]:
    """Read the translation and rotation of a TransformStamped message, as `parse_pose`."""
    return _pose_row(message.transform.translation, message.transform.rotation)


def parse_point(message: Any) -> list[float]:
    """Read the position of a PointStamped message, as `parse_pose`. The orientation is NaN."""
    at = message.point
    return [*([at.x, at.y, at.z] if is_position(at.x, at.y, at.z) else [math.nan] * 3), *[math.nan] * 4]


def _pose_row(at: Any, turned: Any) -> list[float]:
    q = normalize((turned.x, turned.y, turned.z, turned.w))
    if q is None or not all(map(math.isfinite, q)) or not is_position(at.x, at.y, at.z):
        return [math.nan] * 7
    return [at.x, at.y, at.z, *q]


IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")


def _pixels(message: Any, size: int) -> npt.NDArray[np.uint8]:
    """Return the bytes of an Image message as (height, width, size), without the padding of rows."""
    width = message.width
    rows = _rows(message, message.height, width * size)[:, : width * size]
    return np.ascontiguousarray(rows).reshape(-1, width, size)


def _wide_pixels(message: Any, count: int) -> npt.NDArray[np.uint16]:
    """Return an Image message of `count` channels of 16 bits as (height, width, count)."""
    return _pixels(message, 2 * count).view(">u2" if message.is_bigendian else "<u2").astype(np.uint16)


def _float_pixels(message: Any, kind: str) -> npt.NDArray[np.floating[Any]]:
    """Return an Image message of one channel of floats as (height, width)."""
    values = _pixels(message, int(kind[1])).view((">" if message.is_bigendian else "<") + kind)
    return values[:, :, 0]


def _rows(message: Any, count: int, used: int) -> npt.NDArray[np.uint8]:
    """Return a view (count, step) of the bytes. Raise SourceError if a row has fewer than `used` bytes."""
    step = message.step
    data = np.asarray(message.data, np.uint8)
    if step < used or len(data) < count * step:
        raise SourceError(
            f"{len(data)} bytes in rows of {step} do not make a picture of {message.width} x {message.height} in "
            f"{message.encoding}: check the program that sent it"
        )
    return data[: count * step].reshape(count, step)


def _from_channels(message: Any, order: str, size: int) -> Image.Image:
    """Return the picture of interleaved channels, unpacked by Pillow from the buffer of the message."""
    rows = _rows(message, message.height, message.width * size)
    mode = "L" if size == 1 else "RGB"
    picture = Image.frombuffer(mode, (message.width, message.height), rows.reshape(-1), "raw", order, message.step, 1)
    return load_picture(picture)


def _from_yuv(pixels: npt.NDArray[np.uint8], luma: list[int], blue: int, red: int) -> npt.NDArray[np.uint8]:
    """Convert two pixels in four bytes to RGB (ITU-R BT.601, luma from 16 to 235, as in cv_bridge)."""
    height, width = pixels.shape[0], pixels.shape[1] - pixels.shape[1] % 2
    rgb = np.empty((height, width, 3), np.uint8)
    for first in range(0, height, BAND):
        band = slice(first, first + BAND)
        pairs = pixels[band, :width].reshape(-1, width // 2, 4).astype(np.float32)
        y = 1.164 * (pairs[:, :, luma].reshape(len(pairs), -1) - 16)
        u, v = (np.repeat(pairs[:, :, channel] - 128, 2, axis=1) for channel in (blue, red))
        rgb[band] = _to_rgb(y, u, v)
    return rgb


def _from_planes(message: Any, across: int, down: int, blue_first: bool) -> npt.NDArray[np.uint8]:
    """Convert a plane of luma and a plane of interleaved colour differences to RGB, as `_from_yuv`.

    Rows of the second plane are as long as rows of the first, or twice as long if every pixel has its own differences.
    """
    height, width = (side - side % 2 for side in (message.height, message.width))
    step, more = message.step, -(-message.height // down) * (2 // across)
    rows = _rows(message, message.height + more, message.width)
    pairs = rows[message.height :].reshape(-1, step * (2 // across))[: height // down, : 2 * width // across]
    rgb = np.empty((height, width, 3), np.uint8)
    for first in range(0, height, BAND):
        y = 1.164 * (rows[first : min(first + BAND, height), :width].astype(np.float32) - 16)
        part = pairs[first // down : (first + BAND) // down].astype(np.float32) - 128
        u, v = (
            np.repeat(np.repeat(part[:, channel::2], down, axis=0), across, axis=1)
            for channel in ((0, 1) if blue_first else (1, 0))
        )
        rgb[first : first + BAND] = _to_rgb(y, u, v)
    return rgb


def _to_rgb(
    y: npt.NDArray[np.float32], u: npt.NDArray[np.float32], v: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """Convert luma and colour differences, each (height, width), to RGB (height, width, 3)."""
    rgb = np.stack([y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u], axis=2)
    return np.clip(rgb + 0.5, 0, 255).astype(np.uint8)


def _from_bayer(pixels: npt.NDArray[np.uint8], pattern: str) -> npt.NDArray[np.uint8]:
    """Convert a colour filter's values to RGB. Each cell of 2 x 2 gets one colour, which is enough for the model."""
    height, width = (side - side % 2 for side in pixels.shape)
    cells = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2).swapaxes(1, 2).reshape(-1, width // 2, 4)
    red, blue = pattern.index("r"), pattern.index("b")
    first, second = (place for place in range(4) if pattern[place] == "g")
    green = (cells[:, :, first].astype(np.uint16) + cells[:, :, second] + 1) // 2
    rgb = np.stack([cells[:, :, red], green.astype(np.uint8), cells[:, :, blue]], axis=2)
    return rgb.repeat(2, axis=0).repeat(2, axis=1)
