"""Images to poses under real ROS 2: the node as a process, real publishers and subscribers around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped

from pairvpr.runtime.outputs.covariance import promised_deviation
from tests.ros2.real.conftest import PLACES
from tests.ros2.real.robot import Robot, answers, compressed, image
from tests.runtime.outputs.ros_contract import acceptance
from tests.runtime.sources.bag_writer import scene

IMAGE = "visual_localization/image_0"
POSE = "visual_localization/pose"


def test_accepted_places_are_published(start: Callable[..., Any], robot: Robot) -> None:
    node = start(map_frame="site")
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    candidates = robot.listen(PoseArray, "visual_localization/candidates")
    diagnostics = robot.listen(DiagnosticArray, "/diagnostics")
    robot.ask(IMAGE, image(scene(1)), lambda: bool(poses and candidates and answers(diagnostics)))
    pose = poses[0]
    assert (pose.header.stamp.sec, pose.header.stamp.nanosec) == (1_700_000_000, 123_456_789)
    assert pose.header.frame_id == candidates[0].header.frame_id == "site"
    assert (pose.pose.pose.position.x, pose.pose.pose.position.y) == (1, 2)
    assert pose.pose.covariance[0] >= promised_deviation(acceptance()) ** 2
    assert len(candidates[0].poses) == PLACES
    assert node.stop() == 0
    assert "Traceback" not in node.output


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_compressed_images(start: Callable[..., Any], robot: Robot, form: str) -> None:
    start(image_transport="compressed")
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    robot.ask(f"{IMAGE}/compressed", compressed(scene(2), form), lambda: bool(poses))
    assert poses[0].pose.pose.position.x == 2
