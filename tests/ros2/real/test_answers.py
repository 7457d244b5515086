"""Images to poses under real ROS 2: the node as a process, real publishers and subscribers around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped

from pairvpr.runtime.outputs.covariance import promised_deviation
from tests.ros2.real.conftest import PLACES
from tests.ros2.real.robot import Robot, answers, compressed, image, stamps
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


def test_an_unknown_place_has_candidates_and_no_pose(start: Callable[..., Any], robot: Robot) -> None:
    start()
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    candidates = robot.listen(PoseArray, "visual_localization/candidates")
    diagnostics = robot.listen(DiagnosticArray, "/diagnostics")
    strange = np.random.default_rng(0).integers(0, 256, scene(0).shape, np.uint8)
    for second in (1, 3):

        def is_told(second: int = second) -> bool:
            return all((second, 0) in stamps(heard) for heard in (candidates, diagnostics))

        robot.ask(IMAGE, image(strange, stamp=(second, 0)), is_told)
        robot.ask(IMAGE, image(scene(1), stamp=(second + 1, 0)), lambda second=second: (second + 1, 0) in stamps(poses))
    assert not {(1, 0), (3, 0)} & set(stamps(poses))
    (status,) = next(each.status for each in diagnostics if stamps([each]) == [(1, 0)])
    assert status.level == b"\x01"
    assert status.message == "score too low: not in the map, or not recognisable"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_compressed_images(start: Callable[..., Any], robot: Robot, form: str) -> None:
    start(image_transport="compressed")
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    robot.ask(f"{IMAGE}/compressed", compressed(scene(2), form), lambda: bool(poses))
    assert poses[0].pose.pose.position.x == 2
