"""Read pictures, places and time stamps from ROS 1 and ROS 2 messages, as rosbags provides them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.poses import UNKNOWN, Place
from pairvpr.runtime.geometry.rotations import normalize
from pairvpr.runtime.image import load_picture, pillow_reads
from pairvpr.runtime.sources.base import Frame, Header

# Encodings with one byte per channel: the positions of red, green and blue, and the bytes per pixel.
_CHANNELS = {
    "rgb8": ([0, 1, 2], 3),
    "bgr8": ([2, 1, 0], 3),
    "rgba8": ([0, 1, 2], 4),
    "bgra8": ([2, 1, 0], 4),
    "mono8": ([0, 0, 0], 1),
}
# The positions of luma (of two pixels), blue and red difference in the four bytes of two pixels.
_YUV = {
    "yuv422": ([1, 3], 0, 2),
    "uyvy": ([1, 3], 0, 2),
    "yuv422_yuy2": ([0, 2], 1, 3),
    "yuyv": ([0, 2], 1, 3),
}
_BAYER = ("bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8")
ENCODINGS = (*_CHANNELS, "mono16", *_YUV, *_BAYER)


def decode_image(message: Any) -> Image.Image:
    """Decode the picture of an Image or CompressedImage message. Raise SourceError if this fails."""
    if not hasattr(message, "encoding"):
        with pillow_reads("its JPEG or PNG data"):
            opened = Image.open(io.BytesIO(bytes(message.data)), formats=("JPEG", "PNG"))
            opened.load()
        return load_picture(opened)
    encoding = message.encoding.lower()
    if encoding in _CHANNELS:
        order, size = _CHANNELS[encoding]
        return load_picture(np.ascontiguousarray(_pixels(message, size)[:, :, order]))
    if encoding == "mono16":
        values = _pixels(message, 2).view(">u2" if message.is_bigendian else "<u2")[:, :, 0]
        return load_picture(Image.fromarray(values.astype(np.uint16)))
    if encoding in _YUV:
        return load_picture(_from_yuv(_pixels(message, 2), *_YUV[encoding]))
    if encoding in _BAYER:
        return load_picture(_from_bayer(_pixels(message, 1)[:, :, 0], encoding[6:10]))
    raise SourceError(f"encoding {message.encoding!r} is not one of {' '.join(ENCODINGS)}: convert the images")


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
    decode_ms = read_ms + (perf_counter() - started) * 1e3
    return Frame(name, header.stamp / 1e9, picture, error, decode_ms, place.pose, place.gps, header=header)


def parse_header(message: Any, logged: int) -> Header:
    """Read a message's header. An unset time becomes `logged`, the time of recording in nanoseconds."""
    stamp = message.header.stamp
    return Header(stamp.sec * 10**9 + stamp.nanosec or logged, message.header.frame_id)


def parse_pose(message: Any) -> list[float]:
    """Read x, y, z in metres and a unit quaternion (x, y, z, w), NaN for a message without orientation.

    message: an Odometry, PoseStamped or PoseWithCovarianceStamped message.
    """
    pose = message.pose if hasattr(message.pose, "position") else message.pose.pose
    at, turned = pose.position, pose.orientation
    q = normalize((turned.x, turned.y, turned.z, turned.w))
    return [at.x, at.y, at.z, *([math.nan] * 4 if q is None else q)]


def parse_gps(message: Any) -> list[float]:
    """Read latitude and longitude in degrees and altitude in metres. The latitude is NaN without a fix.

    message: a NavSatFix message.
    """
    fixed = message.status.status >= 0  # STATUS_NO_FIX is -1
    return [message.latitude if fixed else math.nan, message.longitude, message.altitude]


IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
GPS_TYPE = "sensor_msgs/msg/NavSatFix"
POSE_TYPES: dict[str, Callable[[Any], list[float]]] = {
    "nav_msgs/msg/Odometry": parse_pose,
    "geometry_msgs/msg/PoseStamped": parse_pose,
    "geometry_msgs/msg/PoseWithCovarianceStamped": parse_pose,
    GPS_TYPE: parse_gps,
}


def _pixels(message: Any, size: int) -> npt.NDArray[np.uint8]:
    """Return the bytes of an Image message as (height, width, size), without the padding of rows."""
    height, width, step = message.height, message.width, message.step
    data = np.asarray(message.data, np.uint8)
    if step < width * size or len(data) < height * step:
        raise SourceError(
            f"{len(data)} bytes in rows of {step} do not make a picture of {width} x {height} in {message.encoding}: "
            "check the program that recorded it"
        )
    rows = data[: height * step].reshape(height, step)[:, : width * size]
    return np.ascontiguousarray(rows).reshape(height, width, size)


def _from_yuv(pixels: npt.NDArray[np.uint8], luma: list[int], blue: int, red: int) -> npt.NDArray[np.uint8]:
    """Convert two pixels in four bytes to RGB (ITU-R BT.601, luma from 16 to 235, as in cv_bridge)."""
    height, width = pixels.shape[:2]
    pairs = pixels[:, : width - width % 2].reshape(height, width // 2, 4).astype(np.float32)
    y = 1.164 * (pairs[:, :, luma].reshape(height, -1) - 16)
    u, v = (np.repeat(pairs[:, :, channel] - 128, 2, axis=1) for channel in (blue, red))
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
