"""What the node does, without ROS: images in, messages of answers out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pairvpr.errors import PairVPRError, one_line
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.geometry.poses import Pose
from pairvpr.runtime.geometry.transforms import Transform
from pairvpr.runtime.map_refresh import Refresher
from pairvpr.runtime.outputs.ros_messages import DIAGNOSTICS, AnswerMessages, Message, header_of_frame
from pairvpr.runtime.rig import fuse
from pairvpr.runtime.sources.base import Frame, Header
from pairvpr_ros import debug_image
from pairvpr_ros.cameras import CameraInput, Cameras
from pairvpr_ros.health import Throttle
from pairvpr_ros.mounts import Mounts
from pairvpr_ros.names import DEBUG_IMAGE
from pairvpr_ros.parameters import CAMERA_INFO, TF, Parameters
from pairvpr_ros.transforms import map_to_odom

JUMP = 10**9  # nanoseconds by which an image is older than the one before it if a recording has begun anew

log = logging.getLogger("pairvpr.ros")


class Outlet(Protocol):
    """The publishers of answers."""

    def publish(self, topic: str, message: Message) -> None:
        """Publish a message on a topic of `names.OUTPUTS`."""
        ...

    def is_heard(self, topic: str) -> bool:
        """Return whether anybody subscribes to the topic."""
        ...


class Frames(Protocol):
    """The robot's frames."""

    def base_in_odom(self, stamp: int) -> Transform | None:
        """Return base_frame in odom_frame at a stamp in nanoseconds; None if nobody knows."""
        ...

    def camera_in_base(self, frame_id: str) -> Transform | None:
        """Return a camera's frame in base_frame; None if nobody knows."""
        ...

    def keep_odom(self, map_frame: str, odom: Transform, stamp: int) -> None:
        """Publish the pose of odom_frame in the map from now on; it holds from a stamp in nanoseconds."""
        ...

    def forget(self) -> None:
        """Drop all that was known, after time has jumped back."""
        ...

    def send_base(self, map_frame: str, base: Transform, stamp: int) -> None:
        """Publish the pose of base_frame in the map once."""
        ...


