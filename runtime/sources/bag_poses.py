"""Find the places of a bag's images in its topics of poses, transforms and GPS positions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from pairvpr.runtime.geometry.clocks import MAX_STEP
from pairvpr.runtime.geometry.poses import UNKNOWN, Place, Pose
from pairvpr.runtime.geometry.rotations import IDENTITY, multiply, rotate
from pairvpr.runtime.geometry.trajectory import MAX_POSE_GAP, Trajectory
from pairvpr.runtime.remarks import remark
from pairvpr.runtime.sources.base import Header
from pairvpr.runtime.sources.ros_messages import parse_gps, parse_header, parse_point, parse_pose, parse_transform

GPS_TYPE = "sensor_msgs/msg/NavSatFix"
PATH_TYPE = "nav_msgs/msg/Path"
TF_TYPES = ("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage")
# The first group that a bag has a topic of gives its poses.
GROUPS = (
    (
        "nav_msgs/msg/Odometry",
        "geometry_msgs/msg/PoseStamped",
        "geometry_msgs/msg/PoseWithCovarianceStamped",
        GPS_TYPE,
    ),
    ("geometry_msgs/msg/TransformStamped", "geometry_msgs/msg/PointStamped", PATH_TYPE),
    TF_TYPES,
)
POSE_TYPES = tuple(kind for group in GROUPS for kind in group)
LIKE_POSES = re.compile(r"Pose|Odom|Path|Transform|NavSat|GPS|Gps|Point(Stamped)?$")
# Frames that mean the same in all recordings (REP 105). Others, as odom, begin anew with each one.
SHARED_FRAMES = re.compile(r"(.*/)?(map|world|earth|ecef|enu|global|utm.*)")
SET_BACK = 500_000_000  # nanoseconds; poses may arrive out of order by less


class Sample(NamedTuple):
    """Hold a pose or GPS position of a message.

    stamp: nanoseconds.
    frame, child: the coordinate frame, and the frame that moves in it ("" except for transforms of tf).
    row: as `parse_pose` or `parse_gps` returns it.
    """

    stamp: int
    frame: str
    child: str
    row: list[float]


class Places(Protocol):
    """Find the place of an image in a recording."""

    def at(self, seconds: float, logged: float) -> Place:
        """Return the place at a time stamp, UNKNOWN if there is none.

        seconds: the image's time stamp.
        logged: time of recording in seconds.
        """
        ...


def is_static(topic: str) -> bool:
    """Return whether a topic of tf holds transforms that never change."""
    return topic.endswith("tf_static")


def read_samples(message: Any, header: Header, logged: int) -> list[Sample]:
    """Return the poses or GPS positions of a message, whose type is one of POSE_TYPES.

    logged: time of recording in nanoseconds, for transforms without a time.
    """
    kind = message.__msgtype__
    if kind in TF_TYPES:
        heads = [(each, parse_header(each, logged)) for each in message.transforms]
        return [
            Sample(head.stamp, head.frame_id.lstrip("/"), each.child_frame_id.lstrip("/"), parse_transform(each))
            for each, head in heads
        ]
    if kind == PATH_TYPE:  # a pose without a time cannot be found by it
        stamped = [(each, parse_header(each, 0)) for each in message.poses]
        return [Sample(head.stamp, header.frame_id, "", parse_pose(each)) for each, head in stamped if head.stamp]
    parsers: dict[str, Callable[[Any], list[float]]] = {
        GPS_TYPE: parse_gps,
        "geometry_msgs/msg/PointStamped": parse_point,
        "geometry_msgs/msg/TransformStamped": parse_transform,
    }
    return [Sample(header.stamp, header.frame_id, "", parsers.get(kind, parse_pose)(message))]


def unread_topics(topics: Iterable[tuple[str, str]]) -> list[str]:
    """Return the topics (name, type) that seem to hold poses of a type that is not read, with their types."""
    return sorted(
        f"{topic} ({kind})"
        for topic, kind in topics
        if kind not in POSE_TYPES and LIKE_POSES.search(kind.rpartition("/")[2])
    )


def own_frame(frame: str, source: str) -> str:
    """Return a name for a frame that is the same in two recordings only if the frame is.

    frame: the id in the messages. An empty one counts as "map".
    source: the name of the recording.
    """
    if not frame:
        return "map"
    return frame if SHARED_FRAMES.fullmatch(frame) else f"{frame}@{source}"


class Track:
    """Hold the samples of one frame, and interpolate them.

    A clock that is set back or far ahead begins a new stretch. An image belongs to the stretch whose time stamps differ
    from the times of recording in the way that the image's does.
    """

    def __init__(self) -> None:
        self._stretches: list[tuple[float, dict[int, list[float]]]] = []
        self._last = 0
        self._trajectories: list[Trajectory] = []

    def add(self, stamp: int, logged: int, row: list[float], *, correct: bool = False) -> None:
        """Add a sample, stamped and recorded at these nanoseconds.

        correct: the sample may repeat an earlier stamp, and then replaces the earlier one.
        """
        step = stamp - self._last
        if not self._stretches or (not correct and not -SET_BACK <= step <= MAX_STEP * 1e9):
            self._stretches.append(((logged - stamp) / 1e9, {}))
        self._last = stamp
        samples = self._stretches[-1][1]
        if correct:
            samples[stamp] = row
        else:
            samples.setdefault(stamp, row)

    def interpolate(self, frame: str | None) -> None:
        """Prepare `at`, after the last sample. The frame is the name for poses, None for GPS positions."""
        for _, samples in self._stretches:
            stamps = [stamp / 1e9 for stamp in samples]
            self._trajectories.append(Trajectory(stamps, list(samples.values()), frame))

    def at(self, seconds: float, logged: float) -> Place:
        """Return the place at a time stamp, see `Places`."""
        if not self._trajectories:
            return UNKNOWN
        delay = logged - seconds
        nearest = min(range(len(self._stretches)), key=lambda i: abs(self._stretches[i][0] - delay))
        return self._trajectories[nearest].at(seconds)

    @property
    def stamps(self) -> list[float]:
        """Return all time stamps in seconds."""
        return [stamp / 1e9 for _, samples in self._stretches for stamp in samples]

    @property
    def jumps(self) -> int:
        """Return the number of times that the clock was set."""
        return max(len(self._stretches) - 1, 0)


class Chain:
    """Compose the transforms of tf from the root to the frame that moves last before frames branch."""

    def __init__(self, root: str, tracks: Sequence[Track | Pose]) -> None:
        self._root = root
        self._tracks = tracks

    def at(self, seconds: float, logged: float) -> Place:
        """Return the place at a time stamp, see `Places`."""
        position, turned = np.zeros(3), IDENTITY
        for track in self._tracks:
            step = track if isinstance(track, Pose) else track.at(seconds, logged).pose
            if step is None:
                return UNKNOWN
            position = position + rotate(turned, np.array([step.x, step.y, step.z]))
            turned = multiply(turned, step.q or IDENTITY)
        x, y, z = position.tolist()
        return Place(pose=Pose(x, y, z, turned, self._root))


class Collector:
    """Collect the samples of a bag's pose topic, and make `Places` of them.

    topic: the topic, for messages.
    title: the bag, for messages.
    source: the name of the recording, for frames.
    """

    def __init__(self, title: str, topic: str, source: str) -> None:
        self._title, self._topic, self._source = title, topic, source
        self._tracks: dict[tuple[str, str], Track] = {}
        self._static: dict[tuple[str, str], Pose] = {}
        self._is_tf = self._is_gps = False
        self._count = self._bad = 0

    def add(self, message: Any, header: Header, logged: int, *, static: bool) -> None:
        """Add the samples of a message. The arguments are as in `read_samples`; static: see `is_static`."""
        kind = message.__msgtype__
        self._is_gps, self._is_tf = kind == GPS_TYPE, kind in TF_TYPES
        for sample in read_samples(message, header, logged):
            self._count += 1
            if not math.isfinite(sample.row[0]):
                self._bad += 1
            elif static:
                x, y, z, *q = sample.row
                self._static[sample.frame, sample.child] = Pose(x, y, z, (q[0], q[1], q[2], q[3]), sample.frame)
            else:
                # The poses of one topic have one frame: its first.
                edge = (sample.frame, sample.child) if self._is_tf else next(iter(self._tracks), (sample.frame, ""))
                track = self._tracks.setdefault(edge, Track())
                track.add(sample.stamp, logged, sample.row, correct=kind == PATH_TYPE)

    def places(self) -> Places:
        """Return the places by time, after the last message. Remark what is left out or guessed."""
        if self._bad:
            remark(
                f"{self._title}: {self._bad} of {self._count} poses on {self._topic} have no fix or orientation: "
                "left out"
            )
        elif self._topic and not self._tracks:
            remark(f"{self._title}: frames get no poses, because {self._topic} holds none with a time")
        for (frame, _), track in self._tracks.items():
            track.interpolate(None if self._is_gps else own_frame(frame, self._source))
            if track.jumps:
                remark(
                    f"{self._title}: the clock of {self._topic} was set {track.jumps} times: times before and after "
                    "are not compared"
                )
        if self._is_tf:
            return self._chain()
        steps = np.diff(np.unique(self._stamps()))
        step = float(np.median(steps)) if len(steps) else 0.0
        if step > MAX_POSE_GAP and not self._is_gps:
            remark(f"{self._title}: poses on {self._topic} are {step:.1f} s apart: places between are interpolated")
        return next(iter(self._tracks.values()), Track())

    def span(self) -> tuple[float, float] | None:
        """Return the first and the last time stamp in seconds, None without samples."""
        stamps = self._stamps()
        return (min(stamps), max(stamps)) if stamps else None

    def _stamps(self) -> list[float]:
        return [stamp for track in self._tracks.values() for stamp in track.stamps]

    def _chain(self) -> Places:
        """Return the chain of moving frames from the only root down to the first branch."""
        edges: dict[tuple[str, str], Track | Pose] = {**self._static, **self._tracks}
        parents = {child: frame for frame, child in edges}
        roots = {_climb(frame, parents) for frame, _ in self._tracks}
        if len(roots) != 1:
            listed = ", ".join(sorted(roots)) or "none"
            remark(
                f"{self._title}: frames get no poses, because {self._topic} has not one root of its moving frames "
                f"(roots: {listed}): choose another --pose-topic or give --poses"
            )
            return Track()
        root = frame = roots.pop()
        moving = {each for _, child in self._tracks for each in _path(child, parents)}
        tracks: list[Track | Pose] = []
        while len(following := [child for parent, child in edges if parent == frame and child in moving]) == 1:
            tracks.append(edges[frame, following[0]])
            frame = following[0]
        if not any(isinstance(track, Track) for track in tracks):
            listed = ", ".join(sorted(child for _, child in self._tracks))
            remark(
                f"{self._title}: frames get no poses, because {self._topic} has several moving frames ({listed}): "
                "choose another --pose-topic or give --poses"
            )
            return Track()
        return Chain(own_frame(root, self._source), tracks)


def _climb(frame: str, parents: dict[str, str]) -> str:
    """Return the root above a frame."""
    return _path(frame, parents)[-1]


def _path(frame: str, parents: dict[str, str]) -> list[str]:
    """Return the frames from `frame` up to its root. A circle ends where it closes."""
    path = [frame]
    while (above := parents.get(path[-1])) is not None and above not in path:
        path.append(above)
    return path
