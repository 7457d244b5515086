"""The messages that are published, and their publishers."""

from __future__ import annotations

from typing import Any

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
from rclpy.node import Node
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image, NavSatFix, NavSatStatus
from std_msgs.msg import Header

from pairvpr.runtime.outputs.ros_messages import Message, build
from pairvpr_ros import names

QUEUE = 10  # messages that a slow subscriber may be behind

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
    "sensor_msgs/msg/Image": Image,
    "sensor_msgs/msg/NavSatFix": NavSatFix,
    "sensor_msgs/msg/NavSatStatus": NavSatStatus,
    "std_msgs/msg/Header": Header,
}


class Outlets:
    """The publishers of a node's topics.

    Raises what `rclpy.node.Node.create_publisher` raises.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publishers = {
            topic: node.create_publisher(CLASSES[kind], topic, QUEUE, qos_overriding_options=overridable())
            for topic, kind in names.OUTPUTS.items()
        }

    def publish(self, topic: str, message: Message) -> None:
        """Publish a message on a topic of `names.OUTPUTS`."""
        self._publishers[topic].publish(ros_message(message))

    def is_heard(self, topic: str) -> bool:
        """Return whether anybody subscribes to the topic."""
        return bool(self._publishers[topic].get_subscription_count() > 0)

    def close(self) -> None:
        """Take the publishers out of ROS."""
        for each in self._publishers.values():
            self._node.destroy_publisher(each)


def overridable() -> QoSOverridingOptions:
    """Let the parameters `qos_overrides.<topic>...` set history, depth and reliability."""
    return QoSOverridingOptions.with_default_policies()


def ros_message(message: Message) -> Any:
    """Return the message as an instance of its ROS class."""
    return build(message, CLASSES.__getitem__)