class Localizer:
    """Answers the newest images in a thread of its own, and publishes the answers.

    node: the node's name in diagnostics. topics: the cameras' image topics as resolved. frames: None if
    `parameters.needs_tf` is false. clock: nanoseconds now. Raises PairVPRError for parameters and maps that cannot be
    used.
    """

    def __init__(
        self,
        parameters: Parameters,
        node: str,
        topics: Sequence[str],
        outlet: Outlet,
        frames: Frames | None,
        clock: Callable[[], int],
    ) -> None:
        from_info, options = parameters.undistort == CAMERA_INFO, parameters.options
        lookup = frames.camera_in_base if frames is not None and parameters.camera_poses == TF else None
        self._mounts = Mounts(parameters.mounts, lookup)
        self.cameras = Cameras([CameraInput(topic, options, from_info, clock) for topic in topics])
        self._continuous, self._max_rate = parameters.enable_continuous_localization, parameters.max_rate
        self._parameters, self._outlet, self._frames, self._clock = parameters, outlet, frames, clock
        self._recognizer = parameters.open()
        try:
            names = parameters.frames(self._recognizer.map)
            self._messages = {
                topic: AnswerMessages(topic, parameters.matches, parameters.floor, names, f"{node}: {topic}")
                for topic in topics
            }
        except BaseException:
            self._recognizer.close()
            raise
        self._refresh = Refresher(self._recognizer)
        self._throttle = Throttle()
        self._asked, self._served, self._published = 1, 0, 0
        self._stamp = 0  # of the image before
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"pairvpr {node}", daemon=True)
        self._thread.start()

    @property
    def thread(self) -> int | None:
        """Return the identifier of the thread that answers."""
        return self._thread.ident

    def trigger(self) -> None:
        """Answer images from now on, until an answer is accepted."""
        self._asked += 1

    def set(self, parameter: str, value: Any) -> None:
        """Change a parameter that may be changed while the node runs; others are ignored."""
        if parameter == "enable_continuous_localization":
            self._continuous = value
        elif parameter == "max_rate":
            self._max_rate = value

    def check(self) -> None:
        """Raise the exception that has ended the thread, if any has."""
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """Stop after the images in hand, and close the map."""
        self.cameras.close()
        self._thread.join()
        self._recognizer.close()

    def _run(self) -> None:
        try:
            while (taken := self.cameras.wait()) is not None:
                started = time.monotonic()
                if not self._is_wanted():
                    continue
                self._refresh.poll()
                self._localize(taken)
                if self._max_rate > 0:
                    self.cameras.sleep(started + 1 / self._max_rate - time.monotonic())
        except BaseException as fault:  # raised again by `check`
            self._fault = fault

    def _is_wanted(self) -> bool:
        return self._continuous or self._asked > self._served

    def _localize(self, taken: list[tuple[CameraInput, Any, int]]) -> None:
        """Answer a round of images and publish the answers."""
        asked = self._asked
        frames = [self._frame(*each) for each in taken]
        chosen = fuse([self._answer(camera, frame) for (camera, _, _), frame in zip(taken, frames, strict=True)])
        place = chosen.best.pose if chosen.accepted else None
        if chosen.accepted:
            self._served = asked  # what is triggered meanwhile is for the next images
        self._published += place is not None
        for i, ((camera, _, _), frame, answer) in enumerate(zip(taken, frames, chosen.cameras, strict=True)):
            header = header_of_frame(frame)
            for topic, message in self._messages[camera.topic].compose(header, answer, self._state(camera, header)):
                if topic == DIAGNOSTICS or i == chosen.camera:
                    self._outlet.publish(topic, message)
        frame = frames[chosen.camera or 0]
        if isinstance(place, Pose):
            self._publish_transform(header_of_frame(frame), place)
        if self._outlet.is_heard(DEBUG_IMAGE) and frame.picture is not None:
            picture = debug_image.draw(frame.picture, chosen, self._recognizer.map.records)
            self._outlet.publish(DEBUG_IMAGE, debug_image.message(header_of_frame(frame), picture))

    def _frame(self, camera: CameraInput, message: Any, number: int) -> Frame:
        """Return the message's picture; whatever goes wrong with it becomes the frame's error."""
        try:
            return camera.frame(message, number)
        except Exception as error:  # a message may hold anything, and the next one may be sound
            log.debug("%s", error, exc_info=True)
            header = Header(self._clock(), "")
            told = f"{camera.topic}#{number:06d} cannot be used ({one_line(error)})"
            return Frame(f"{camera.topic}#{number:06d}", header.stamp / 1e9, None, told, 0.0, header=header)

    def _answer(self, camera: CameraInput, frame: Frame) -> Recognition:
        """Return the frame's answer with poses of the base; a fault of map or engine becomes the answer's error."""
        try:
            answer = self._recognizer.recognize_frame(frame)
        except PairVPRError as error:  # a damaged map or engine; another image may need another part of it
            answer = Recognition(frame.name, frame.timestamp, reason="failed", error=str(error))
        if answer.error is not None:
            if self._throttle.allows(camera.topic):
                log.warning("%s", answer.error)
            return answer
        if answer.accepted is None and self._throttle.allows(answer.reason):
            log.warning("no pose is published: %s", answer.reason)
        if answer.warning is not None and self._throttle.allows("scores"):
            log.warning("%s", answer.warning)
        log.debug("%s: %s; best match %s, score %s", frame.name, answer.reason, answer.best.name, answer.best.score)
        index, header = self.cameras.all.index(camera), header_of_frame(frame)
        return self._mounts.in_base(index, header.frame_id, answer)

    def _state(self, camera: CameraInput, header: Header) -> dict[str, str]:
        """Return what diagnostics say beside the answer."""
        return {
            "camera_frame": header.frame_id,
            "base_frame": self._parameters.base_frame,
            "images_dropped": str(camera.dropped),
            "num_published_poses": str(self._published),
            "trigger_next_localization": "Yes" if self._is_wanted() else "No",
        }

    def _publish_transform(self, header: Header, place: Pose) -> None:
        parameters = self._parameters
        if self._frames is None or not (parameters.publish_map_to_odom_tf or parameters.publish_map_to_base_tf):
            return
        if place.q is None:
            if self._throttle.allows("orientation"):
                log.warning("%s: the map has no orientation here, so no transform is published", place)
            return
        base_in_map = Transform.of((place.x, place.y, place.z), place.q)
        map_frame = self._messages[self.cameras.all[0].topic].name_frame(place.frame)
        if parameters.publish_map_to_base_tf:
            self._frames.send_base(map_frame, base_in_map, header.stamp)
            return
        if header.stamp < self._stamp - JUMP:
            self._frames.forget()  # else odometry of the new round would count as outdated
        self._stamp = header.stamp
        base_in_odom = self._frames.base_in_odom(header.stamp)
        if base_in_odom is not None:
            self._frames.keep_odom(map_frame, map_to_odom(base_in_map, base_in_odom), header.stamp)
