"""Where pictures come from: files, folders, videos, bags, cameras and streams."""

from __future__ import annotations

import re
import stat
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pairvpr.errors import SourceError
from pairvpr.runtime.image import PICTURE_EXTENSIONS, open_picture
from pairvpr.runtime.sources import gstreamer
from pairvpr.runtime.sources.bags import BagSource, is_bag
from pairvpr.runtime.sources.base import Frame, Source
from pairvpr.runtime.sources.euroc import EurocSource, is_euroc_folder
from pairvpr.runtime.sources.folder import FolderSource, PictureSource, list_pictures, natural_order
from pairvpr.runtime.sources.live import READ_TIMEOUT, LiveSource
from pairvpr.runtime.sources.options import DEFAULT, SourceOptions
from pairvpr.runtime.sources.transforms import AdjustedSource
from pairvpr.runtime.sources.undistort import Lens, read_camera
from pairvpr.runtime.sources.video import VIDEO_EXTENSIONS, VideoFeed, VideoSource, open_container

__all__ = ["Frame", "LiveSource", "Source", "SourceOptions", "list_pictures", "open_source"]

DEVICES = Path("/dev")
FORMS = "a picture, folder, video or bag, a camera as camN, csiN or /dev/videoN, or a stream as rtsp:// or http(s)://"


def open_source(query: str, options: SourceOptions = DEFAULT) -> Source:
    """The source that `query` names: an existing path first, then a camera `camN` or `csiN`, then a stream address.

    Raises SourceError if nothing is there, it cannot be opened or it has nothing of the kind that options choose.
    """
    if not options.adjust:
        return _open(query, options)
    lens = None if options.undistort is None else Lens(read_camera(options.undistort))
    return AdjustedSource(_open(query, options), options, lens)


def _open(query: str, options: SourceOptions) -> Source:
    mode = _mode(query)
    if mode is not None and is_bag(Path(query)):
        return BagSource(Path(query), options.topic, options.pose_topic)
    if options.topic is not None or options.pose_topic is not None:
        raise SourceError(f"{query} is no bag, and only bags have topics: leave out --topic and --pose-topic")
    if mode is not None:
        return _open_path(Path(query), mode)
    if camera := re.fullmatch(r"cam(\d+)", query):
        return _open_numbered_camera(int(camera[1]))
    if camera := re.fullmatch(r"csi(\d+)", query):
        return _open_csi_camera(int(camera[1]))
    if re.match(r"(rtsp|https?)://", query):
        return _open_stream(query)
    raise SourceError(f"{query!r} is no file, folder, camera or stream: give {FORMS}")


def _mode(query: str) -> int | None:
    """The file type of what is at the path `query`; None if there is nothing."""
    try:
        return Path(query).stat().st_mode if query else None
    except PermissionError as error:
        raise SourceError(f"{query} cannot be looked at (no permission): check its rights") from error
    except (OSError, ValueError):  # not there, or too long for a path, as addresses can be
        return None


def _open_path(path: Path, mode: int) -> Source:
    if stat.S_ISCHR(mode):
        return _open_camera(path, path.name)
    if stat.S_ISDIR(mode):
        return EurocSource(path) if is_euroc_folder(path) else FolderSource(path)
    if not stat.S_ISREG(mode):
        raise SourceError(f"{path} is neither file, folder nor camera: give {FORMS}")
    extension = path.suffix.lower()
    if extension in VIDEO_EXTENSIONS:
        # Absolute, because FFmpeg takes what stands before a colon for a protocol.
        return VideoSource(open_container(str(path.absolute()), str(path)), path.name, str(path.resolve()))
    if extension not in PICTURE_EXTENSIONS:
        # Not asking FFmpeg as well: it makes a video of any text file.
        try:
            with open_picture(path):
                pass
        except SourceError as error:
            raise SourceError(f"{error}; a video needs one of {' '.join(VIDEO_EXTENSIONS)}") from error
    return PictureSource(path)


def _open_numbered_camera(number: int) -> Source:
    device = DEVICES / f"video{number}"
    if device.is_char_device():
        return _open_camera(device, f"cam{number}")
    found = sorted((path.name for path in DEVICES.glob("video*")), key=natural_order)
    if not found:
        raise SourceError(f"there is no camera {device}, nor any other: connect it, and see that it may be read")
    cameras = ", ".join(str(DEVICES / name) for name in found)
    raise SourceError(f"there is no camera {device}; found: {cameras}: connect it or name one of these")


def _open_camera(device: Path, name: str) -> Source:
    advice = f"see that {device} is a camera, that no other program uses it and that you may read it"
    return LiveSource(name, partial(_connect, str(device), name, format="v4l2", advice=advice))


def _open_csi_camera(number: int) -> Source:
    width, height = gstreamer.CSI_SIZE
    pipeline = gstreamer.CSI_CAMERA.format(number=number, width=width, height=height)
    advice = "see that the camera is connected, that no other program uses it and that this is a Jetson with JetPack"
    name = f"csi{number}"
    connect = partial(gstreamer.GstreamerFeed, pipeline, (width, height), name, timeout=READ_TIMEOUT, advice=advice)
    return LiveSource(name, connect)


def _connect(url: str, name: str, **how: Any) -> VideoFeed:
    return VideoFeed(open_container(url, name, timeout=READ_TIMEOUT, **how), name)


def _open_stream(address: str) -> Source:
    """A live source, or for an http(s) address whose length is known the finite video that it is."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise SourceError(f"{address!r} is no address ({error}): check it") from error
    name = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without user and password
    # TCP first: pictures with packets lost look like other places.
    options = {"rtsp_flags": "prefer_tcp"} if parts.scheme == "rtsp" else None
    advice = "check the address and that its server can be reached"
    connect = partial(_connect, address, name, options=options, advice=advice)
    if parts.scheme == "rtsp":
        return LiveSource(name, connect)
    container = open_container(address, name, options=options, timeout=READ_TIMEOUT, advice=advice)
    if container.duration is not None:
        return VideoSource(container, name, name)
    # A server that says that it has sent all means it, one that just stops does not.
    return LiveSource(name, connect, first=VideoFeed(container, name), endless=False)
