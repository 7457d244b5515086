"""What the node does, without ROS: images in, messages of answers out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pairvpr.errors import PairVPRError
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.geometry import rotations
from pairvpr.runtime.geometry.poses import Pose
from pairvpr.runtime.geometry.rotations import Quaternion
from pairvpr.runtime.map_refresh import Refresher
from pairvpr.runtime.outputs.ros_messages import AnswerMessages, Message, compose_transform, header_of_frame
from pairvpr.runtime.sources import Frame
from pairvpr.runtime.sources.base import Header, Source
from pairvpr.runtime.sources.transforms import TransformedSource
from pairvpr.runtime.sources.undistort import Lens, read_camera
from pairvpr_ros.parameters import Parameters
from pairvpr_ros.topic import TopicSource

IMAGE = "visual_localization/image_0"
TRIGGER = "visual_localization/trigger_localization"
TF = "/tf"

Publish = Callable[[str, Message], None]
Transform = tuple[npt.NDArray[np.float64], Quaternion]
"""Where one frame's origin lies in another (3,), in metres, and how it is turned."""
Odometry = Callable[[Header], "Transform | None"]

log = logging.getLogger("pairvpr.ros")


class Localizer:
    """Localises the newest image, in a thread of its own, and publishes what comes of it.

    publish: takes topics and messages of `AnswerMessages`, and transforms for /tf, in that thread. odometry: base_frame
    in odom_frame at a stamp, None where nobody knows; asked only if the transform is to be published.
    Raises PairVPRError for parameters and maps that cannot be used.
    """

    def __init__(self, parameters: Parameters, publish: Publish, odometry: Odometry) -> None:
        options = parameters.options
        lens = None if options.undistort is None else Lens(read_camera(options.undistort))
        self._parameters, self._publish, self._odometry = parameters, publish, odometry
        self.topic = IMAGE if parameters.image_transport == "raw" else f"{IMAGE}/{parameters.image_transport}"
        self._images = TopicSource(self.topic)
        self._source: Source = TransformedSource(self._images, options, lens) if options.transforms else self._images
        self._recognizer = parameters.open()
        try:
            frames = parameters.frames(self._recognizer.map)
            self._messages = AnswerMessages(self.topic, parameters.matches, parameters.floor, frames)
        except BaseException:
            self._recognizer.close()
            raise
        self._refresher = Refresher(self._recognizer)
        self._asked, self._served, self._published = 1, 0, 0
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pairvpr localizer", daemon=True)
        self._thread.start()

    def offer(self, message: object) -> None:
        """Take an image message; it replaces one that is still waiting."""
        if self._thread.is_alive():
            self._images.offer(message)

    def trigger(self) -> None:
        """Localise images from now on, until an answer is accepted."""
        self._asked += 1

    def check(self) -> None:
        """Raise what has ended the thread, if anything has."""
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """Stop after the image in hand, and close the map."""
        self._source.close()
        self._thread.join()
        self._recognizer.close()

    def _run(self) -> None:
        try:
            for frame in self._source.frames(lambda *_: self._is_wanted()):
                self._refresher.poll()
                self._localize(frame)
        except BaseException as fault:  # raised again by `check`
            self._fault = fault

    def _is_wanted(self) -> bool:
        return self._parameters.enable_continuous_localization or self._asked > self._served

    def _localize(self, frame: Frame) -> None:
        asked, header = self._asked, header_of_frame(frame)
        try:
            answer = self._recognizer.recognize_frame(frame)
        except PairVPRError as error:  # a damaged map or engine; another image may need another part of it
            log.error("%s", error)
            answer = Recognition(frame.name, frame.timestamp, reason="failed", error=str(error))
        if answer.accepted:
            self._served = asked  # what is triggered meanwhile is for the next image
        place = answer.best.pose if answer.accepted else None
        self._published += place is not None
        state = {
            "camera_frame": header.frame_id,
            "base_frame": self._parameters.base_frame,
            "images_dropped": str(self._images.dropped),
            "num_published_poses": str(self._published),
            "trigger_next_localization": "Yes" if self._is_wanted() else "No",
        }
        for topic, message in self._messages.compose(header, answer, state):
            self._publish(topic, message)
        if self._parameters.publish_map_to_odom_tf and isinstance(place, Pose):
            self._publish_transform(header, place)

    def _publish_transform(self, header: Header, place: Pose) -> None:
        if place.q is None:
            log.warning("%s: no orientation in the map, so no transform", place)
            return
        base = self._odometry(header)
        if base is not None:
            position, q = map_to_odom((np.array([place.x, place.y, place.z]), place.q), base)
            names = self._messages.name_frame(place.frame), self._parameters.odom_frame
            self._publish(TF, compose_transform(header.stamp, *names, position, q))


def map_to_odom(base_in_map: Transform, base_in_odom: Transform) -> Transform:
    """Where odom lies in the map, of a base that is known in both."""
    q = rotations.multiply(base_in_map[1], rotations.inverse(base_in_odom[1]))
    return base_in_map[0] - rotations.rotate(q, base_in_odom[0]), q
