"""The ROS 2 node: parameters, topics, a service and transforms around `Localizer`."""

from __future__ import annotations

import dataclasses
import logging
import sys

import numpy as np
import rclpy
import rclpy.logging
import rclpy.time
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import (
    Point,
    Pose,
    PoseArray,
    PoseWithCovariance,
    PoseWithCovarianceStamped,
    Quaternion,
    Transform,
    TransformStamped,
    Vector3,
)
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, NavSatFix, NavSatStatus
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from tf2_ros import Buffer, TransformBroadcaster, TransformException, TransformListener

from pairvpr.errors import PairVPRError
from pairvpr.runtime.outputs import ros_messages as ros_answer
from pairvpr.runtime.sources.base import Header as Stamped
from pairvpr_ros import localizer
from pairvpr_ros.localizer import Localizer
from pairvpr_ros.parameters import Parameters

LOG = logging.getLogger("pairvpr")
NAME = "visual_localization"
CLASSES = {
    "builtin_interfaces/msg/Time": Time,
    "diagnostic_msgs/msg/DiagnosticArray": DiagnosticArray,
    "diagnostic_msgs/msg/DiagnosticStatus": DiagnosticStatus,
    "diagnostic_msgs/msg/KeyValue": KeyValue,
    "geometry_msgs/msg/Point": Point,
    "geometry_msgs/msg/Pose": Pose,
    "geometry_msgs/msg/PoseArray": PoseArray,
    "geometry_msgs/msg/PoseWithCovariance": PoseWithCovariance,
    "geometry_msgs/msg/PoseWithCovarianceStamped": PoseWithCovarianceStamped,
    "geometry_msgs/msg/Quaternion": Quaternion,
    "geometry_msgs/msg/Transform": Transform,
    "geometry_msgs/msg/TransformStamped": TransformStamped,
    "geometry_msgs/msg/Vector3": Vector3,
    "sensor_msgs/msg/NavSatFix": NavSatFix,
    "sensor_msgs/msg/NavSatStatus": NavSatStatus,
    "std_msgs/msg/Header": Header,
}
PARAMETERS = dataclasses.fields(Parameters)
QUEUE = 10  # answers that a slow subscriber may be behind
CHECK = 1.0  # seconds between looks at the thread that localises
PATIENCE = Duration(seconds=0.2)  # for odometry that comes a little later than the image


class VisualLocalization(Node):
    """Subscribes to images and publishes where they were taken; see the package's README for names."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self._log_to_ros = _ToRos(self)
        LOG.addHandler(self._log_to_ros)
        LOG.setLevel(logging.INFO)
        parameters = Parameters(
            **{each.name: self.declare_parameter(each.name, each.default).value for each in PARAMETERS}
        )
        self._outlets = {
            topic: self.create_publisher(CLASSES[kind], topic, QUEUE) for topic, kind in ros_answer.TOPICS.items()
        }
        if parameters.publish_map_to_odom_tf:
            self._base, self._odom = parameters.base_frame, parameters.odom_frame
            self._broadcaster, self._buffer = TransformBroadcaster(self), Buffer()
            self._listener = TransformListener(self._buffer, self)
        self._localizer = Localizer(parameters, self._send, self._odometry)
        kind = Image if parameters.image_transport == "raw" else CompressedImage
        self.create_subscription(kind, self._localizer.topic, self._localizer.offer, qos_profile_sensor_data)
        self.create_service(Trigger, localizer.TRIGGER, self._trigger)
        self.create_timer(CHECK, self._localizer.check)

    def close(self) -> None:
        """Stop localising."""
        self._localizer.close()
        LOG.removeHandler(self._log_to_ros)

    def _send(self, topic: str, message: ros_answer.Message) -> None:
        built = ros_answer.build(message, CLASSES.__getitem__)
        if topic == localizer.TF:
            self._broadcaster.sendTransform(built)
        else:
            self._outlets[topic].publish(built)

    def _trigger(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._localizer.trigger()
        response.success = True
        response.message = "the next images are localised until an answer is accepted"
        return response

    def _odometry(self, header: Stamped) -> localizer.Transform | None:
        """Where the base was in odom when the image was taken."""
        time = rclpy.time.Time(nanoseconds=header.stamp)
        try:
            found: TransformStamped = self._buffer.lookup_transform(self._odom, self._base, time, timeout=PATIENCE)
        except TransformException as error:
            self.get_logger().warning(f"no transform from {self._odom} to {self._base}, so none is published: {error}")
            return None
        at, turned = found.transform.translation, found.transform.rotation
        return np.array([at.x, at.y, at.z]), (turned.x, turned.y, turned.z, turned.w)


class _ToRos(logging.Handler):
    """What the runtime logs, as the node's log."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._log = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.ERROR:
            self._log.error(text)
        elif record.levelno >= logging.WARNING:
            self._log.warning(text)
        else:
            self._log.info(text)


def main(args: list[str] | None = None) -> None:
    """Run the node until it is stopped; exit code 2 and one line for what its user can mend."""
    rclpy.init(args=args)
    try:
        node = VisualLocalization()
        try:
            rclpy.spin(node)
        finally:
            node.close()
            node.destroy_node()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except PairVPRError as error:
        rclpy.logging.get_logger(NAME).fatal(str(error))
        sys.exit(2)
    finally:
        rclpy.try_shutdown()
