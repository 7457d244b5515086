"""The transforms that the node publishes, with a stand-in for tf2_ros, on real topics and clocks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: make test-ros")

from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from rclpy.time import Time
from rosgraph_msgs.msg import Clock

from pairvpr.runtime.geometry.transforms import Transform
from tests.ros2.real.robot import Robot, image, stamps, wait_for
from tests.ros2.real.stand_ins.tf2_ros import SENT, TOLD, Buffer, ExtrapolationException
from tests.runtime.sources.bag_writer import scene

IMAGE = "visual_localization/image_0"


def now() -> int:
    return time.time_ns()


def odometry(stamp: int, x: float = 5.0) -> TransformStamped:
    """base_link in odom, turned by 0.8 about z."""
    message = TransformStamped()
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
    message.header.frame_id, message.child_frame_id = "odom", "base_link"
    message.transform.translation.x, message.transform.translation.y = x, -1.0
    message.transform.rotation.z, message.transform.rotation.w = math.sin(0.4), math.cos(0.4)
    return message


def transform_of(message: TransformStamped) -> Transform:
    at, q = message.transform.translation, message.transform.rotation
    return Transform.of((at.x, at.y, at.z), (q.x, q.y, q.z, q.w))


def test_map_to_odom_is_known_at_present_at_all_times(start: Callable[..., Any], robot: Robot) -> None:
    """As Nav2 looks it up: 40 times at the moment's time."""
    start(publish_map_to_odom_tf=True, transform_tolerance=1.0)
    sent = robot.listen(TransformStamped, SENT, 100)

    def drive() -> bool:
        stamp = now()
        robot.send(TOLD, odometry(stamp - 100_000_000))
        robot.send(TOLD, odometry(stamp))
        robot.send(IMAGE, image(scene(1), stamp=divmod(stamp - 50_000_000, 10**9)))
        time.sleep(0.3)
        return bool(sent)

    wait_for(drive, "a transform")
    assert (sent[-1].header.frame_id, sent[-1].child_frame_id) == ("map", "odom")
    base_in_map = transform_of(sent[-1]).then(transform_of(odometry(0)))
    assert np.allclose(base_in_map.position, [1, 2, 0])
    assert np.allclose(np.abs(base_in_map.q), [0, 0, 0, 1])
    buffer, taken = Buffer(), 0
    for _ in range(40):
        time.sleep(0.05)
        for message in sent[taken:]:
            buffer.set_transform(message)
        taken = len(sent)
        try:
            buffer.lookup_transform("map", "odom", Time(nanoseconds=now()))
        except ExtrapolationException as error:
            pytest.fail(f"map to odom is not known at present: {error}")


@pytest.mark.parametrize("simulated", [True, False])
def test_transforms_come_again_after_time_has_jumped_back(
    start: Callable[..., Any], robot: Robot, simulated: bool
) -> None:
    """A recording that is played again and again, with /clock and without: odometry of a new round counts."""
    start(use_sim_time=simulated, publish_map_to_odom_tf=True)
    sent = robot.listen(TransformStamped, SENT, 100)
    for x, second in ((5.0, 5000), (7.0, 1000)):
        before = len(sent)

        def play(x: float = x, before: int = before) -> bool:
            nonlocal second
            second += 1
            if simulated:
                clock = Clock()
                clock.clock.sec = second
                robot.send("/clock", clock)
                time.sleep(0.1)
            robot.send(TOLD, odometry(second * 10**9, x))
            robot.send(IMAGE, image(scene(1), stamp=(second, 0)))
            time.sleep(0.3)
            return any(
                np.allclose(transform_of(each).then(transform_of(odometry(0, x))).position, [1, 2, 0])
                for each in sent[before:]
            )

        wait_for(play, f"map to odom for x = {x}")
    stamps = [each.header.stamp.sec * 10**9 + each.header.stamp.nanosec for each in sent]
    assert len(set(stamps[before:])) == len(stamps[before:])  # tf2 refuses the same stamp twice


def test_missing_odometry_is_logged_and_not_for_each_image_again(start: Callable[..., Any], robot: Robot) -> None:
    node = start(publish_map_to_odom_tf=True)
    poses = robot.listen(PoseWithCovarianceStamped, "visual_localization/pose")
    started = time.monotonic()
    for second in range(1, 6):
        robot.ask(IMAGE, image(scene(1), stamp=(second, 0)), lambda second=second: (second, 0) in stamps(poses))
    wait_for(lambda: "no transform from odom to base_link" in node.output, "a line in the log")
    assert node.output.count("no transform from odom to base_link") <= 1 + (time.monotonic() - started) / 10


def test_map_to_base_is_sent_once_with_the_images_stamp(start: Callable[..., Any], robot: Robot) -> None:
    start(publish_map_to_base_tf=True, base_frame="camera")
    sent = robot.listen(TransformStamped, SENT, 100)
    poses = robot.listen(PoseWithCovarianceStamped, "visual_localization/pose")
    robot.ask(IMAGE, image(scene(2)), lambda: bool(sent and poses))
    assert (sent[0].header.frame_id, sent[0].child_frame_id) == ("map", "camera")
    assert np.allclose(transform_of(sent[0]).position, [2, 2, 0])
    for second in (1, 2, 3):
        robot.send(IMAGE, image(scene(2), stamp=(second, 0)))
        wait_for(lambda second=second: (second, 0) in stamps(sent) and (second, 0) in stamps(poses), "an answer")
    time.sleep(0.5)  # for what must not come
    assert [stamps(sent).count((second, 0)) for second in (1, 2, 3)] == [1, 1, 1]
