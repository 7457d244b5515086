"""Read ROS 1 bags, ROS 2 bags and MCAP files with rosbags."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pairvpr.errors import SourceError, one_line
from pairvpr.runtime.geometry.poses import UNKNOWN
from pairvpr.runtime.picture_formats import PICTURE_EXTENSIONS
from pairvpr.runtime.remarks import remark
from pairvpr.runtime.sources.bag_poses import (
    GROUPS,
    POSE_TYPES,
    TF_TYPES,
    Collector,
    Places,
    is_static,
    unread_topics,
)
from pairvpr.runtime.sources.base import ClockWatch, Frame, Header, Source, Wanted, every_frame
from pairvpr.runtime.sources.folder import natural_order
from pairvpr.runtime.sources.ros_messages import IMAGE_TYPES, parse_frame, parse_header

if TYPE_CHECKING:
    from rosbags.highlevel import AnyReader
    from rosbags.interfaces import Connection

BAG_EXTENSIONS = (".bag", ".db3", ".mcap")
METADATA = "metadata.yaml"  # its presence makes a folder a ROS 2 bag


class BagSource(Source):
    """Provide the images of one topic, in the order of recording.

    Time stamps come from the message headers. Poses come from one topic and are interpolated to the images' time
    stamps. The pose topic is read first and held in memory. A damaged message gives a Frame with its error. Iterating
    raises SourceError when damage ends the bag. Messages hidden by damage are counted in a remark.

    path: the bag's file or folder.
    topic: the image topic, None for the only one.
    pose_topic: the topic of poses, transforms or GPS positions. None takes the only one of the first of GROUPS that
    the bag has. If there are several, frames have no poses.

    Raises SourceError if rosbags is missing, if the bag cannot be read, or if the topic is missing or ambiguous.
    """

    def __init__(self, path: Path, topic: str | None = None, pose_topic: str | None = None) -> None:
        self._path = path
        self._reader = _open(path)
        self._is_open = True
        try:
            self._images = _of_topic(self._reader.connections, IMAGE_TYPES, topic, f"{path}: --topic")
            if not self._images:
                self._images = _only_topic(path, self._reader.connections)
            self._pose_topic = self._pose_connections(pose_topic)
        except BaseException:
            self.close()
            raise
        self._places: Places | None = None
        self._pose_span: tuple[float, float] | None = None
        self._prefix = f"{path.resolve().name}/{self._images[0].topic.lstrip('/')}"
        self.origin = str(path.resolve())
        self.length = sum(connection.msgcount for connection in self._images)

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """Yield the images that are wanted. The others are read, but not decoded."""
        if self._places is None:
            self._places = self._read_places()
        clock, stamps, placed = ClockWatch(), [], 0
        for number, (message, header, logged, read_ms) in enumerate(self._messages(self._images)):
            name, seconds = f"{self._prefix}#{number:06d}", header.stamp / 1e9
            clock.look(name, seconds)
            if not wanted(number, name, seconds):
                continue
            place = self._places.at(seconds, logged / 1e9)
            stamps.append(seconds)
            placed += place is not UNKNOWN
            yield parse_frame(message, name, header, read_ms, place)
        if stamps and not placed and self._pose_span is not None:
            self._explain((min(stamps), max(stamps)), self._pose_span)

    def close(self) -> None:
        """Close the bag's files."""
        if self._is_open:
            self._is_open = False
            self._reader.close()

    def _pose_connections(self, topic: str | None) -> list[Connection]:
        connections = self._reader.connections
        chosen = _of_topic(connections, POSE_TYPES, topic, f"{self._path}: --pose-topic")
        if not chosen:
            found = (_topics(connections, group) for group in GROUPS)
            topics = next((topics for topics in found if any(not is_static(each) for each in topics)), {})
            topics = {each: kind for each, kind in topics.items() if not is_static(each)}
            if len(topics) > 1:
                listed = ", ".join(sorted(topics))
                remark(
                    f"{self._path}: frames get no poses, because there are several pose topics: choose --pose-topic "
                    f"of {listed}"
                )
                return []
            unread = unread_topics((each.topic, each.msgtype) for each in connections if each.msgcount)
            if not topics and unread:
                remark(f"{self._path}: frames get no poses, because these types are not read: {', '.join(unread)}")
            chosen = [each for each in connections if each.topic in topics and each.msgtype == topics[each.topic]]
        if any(each.msgtype in TF_TYPES for each in chosen):
            static = [each for each in connections if each.msgtype in TF_TYPES and is_static(each.topic)]
            chosen += [each for each in static if each not in chosen]
        return chosen

    def _read_places(self) -> Places:
        """Read all finite poses or GPS positions of the chosen topic. Remark on messages that cannot be read."""
        topic = self._pose_topic[0].topic if self._pose_topic else ""
        collector, damaged = Collector(str(self._path), topic, self._source()), list[SourceError]()
        for static in (True, False):
            connections = [each for each in self._pose_topic if is_static(each.topic) == static]
            for message, header, logged, _ in self._messages(connections):
                if isinstance(message, SourceError):
                    damaged.append(message)
                else:
                    collector.add(message, header, logged, static=static)
        if damaged:
            remark(f"{self._path}: {len(damaged)} messages on {topic} give no place; first: {damaged[0]}")
        self._pose_span = collector.span()
        return collector.places()

    def _source(self) -> str:
        """Return a name for the recording, which it keeps in another folder and shares with no other recording."""
        span = f"{self._reader.start_time} {self._reader.end_time}"
        return f"{self._path.resolve().name}-{zlib.crc32(span.encode()):08x}"

    def _explain(self, images_span: tuple[float, float], poses_span: tuple[float, float]) -> None:
        """Remark on the reason that no image has a place. The spans are first and last time stamps in seconds."""
        (first, last), (begin, end) = images_span, poses_span
        apart = max(begin - last, first - end)
        images, poses = self._images[0].topic, self._pose_topic[0].topic
        reason = f"the poses on {poses} are too far apart in time"
        if apart > 0:
            reason = (
                f"the time stamps of {images} ({first:.1f} to {last:.1f}) and {poses} ({begin:.1f} to {end:.1f}) are "
                f"{apart:.1f} s apart"
            )
        remark(f"{self._path}: no image has a place, because {reason}: give --poses with times of {images}")

    def _messages(self, connections: list[Connection]) -> Iterator[tuple[Any, Header, int, float]]:
        """Yield each message or its SourceError, its header, and two times of reading it.

        The times are the time of recording in nanoseconds, and the milliseconds spent on reading.
        """
        if not connections:
            return
        with _rosbags_reads(self._path):
            stored, count = iter(self._reader.messages(connections)), 0
        while True:
            started = perf_counter()
            with _rosbags_reads(self._path):
                item = next(stored, None)
            if item is None:
                self._check_count(connections, count)
                return
            count += 1
            connection, logged, raw = item
            message: Any
            try:
                with _rosbags_reads(Path(connection.topic)):
                    message = self._reader.deserialize(raw, connection.msgtype)
                    header = parse_header(message, logged)
            except SourceError as fault:
                message, header = fault, Header(logged, "")
            yield message, header, logged, (perf_counter() - started) * 1e3

    def _check_count(self, connections: list[Connection], count: int) -> None:
        """Warn if the bag itself counts other messages, because damage can hide messages without an error."""
        recorded = sum(connection.msgcount for connection in connections)
        if count != recorded:
            remark(
                f"{self._path}: only {count} of {recorded} messages on {connections[0].topic} were found: check that "
                "the bag is whole"
            )


