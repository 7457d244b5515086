"""Compose standard ROS messages from answers, for MCAP files and the ROS 2 node. Needs neither ROS nor rosbags.

Topic names follow NVIDIA's isaac_ros_visual_global_localization.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pairvpr.errors import SourceError
from pairvpr.runtime.answer import Match, Recognition
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.geometry.rotations import IDENTITY, Quaternion
from pairvpr.runtime.outputs.covariance import Floor, gps_covariance, pose_covariance
from pairvpr.runtime.sources.base import Frame, Header

POSE = "visual_localization/pose"
FIX = "visual_localization/fix"
CANDIDATES = "visual_localization/candidates"
DIAGNOSTICS = "/diagnostics"
TOPICS = {
    POSE: "geometry_msgs/msg/PoseWithCovarianceStamped",
    FIX: "sensor_msgs/msg/NavSatFix",
    CANDIDATES: "geometry_msgs/msg/PoseArray",
    DIAGNOSTICS: "diagnostic_msgs/msg/DiagnosticArray",
}
"""Topics and the types of their messages."""

STATUS = "visual_localization: place recognition"  # the form of diagnostics' names: node, colon, part
LAST_STAMP = 2**31 * 10**9  # nanoseconds; a ROS stamp has int32 seconds
AS_MEASURED = Floor()
SAME_FRAMES: Mapping[str, str] = MappingProxyType({})


class Status(NamedTuple):
    """One status of a diagnostics message.

    level: OK, WARN or ERROR. name: node, colon, task. source: the hardware_id. more: its values.
    """

    level: str
    name: str
    message: str
    source: str
    more: Mapping[str, str]


@dataclass(frozen=True)
class Message:
    """A message of a ROS type. A field holds a Message, a list of them, a Constant or a plain value."""

    type: str
    fields: Mapping[str, Any]


class Constant(str):
    """Name of a constant of the message's type. Message classes hold constants differently (int or byte)."""


def build(message: Message, class_of: Callable[[str], type]) -> Any:
    """Build the message with the classes that `class_of` returns for type names, such as those of rclpy or rosbags."""
    kind = class_of(message.type)
    return kind(**{name: _built(value, kind, class_of) for name, value in message.fields.items()})


def header_of_frame(frame: Frame) -> Header:
    """Return the header of the frame's message. Without one, make it from the frame's timestamp, or 0 without that."""
    if frame.header is not None:
        return frame.header
    return Header(0 if frame.timestamp is None else round(frame.timestamp * 1e9), "")


class AnswerMessages:
    """Compose the messages of an answer, with the stamp of its picture.

    - /diagnostics: for every answer. Its level is OK if the answer was accepted, ERROR if there was no picture, else
      WARN. Its header has the picture's frame id. Its values are candidates, scores and times.
    - visual_localization/candidates: poses of the listed matches in the frame of the best one, best first. A pose of
      unknown orientation has the identity rotation.
    - visual_localization/pose, or visual_localization/fix in maps of GPS positions: the place of the best match. It is
      published for accepted answers only, so that no robot acts on others.

    source: name of the localised source, the diagnostics' hardware_id.
    matches: number of matches listed.
    floor: least deviations of covariances.
    frames: names in messages of the frames of the map's poses.
    status: name of the diagnostics.
    """

    def __init__(
        self,
        source: str,
        matches: int,
        floor: Floor = AS_MEASURED,
        frames: Mapping[str, str] = SAME_FRAMES,
        status: str = STATUS,
    ) -> None:
        self._source = source
        self._status = status
        self._matches = matches
        self._floor = floor
        self._frames = frames

    def compose(
        self, header: Header, answer: Recognition, more: Mapping[str, str] = SAME_FRAMES
    ) -> Iterator[tuple[str, Message]]:
        """Yield topics and messages of an answer.

        more: further values for the diagnostics.
        Raises SourceError for a stamp that ROS messages cannot hold.
        """
        if not 0 <= header.stamp < LAST_STAMP:
            raise SourceError(
                f"{answer.query}: ROS messages cannot hold its time stamp, {header.stamp / 1e9:.3f} s. They count from "
                "1970 to 2038; correct the recording's clock"
            )
        yield DIAGNOSTICS, self._diagnostics(header, answer, more)
        poses = [match.pose for match in answer.matches[: self._matches] if isinstance(match.pose, Pose)]
        if poses:
            frame = poses[0].frame
            listed = [_pose(pose) for pose in poses if pose.frame == frame]
            yield CANDIDATES, _new(TOPICS[CANDIDATES], header=self._in(frame, header), poses=listed)
        place = answer.best.pose if answer.accepted else None
        if isinstance(place, Pose):
            covariance = pose_covariance(answer, self._floor).ravel()
            inner = _new("geometry_msgs/msg/PoseWithCovariance", pose=_pose(place), covariance=covariance)
            yield POSE, _new(TOPICS[POSE], header=self._in(place.frame, header), pose=inner)
        elif isinstance(place, Gps):
            yield FIX, self._fix(header, answer, place)

    def name_frame(self, stored: str) -> str:
        """Return the name in messages of a frame of the map's poses."""
        return self._frames.get(stored, stored)

    def _in(self, frame: str, header: Header) -> Message:
        return compose_header(Header(header.stamp, self.name_frame(frame)))

    def _fix(self, header: Header, answer: Recognition, place: Gps) -> Message:
        return _new(
            TOPICS[FIX],
            header=compose_header(header),
            status=_new("sensor_msgs/msg/NavSatStatus", status=Constant("STATUS_FIX"), service=0),  # of no satellite
            latitude=float(place.latitude),
            longitude=float(place.longitude),
            altitude=math.nan if place.altitude is None else float(place.altitude),
            position_covariance=gps_covariance(answer, self._floor).ravel(),
            position_covariance_type=Constant("COVARIANCE_TYPE_APPROXIMATED"),
        )

    def _diagnostics(self, header: Header, answer: Recognition, more: Mapping[str, str]) -> Message:
        values = {**_values(answer, self._matches), **more}
        level = "ERROR" if answer.error is not None else "OK" if answer.accepted and not answer.warning else "WARN"
        told = answer.error or (answer.warning if answer.accepted else None) or answer.reason
        return compose_diagnostics(header, [Status(level, self._status, told, self._source, values)])


