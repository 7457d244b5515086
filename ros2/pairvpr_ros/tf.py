"""Transforms of the robot, read and published by tf2_ros; no other module imports it."""

from __future__ import annotations

from geometry_msgs.msg import TransformStamped
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from tf2_ros import Buffer, TransformBroadcaster, TransformException, TransformListener

from pairvpr.runtime.geometry.transforms import Transform
from pairvpr.runtime.outputs.ros_messages import compose_transform
from pairvpr_ros.health import Throttle
from pairvpr_ros.messages import ros_message
from pairvpr_ros.parameters import Parameters

PERIOD = 0.05  # seconds between two messages of the transform that is kept
PATIENCE = Duration(seconds=0.2)  # for odometry that comes a little later than the image


class TfFrames:
    """The robot's frames as tf knows them.

    The transform from map to odom is sent PERIOD by PERIOD, dated `transform_tolerance` ahead of now, as AMCL and
    slam_toolbox do: a look-up of the present then finds it.
    """

    def __init__(self, node: Node, parameters: Parameters) -> None:
        self._node = node
        self._base, self._odom = parameters.base_frame, parameters.odom_frame
        self._tolerance = Duration(seconds=parameters.transform_tolerance)
        self._broadcaster = TransformBroadcaster(node)
        self._buffer = Buffer()  # given the node it clears itself when time jumps back, and fails at it (0.36.4)
        self._listener = TransformListener(self._buffer, node)
        self._throttle = Throttle()
        self._kept: tuple[str, Transform] | None = None
        self._sent = 0
        self._timer = node.create_timer(PERIOD, self._resend, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def base_in_odom(self, stamp: int) -> Transform | None:
        """Return base_frame in odom_frame at a stamp in nanoseconds; None if tf does not know."""
        return self._find(self._odom, self._base, Time(nanoseconds=stamp))

    def camera_in_base(self, frame_id: str) -> Transform | None:
        """Return a camera's frame in base_frame; None if tf does not know."""
        return self._find(self._base, frame_id, Time())

    def keep_odom(self, map_frame: str, odom: Transform, stamp: int) -> None:
        """Publish the pose of odom_frame in the map from now on; it holds from a stamp in nanoseconds."""
        if self._kept is None:  # else nothing would be known until the first date ahead has come
            self._send(stamp, map_frame, self._odom, odom)
        self._kept = map_frame, odom
        self._resend()

    def send_base(self, map_frame: str, base: Transform, stamp: int) -> None:
        """Publish the pose of base_frame in the map once."""
        self._send(stamp, map_frame, self._base, base)

    def forget(self) -> None:
        """Drop all that was known, after time has jumped back."""
        self._kept, self._sent = None, 0
        self._buffer.clear()

    def close(self) -> None:
        """Stop publishing and listening."""
        self._node.destroy_timer(self._timer)
        self._listener.unregister()

    def _resend(self) -> None:
        kept = self._kept
        if kept is None:
            return
        stamp = (self._node.get_clock().now() + self._tolerance).nanoseconds
        if stamp > self._sent:  # simulated time may stand still, and tf refuses the same stamp twice
            self._sent = stamp
            self._send(stamp, kept[0], self._odom, kept[1])

    def _send(self, stamp: int, parent: str, child: str, pose: Transform) -> None:
        self._broadcaster.sendTransform(ros_message(compose_transform(stamp, parent, child, pose.position, pose.q)))

    def _find(self, target: str, source: str, time: Time) -> Transform | None:
        try:
            found: TransformStamped = self._buffer.lookup_transform(target, source, time, timeout=PATIENCE)
        except TransformException as error:
            if self._throttle.allows(f"{target} {source}"):
                self._node.get_logger().warning(f"no transform from {target} to {source}: {error}")
            return None
        at, turned = found.transform.translation, found.transform.rotation
        return Transform.of((at.x, at.y, at.z), (turned.x, turned.y, turned.z, turned.w))