def is_bag(path: Path) -> bool:
    """Return whether a file or folder is named like a bag."""
    return bool(_bag_files(path))


def _bag_files(path: Path) -> list[Path]:
    """Return the paths that make up a bag, none if the path is no bag.

    A folder is a bag if it has METADATA, or files of one kind of bag beside neither pictures nor folders.
    """
    if not path.is_dir():
        return [path] if path.suffix.lower() in BAG_EXTENSIONS else []
    if (path / METADATA).is_file():
        return [path]
    try:
        inside = [each for each in path.iterdir() if not each.name.startswith(".")]
    except OSError:  # said when the folder is listed
        return []
    found = [each for each in inside if each.suffix.lower() in BAG_EXTENSIONS and each.is_file()]
    if any(each.is_dir() or each.suffix.lower() in PICTURE_EXTENSIONS for each in inside):
        return []
    if len({each.suffix.lower() for each in found}) > 1:
        return []
    return sorted(found, key=lambda each: natural_order(each.name))


def _open(path: Path) -> AnyReader:
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise SourceError(f'reading {path} needs rosbags ({error}): pip install "pairvpr[bags]"') from error
    files = _bag_files(path) or [path]
    if len(files) > 1:
        remark(f"{path} has no {METADATA}: its {len(files)} bag files are read as the parts of one recording")
    with _rosbags_reads(path):
        # SQLite bags from before ROS 2 Iron lack the message definitions.
        reader = AnyReader(files, default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        reader.open()
    if not all(each.topic.isprintable() and each.msgtype.isprintable() for each in reader.connections):
        reader.close()
        raise SourceError(f"{path} is damaged (topics have names that cannot be printed): check that it is whole")
    return reader


def _topics(connections: Sequence[Connection], types: Sequence[str]) -> dict[str, str]:
    """Return the topics with messages of one of the types, and their types."""
    return {
        connection.topic: connection.msgtype
        for connection in connections
        # Depth images that have a picture's type.
        if connection.msgtype in types and connection.msgcount and not connection.topic.endswith("/compressedDepth")
    }


def _of_topic(
    connections: Sequence[Connection], types: Sequence[str], topic: str | None, title: str
) -> list[Connection]:
    """Return the connections of `topic`, none if it is None."""
    if topic is None:
        return []
    topics = _topics(connections, types)
    if topic not in topics:
        known = ", ".join(sorted(topics)) or "none"
        raise SourceError(f"{title} {topic} is not a usable topic of this bag; choose one of: {known}")
    return [each for each in connections if each.topic == topic and each.msgtype in types]


def _only_topic(path: Path, connections: Sequence[Connection]) -> list[Connection]:
    topics = _topics(connections, IMAGE_TYPES)
    if len(topics) == 1:
        return [each for each in connections if each.topic in topics and each.msgtype in IMAGE_TYPES]
    if topics:
        listed = ", ".join(f"{topic} ({kind.rpartition('/')[2]})" for topic, kind in sorted(topics.items()))
        raise SourceError(f"{path} has several image topics, choose one with --topic: {listed}")
    empty = sorted({each.topic for each in connections if each.msgtype in IMAGE_TYPES and not each.msgcount})
    if empty:
        raise SourceError(
            f"{path} has no messages on {', '.join(empty)}: check that the camera ran, and record again with the "
            "quality of service that it publishes with"
        )
    listed = ", ".join(sorted(f"{each.topic} ({each.msgtype})" for each in connections)) or "none at all"
    raise SourceError(f"{path} has no topic with images (sensor_msgs Image, CompressedImage): it has {listed}")


@contextmanager
def _rosbags_reads(path: Path) -> Iterator[None]:
    """Turn the errors of rosbags into SourceError. Damaged bytes can raise nearly any type."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        reason = one_line(error)
        if isinstance(error, MemoryError):  # a damaged length is allocated before the end of the file is reached
            reason = "it asks for more memory than there is"
        raise SourceError(
            f"{path} is damaged or not a readable bag ({reason}): check that it is whole; "
            "`rosbag reindex`, `ros2 bag reindex` or `mcap recover` may mend it"
        ) from error
