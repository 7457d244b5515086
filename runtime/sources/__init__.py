"""Read pictures from files, folders, videos, bags, cameras and streams."""

from __future__ import annotations

import re
import stat
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from pairvpr.errors import SourceError
from pairvpr.runtime.image import open_picture
from pairvpr.runtime.picture_formats import PICTURE_EXTENSIONS
from pairvpr.runtime.sources import gstreamer
from pairvpr.runtime.sources.bags import METADATA, BagSource, is_bag
from pairvpr.runtime.sources.base import Frame, NotThereError, Source
from pairvpr.runtime.sources.euroc import EurocSource, find_euroc_camera
from pairvpr.runtime.sources.folder import FolderSource, PictureSource, list_pictures, natural_order
from pairvpr.runtime.sources.live import READ_TIMEOUT, LiveSource
from pairvpr.runtime.sources.options import DEFAULT, SourceOptions
from pairvpr.runtime.sources.transforms import TransformedSource
from pairvpr.runtime.sources.undistort import Lens, read_camera
from pairvpr.runtime.sources.video import VIDEO_EXTENSIONS, VideoFeed, VideoSource, open_container

__all__ = ["Frame", "LiveSource", "Source", "SourceOptions", "list_pictures", "open_source"]

DEVICES = Path("/dev")
FORMS = "a picture, folder, video or bag, a camera as camN, csiN or /dev/videoN, or a stream as rtsp:// or http(s)://"

# Endings that recorders and archives leave, and the remedy.
NOT_READY = {
    ".active": "its recording was not closed; run `rosbag reindex` on it, rename it to .bag and give that",
    ".zst": "it is compressed; decompress it with `zstd -d` and give the result",
    ".zstd": "it is compressed; decompress it with `zstd -d` and give the result",
    ".gz": "it is compressed; decompress it with `gunzip` and give the result",
    ".zip": "it is an archive; unpack it and give the folder",
    ".tar": "it is an archive; unpack it and give the folder",
}


def open_source(query: str, options: SourceOptions = DEFAULT) -> Source:
    """Open the source that `query` names.

    query: an existing path, else a camera `camN` or `csiN`, else a stream address.
    options: the frames to read and the transforms of their pictures.

    Raises SourceError if there is no such source, if it cannot be opened, or if it lacks a topic that the options name.
    """
    if not options.transforms:
        return _open(query, options)
    lens = None if options.undistort is None else Lens(read_camera(options.undistort))
    return TransformedSource(_open(query, options), options, lens)


def _open(query: str, options: SourceOptions) -> Source:
    mode = _mode(query)
    if mode is not None:
        path = Path(query).parent if Path(query).name == METADATA else Path(query)
        if is_bag(path):
            return BagSource(path, options.topic, options.pose_topic)
    if options.topic is not None or options.pose_topic is not None:
        raise SourceError(f"{query} is not a bag, and only bags have topics: leave out --topic and --pose-topic")
    if mode is not None:
        return _open_path(Path(query), mode)
    if camera := re.fullmatch(r"cam(\d+)", query):
        return _open_camera(DEVICES / f"video{camera[1]}", query)
    if re.fullmatch(r"/dev/video\d+", query):
        return _open_camera(Path(query), Path(query).name)
    if camera := re.fullmatch(r"csi(\d+)", query):
        return _open_csi_camera(int(camera[1]))
    if re.match(r"(rtsp|https?)://", query):
        return _open_stream(query)
    raise SourceError(f"{query!r} is not a file, folder, camera or stream: give {FORMS}")


def _mode(query: str) -> int | None:
    """Return the file type of the path `query`, None if nothing is there."""
    try:
        return Path(query).stat().st_mode if query else None
    except PermissionError as error:
        raise SourceError(f"{query} cannot be accessed (no permission): check its rights") from error
    except (OSError, ValueError):  # not there, or too long for a path, as addresses can be
        return None


def _open_path(path: Path, mode: int) -> Source:
    if stat.S_ISCHR(mode):
        return _open_camera(path, path.name)
    if stat.S_ISDIR(mode):
        camera = find_euroc_camera(path)
        return FolderSource(path) if camera is None else EurocSource(camera)
    if not stat.S_ISREG(mode):
        raise SourceError(f"{path} is neither file, folder nor camera: give {FORMS}")
    extension = path.suffix.lower()
    if extension in NOT_READY:
        raise SourceError(f"{path} cannot be read yet: {NOT_READY[extension]}")
    if extension in VIDEO_EXTENSIONS:
        # Absolute, because FFmpeg takes text before a colon for a protocol.
        return VideoSource(open_container(str(path.absolute()), str(path)), path.name, str(path.resolve()))
    if extension not in PICTURE_EXTENSIONS:
        # FFmpeg is not tried here, because it reads any text file as a video.
        try:
            with open_picture(path):
                pass
        except SourceError as error:
            raise SourceError(f"{error}; a video needs one of {' '.join(VIDEO_EXTENSIONS)}") from error
    return PictureSource(path)


def _open_camera(device: Path, name: str) -> Source:
    return LiveSource(name, partial(_connect_camera, device, name))


def _connect_camera(device: Path, name: str) -> VideoFeed:
    """Open a camera. Raise NotThereError if it is not connected."""
    advice = f"check that {device} is a camera, that no other program uses it and that you may read it"
    try:
        return _connect(str(device), name, format="v4l2", advice=advice)
    except NotThereError as error:
        if device.exists():
            raise
        found = sorted((path.name for path in DEVICES.glob("video*")), key=natural_order)
        others = ", ".join(str(DEVICES / other) for other in found) or "none"
        raise NotThereError(f"there is no camera {device} (found: {others}): connect it or name another") from error


def _open_csi_camera(number: int) -> Source:
    width, height = gstreamer.CSI_SIZE
    pipeline = gstreamer.CSI_CAMERA.format(number=number, width=width, height=height)
    advice = "check that the camera is connected, that no other program uses it and that this is a Jetson with JetPack"
    name = f"csi{number}"
    connect = partial(gstreamer.GstreamerFeed, pipeline, (width, height), name, timeout=READ_TIMEOUT, advice=advice)
    return LiveSource(name, connect)


def _connect(
    url: str,
    name: str,
    *,
    format: str | None = None,  # noqa: A002  as in open_container
    options: dict[str, str] | None = None,
    advice: str,
) -> VideoFeed:
    return VideoFeed(
        open_container(url, name, format=format, options=options, timeout=READ_TIMEOUT, advice=advice), name
    )


def _open_stream(address: str) -> Source:
    """Open a live source, or a finite video if an http(s) address has a known length."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise SourceError(f"{address!r} is not an address ({error}): check it") from error
    name = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without user and password
    # TCP first, because lost packets make a picture look like another place.
    options = {"rtsp_flags": "prefer_tcp"} if parts.scheme == "rtsp" else None
    advice = "check the address and that its server can be reached"
    connect = partial(_connect, address, name, options=options, advice=advice)
    if parts.scheme == "rtsp":
        return LiveSource(name, connect)
    container = open_container(address, name, options=options, timeout=READ_TIMEOUT, advice=advice)
    if container.duration is not None:
        return VideoSource(container, name, name)
    # The end of a transfer is the end of the stream, while a broken connection is opened again.
    return LiveSource(name, connect, first=VideoFeed(container, name), endless=False)
