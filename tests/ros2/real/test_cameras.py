"""Several cameras, their places on the robot, and their calibration."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

pytest.importorskip("rclpy", reason="needs ROS 2: make test-ros")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from sensor_msgs.msg import CameraInfo

from tests.ros2.real.robot import Robot, answers, image
from tests.ros2.real.stand_ins.tf2_ros import TOLD
from tests.runtime.sources.bag_writer import scene

POSE = "visual_localization/pose"
BEHIND = "0,0,0,0,0,0,1; -1,0,0,0,0,1,0"  # the second looks back, from a metre behind


def topic(camera: int) -> str:
    return f"visual_localization/image_{camera}"


def yaw(pose: Any) -> float:
    q = pose.pose.pose.orientation
    return 2 * math.atan2(q.z, q.w)


@pytest.mark.parametrize("by_tf", [False, True])
def test_each_camera_gives_the_pose_of_the_base(start: Callable[..., Any], robot: Robot, by_tf: bool) -> None:
    start(num_cameras=2, camera_poses="tf" if by_tf else BEHIND)
    poses = robot.listen(PoseWithCovarianceStamped, POSE)

    def tell(frame: str, x: float, z: float, w: float) -> None:
        message = TransformStamped(child_frame_id=frame)
        message.header.frame_id = "base_link"
        message.transform.translation.x, message.transform.rotation.z, message.transform.rotation.w = x, z, w
        robot.send(TOLD, message)

    def turned() -> bool:  # the robot is where place 2 was seen, turned: the camera behind sees it
        if by_tf:
            tell("front", 0.0, 0.0, 1.0)
            tell("rear", -1.0, 1.0, 0.0)
        return any(abs(abs(yaw(pose)) - math.pi) < 1e-6 for pose in poses)

    robot.ask(topic(0), image(scene(1), frame="front"), lambda: turned() or bool(poses))
    assert (poses[0].pose.pose.position.x, yaw(poses[0])) == (1, 0)
    robot.ask(topic(1), image(scene(2), frame="rear"), turned)
    found = next(pose for pose in poses if yaw(pose) != 0)
    at = found.pose.pose.position
    assert (at.x, at.y) == (pytest.approx(1), pytest.approx(2))  # the camera at 2, looking along x; the base behind it


def test_cameras_that_contradict_each_other_give_no_pose(start: Callable[..., Any], robot: Robot) -> None:
    """Places further apart than their radii cannot both be true."""
    start(num_cameras=2, camera_poses="0,0,0,0,0,0,1; 100,0,0,0,0,0,1")
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    heard = robot.listen(DiagnosticArray, "/diagnostics")
    robot.ask(topic(0), image(scene(1)), lambda: bool(poses))
    robot.ask(topic(1), image(scene(1)), lambda: len(poses) > 1)

    def contradicted() -> bool:
        return any("cameras contradict each other" in each.message for each in answers(heard))

    for second in range(1, 60):  # both images come in one round, unless the computer is slow
        stamp = (1_700_000_000 + second, 0)
        robot.send(topic(0), image(scene(1), stamp))
        robot.send(topic(1), image(scene(1), stamp))
        deadline = time.monotonic() + 5
        while not contradicted() and len(of(poses, stamp)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        if contradicted():
            break
    time.sleep(1)
    assert contradicted()
    assert of(poses, stamp) == []


def of(poses: list[Any], stamp: tuple[int, int]) -> list[Any]:
    """Return the poses of the images of a time."""
    return [each for each in poses if (each.header.stamp.sec, each.header.stamp.nanosec) == stamp]


def test_calibration_from_camera_info(start: Callable[..., Any], robot: Robot) -> None:
    node = start(undistort="camera_info")
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    heard = robot.listen(DiagnosticArray, "/diagnostics")
    robot.ask(topic(0), image(scene(1)), lambda: bool(answers(heard)))
    assert answers(heard)[0].level == b"\x02"
    assert "no CameraInfo has come yet" in answers(heard)[0].message
    assert "no CameraInfo has come yet" in node.output
    height, width = scene(1).shape[:2]
    info = CameraInfo(width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = [100.0, 0.0, width / 2, 0.0, 100.0, height / 2, 0.0, 0.0, 1.0]
    info.r = np.eye(3).ravel().tolist()
    robot.send("visual_localization/camera_info_0", info)

    def ask() -> bool:
        robot.send("visual_localization/camera_info_0", info)
        return bool(poses)

    robot.ask(topic(0), image(scene(1)), ask)
    assert poses[0].pose.pose.position.x == 1
    half = np.asarray(Picture.fromarray(scene(1)).resize((width // 2, height // 2)))
    robot.ask(topic(0), image(half), lambda: any("the calibration 64 x 48" in each.message for each in answers(heard)))
