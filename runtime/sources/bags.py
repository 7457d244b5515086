"""Read ROS 1 bags, ROS 2 bags and MCAP files with rosbags."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pairvpr.errors import SourceError, one_line
from pairvpr.runtime.geometry.poses import UNKNOWN
from pairvpr.runtime.geometry.trajectory import Trajectory
from pairvpr.runtime.sources.base import Frame, Header, Source, Wanted, every_frame
from pairvpr.runtime.sources.ros_messages import GPS_TYPE, IMAGE_TYPES, POSE_TYPES, parse_frame, parse_header

if TYPE_CHECKING:
    from rosbags.highlevel import AnyReader
    from rosbags.interfaces import Connection

BAG_EXTENSIONS = (".bag", ".db3", ".mcap")
METADATA = "metadata.yaml"  # its presence makes a folder a ROS 2 bag

logger = logging.getLogger(__name__)


class BagSource(Source):
    """Provide the images of one topic, in the order of recording.

    Time stamps come from the message headers. Poses come from one topic and are interpolated to the images' time
    stamps. The pose topic is read first and held in memory. A damaged message gives a Frame with its error. Iterating
    raises SourceError when damage ends the bag. Messages hidden by damage are counted in a warning.

    path: the bag's file or folder.
    topic: the image topic, None for the only one.
    pose_topic: the topic of poses or GPS positions, None for the only one. With several topics and None, frames have
    no poses.

    Raises SourceError if rosbags is missing, if the bag cannot be read, or if the topic is missing or ambiguous.
    """

    live = False
    single = False
    names: Sequence[str] | None = None

    def __init__(self, path: Path, topic: str | None = None, pose_topic: str | None = None) -> None:
        self._path = path
        self._reader = _open(path)
        self._is_open = True
        try:
            self._images = _of_topic(self._reader.connections, IMAGE_TYPES, topic, f"{path}: --topic")
            if not self._images:
                self._images = _only_topic(path, self._reader.connections)
            self._poses = self._pose_connections(pose_topic)
        except BaseException:
            self.close()
            raise
        self._trajectory: Trajectory | None = None
        self._prefix = f"{path.resolve().name}/{self._images[0].topic.lstrip('/')}"
        self.origin = str(path.resolve())
        self.length: int | None = sum(connection.msgcount for connection in self._images)

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """Yield the images that are wanted. The others are read, but not decoded."""
        if self._trajectory is None:
            self._trajectory = self._read_trajectory()
        for number, (message, header, read_ms) in enumerate(self._messages(self._images)):
            name, seconds = f"{self._prefix}#{number:06d}", header.stamp / 1e9
            if not wanted(number, name, seconds):
                continue
            place = self._trajectory.at(seconds) if len(self._trajectory) else UNKNOWN
            yield parse_frame(message, name, header, read_ms, place)

    def close(self) -> None:
        """Close the bag's files."""
        if self._is_open:
            self._is_open = False
            self._reader.close()

    def _pose_connections(self, topic: str | None) -> list[Connection]:
        connections = self._reader.connections
        chosen = _of_topic(connections, POSE_TYPES, topic, f"{self._path}: --pose-topic")
        if chosen:
            return chosen
        topics = _topics(connections, POSE_TYPES)
        if len(topics) > 1:
            listed = ", ".join(sorted(topics))
            logger.warning(
                "%s: frames get no poses, because there are several pose topics: choose --pose-topic of %s",
                self._path,
                listed,
            )
            return []
        return [each for each in connections if each.topic in topics]

    def _read_trajectory(self) -> Trajectory:
        """Read all finite poses or GPS positions of the chosen topic."""
        stamps, values, frame, bad = [], [], None, 0
        is_gps = any(connection.msgtype == GPS_TYPE for connection in self._poses)
        for message, header, _ in self._messages(self._poses):
            if isinstance(message, SourceError):
                raise SourceError(f"{self._path}: {message}") from message
            row = POSE_TYPES[message.__msgtype__](message)
            if not all(math.isfinite(value) for value in (row[:2] if is_gps else row)):
                bad += 1
                continue
            frame = frame or header.frame_id
            stamps.append(header.stamp / 1e9)
            values.append(row)
        if bad:
            topic, count = self._poses[0].topic, bad + len(stamps)
            logger.warning(
                "%s: %d of %d poses on %s have no fix or orientation: left out", self._path, bad, count, topic
            )
        return Trajectory(stamps, values, None if is_gps else frame or "map")

    def _messages(self, connections: list[Connection]) -> Iterator[tuple[Any, Header, float]]:
        """Yield each message or its SourceError, its header, and the milliseconds spent on reading."""
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
            yield message, header, (perf_counter() - started) * 1e3

    def _check_count(self, connections: list[Connection], count: int) -> None:
        """Warn if the bag itself counts other messages, because damage can hide messages without an error."""
        recorded = sum(connection.msgcount for connection in connections)
        if count != recorded:
            logger.warning(
                "%s: only %d of %d messages on %s were found: check that the bag is whole",
                self._path, count, recorded, connections[0].topic,
            )  # fmt: skip


def is_bag(path: Path) -> bool:
    """Return whether a file or folder is named like a bag."""
    return (path / METADATA).is_file() if path.is_dir() else path.suffix.lower() in BAG_EXTENSIONS


def _open(path: Path) -> AnyReader:
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise SourceError(f'reading {path} needs rosbags ({error}): pip install "pairvpr[bags]"') from error
    with _rosbags_reads(path):
        # SQLite bags from before ROS 2 Iron lack the message definitions.
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        reader.open()
    if not all(each.topic.isprintable() and each.msgtype.isprintable() for each in reader.connections):
        reader.close()
        raise SourceError(f"{path} is damaged (topics have names that cannot be printed): check that it is whole")
    return reader


def _topics(connections: Sequence[Connection], types: Sequence[str] | dict[str, Any]) -> dict[str, str]:
    """Return the topics with messages of one of the types, and their types."""
    return {
        connection.topic: connection.msgtype
        for connection in connections
        # Depth images that have a picture's type.
        if connection.msgtype in types and connection.msgcount and not connection.topic.endswith("/compressedDepth")
    }


def _of_topic(
    connections: Sequence[Connection], types: Sequence[str] | dict[str, Any], topic: str | None, title: str
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