def compose_diagnostics(header: Header, statuses: Sequence[Status]) -> Message:
    """Compose a diagnostics message of several statuses."""
    listed = [
        _new(
            "diagnostic_msgs/msg/DiagnosticStatus",
            level=Constant(each.level),
            name=_text(each.name),
            message=_text(each.message),
            hardware_id=_text(each.source),
            values=[
                _new("diagnostic_msgs/msg/KeyValue", key=key, value=_text(text)) for key, text in each.more.items()
            ],
        )
        for each in statuses
    ]
    return _new(TOPICS[DIAGNOSTICS], header=compose_header(header), status=listed)


def compose_transform(stamp: int, parent: str, child: str, position: npt.NDArray[np.float64], q: Quaternion) -> Message:
    """Compose the transform of the frame `child` in `parent`: position (3,) in metres, stamp in nanoseconds."""
    x, y, z = map(float, position)
    return _new(
        "geometry_msgs/msg/TransformStamped",
        header=compose_header(Header(stamp, parent)),
        child_frame_id=_text(child),
        transform=_new(
            "geometry_msgs/msg/Transform",
            translation=_new("geometry_msgs/msg/Vector3", x=x, y=y, z=z),
            rotation=_quaternion(q),
        ),
    )


def _values(answer: Recognition, matches: int) -> dict[str, str]:
    """Return the diagnostics' values of an answer. The whole time is in seconds, times of steps in milliseconds."""
    values = {"query": answer.query, "accepted": {True: "true", False: "false", None: "unknown"}[answer.accepted]}
    if answer.confidence is not None:
        values["confidence"] = f"{answer.confidence:.6f}"
    if answer.warning is not None:
        values["warning"] = answer.warning
    values["compared"], values["complete"] = str(answer.compared), str(answer.complete).lower()
    for i, match in enumerate(answer.matches[:matches], start=1):
        values.update(_candidate(f"candidate_{i}", match))
    if answer.timings:
        values["localization_execution_time"] = f"{answer.timings['total'] / 1e3:.6f}"
    values.update({f"{step}_ms": f"{spent:.2f}" for step, spent in answer.timings.items()})
    return values


def _candidate(key: str, match: Match) -> Iterator[tuple[str, str]]:
    yield f"{key}.name", match.name
    if match.score is not None:
        yield f"{key}.score", f"{match.score:.6f}"
    yield f"{key}.similarity", f"{match.similarity:.6f}"
    yield f"{key}.stage", match.stage
    if match.pose is not None:
        yield f"{key}.place", str(match.pose)


def _pose(pose: Pose) -> Message:
    position = _new("geometry_msgs/msg/Point", x=float(pose.x), y=float(pose.y), z=float(pose.z))
    return _new("geometry_msgs/msg/Pose", position=position, orientation=_quaternion(pose.q or IDENTITY))


def _quaternion(q: Quaternion) -> Message:
    x, y, z, w = map(float, q)
    return _new("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)


def compose_header(header: Header) -> Message:
    """Compose a std_msgs/Header."""
    seconds, rest = divmod(header.stamp, 10**9)
    stamp = _new("builtin_interfaces/msg/Time", sec=seconds, nanosec=rest)
    return _new("std_msgs/msg/Header", stamp=stamp, frame_id=_text(header.frame_id))


def _new(kind: str, **fields: Any) -> Message:
    return Message(kind, fields)


def _text(text: str) -> str:
    """Return text that UTF-8 can encode, as messages need. File names may have other bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _built(value: Any, kind: type, class_of: Callable[[str], type]) -> Any:
    if isinstance(value, Message):
        return build(value, class_of)
    if isinstance(value, list):
        return [_built(each, kind, class_of) for each in value]
    if isinstance(value, Constant):
        return getattr(kind, value)
    return value
