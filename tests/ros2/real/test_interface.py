"""Parameters, life cycle, triggering, composition and parameter files, as other programs on a robot use them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: make test-ros")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from pairvpr_ros.node import VisualLocalization
from pairvpr_ros.parameters import Parameters
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import Empty
from std_srvs.srv import Trigger

from tests.ros2.real.robot import ROOT, Robot, answers, image, stamps, wait_for
from tests.runtime.sources.bag_writer import scene

NODE = "/visual_localization"
IMAGE = "visual_localization/image_0"
POSE = "visual_localization/pose"
TRIGGER = "visual_localization/trigger_localization"
CONFIG = ROOT / "ros2" / "config"


def set_parameter(robot: Robot, name: str, value: Any) -> Any:
    request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    (result,) = robot.call(SetParameters, f"{NODE}/set_parameters", request).results
    return result


def test_parameters_tell_what_they_are(start: Callable[..., Any], robot: Robot) -> None:
    start()
    names = list(Parameters.describe())
    described = robot.call(DescribeParameters, f"{NODE}/describe_parameters", DescribeParameters.Request(names=names))
    found = {each.name: each for each in described.descriptors}
    assert all(found[name].description.endswith(".") for name in names)
    settable = {name for name in names if not found[name].read_only}
    assert settable == {"enable_continuous_localization", "max_rate"}
    numbers = (ParameterType.PARAMETER_INTEGER, ParameterType.PARAMETER_DOUBLE)
    for name in names:
        ranges = [*found[name].integer_range, *found[name].floating_point_range]
        assert len(ranges) == (found[name].type in numbers), name


def test_parameters_that_are_set_take_effect_or_are_refused(start: Callable[..., Any], robot: Robot) -> None:
    start()
    heard = robot.listen(DiagnosticArray, "/diagnostics")
    robot.ask(IMAGE, image(scene(0)), lambda: bool(answers(heard)))
    refused = set_parameter(robot, "rotate", 90)
    assert not refused.successful
    assert "read-only" in refused.reason
    assert not set_parameter(robot, "max_rate", -1.0).successful
    assert set_parameter(robot, "enable_continuous_localization", False).successful
    for second in range(1, 6):
        robot.send(IMAGE, image(scene(0), stamp=(second, 0)))
        time.sleep(0.1)
    assert not {(second, 0) for second in range(1, 6)} & set(stamps(heard))
    assert set_parameter(robot, "enable_continuous_localization", True).successful
    robot.ask(IMAGE, image(scene(0), stamp=(9, 0)), lambda: (9, 0) in stamps(heard))


def test_localisation_on_request_by_service_and_by_topic(start: Callable[..., Any], robot: Robot) -> None:
    start(enable_continuous_localization=False)
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    robot.ask(IMAGE, image(scene(0)), lambda: bool(poses), "the pose at the start")

    def is_answered(second: int) -> bool:
        return (second, 0) in stamps(poses)

    def is_ignored(second: int) -> bool:
        robot.send(IMAGE, image(scene(1), stamp=(second, 0)))
        time.sleep(0.5)
        return not is_answered(second)

    assert is_ignored(1)
    robot.call(Trigger, TRIGGER, Trigger.Request())
    robot.ask(IMAGE, image(scene(1), stamp=(2, 0)), lambda: is_answered(2))
    assert is_ignored(3)

    def triggered_by_topic() -> bool:
        if not is_answered(4):
            robot.send(TRIGGER, Empty())
        return is_answered(4)

    robot.ask(IMAGE, image(scene(1), stamp=(4, 0)), triggered_by_topic)


def test_a_pose_for_amcl_at_the_start_and_on_each_trigger(start: Callable[..., Any], robot: Robot) -> None:
    """With the parameters file for Nav2, and remapped to the topic of AMCL."""
    start("--params-file", str(CONFIG / "nav2_amcl.yaml"), "-r", f"{POSE}:=initialpose")
    poses = robot.listen(PoseWithCovarianceStamped, "initialpose")
    robot.ask(IMAGE, image(scene(0), stamp=(1, 0)), lambda: bool(poses))
    assert poses[0].header.frame_id == "map"
    robot.call(Trigger, TRIGGER, Trigger.Request())
    robot.ask(IMAGE, image(scene(2), stamp=(2, 0)), lambda: (2, 0) in stamps(poses))
    assert (poses[-1].pose.pose.position.x, poses[-1].pose.covariance[35] > 0) == (2, True)
    assert stamps(poses) == [(1, 0), (2, 0)]


def test_the_rate_is_limited(start: Callable[..., Any], robot: Robot) -> None:
    start(max_rate=2.0)
    heard = robot.listen(DiagnosticArray, "/diagnostics")
    robot.ask(IMAGE, image(scene(0)), lambda: bool(answers(heard)))
    before, started = len(answers(heard)), time.monotonic()
    while time.monotonic() < started + 2:
        robot.send(IMAGE, image(scene(0)))
        time.sleep(0.02)
    assert len(answers(heard)) - before <= 2 * (time.monotonic() - started) + 2  # an answer may be on its way


def test_the_debug_image_shows_query_and_match(start: Callable[..., Any], robot: Robot) -> None:
    start()
    shown = robot.listen(Image, "visual_localization/debug_image")
    robot.ask(IMAGE, image(scene(1)), lambda: bool(shown))
    assert (shown[0].width, shown[0].height, shown[0].encoding) == (640, 272, "rgb8")
    pixels = np.asarray(shown[0].data, np.uint8).reshape(272, 640, 3)
    left, right = (pixels[40:260, x + 4 : x + 310].astype(int) for x in (0, 320))
    assert left.std() > 10
    assert np.abs(left - right).mean() < 3  # the match is the picture itself
    assert pixels[32, 100].tolist() == [0, 128, 0]  # accepted


def test_the_life_cycle(start: Callable[..., Any], robot: Robot) -> None:
    node = start(autostart=False)
    poses = robot.listen(PoseWithCovarianceStamped, POSE)

    def change(transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return bool(robot.call(ChangeState, f"{NODE}/change_state", request).success)

    def state() -> str:
        return str(robot.call(GetState, f"{NODE}/get_state", GetState.Request()).current_state.label)

    def subscribers() -> int:
        return robot.node.count_subscribers(IMAGE)

    assert state() == "unconfigured"
    assert subscribers() == 0
    assert change(Transition.TRANSITION_CONFIGURE)
    assert state() == "inactive"
    assert "engine: " in node.output
    assert subscribers() == 0
    for _ in range(2):
        assert change(Transition.TRANSITION_ACTIVATE)
        before = len(poses)
        robot.ask(IMAGE, image(scene(0)), lambda before=before: len(poses) > before)
        assert change(Transition.TRANSITION_DEACTIVATE)
        wait_for(lambda: subscribers() == 0, "the subscriber to go")
    assert change(Transition.TRANSITION_CLEANUP)
    assert state() == "unconfigured"
    assert change(Transition.TRANSITION_CONFIGURE)
    assert change(Transition.TRANSITION_INACTIVE_SHUTDOWN)
    assert state() == "finalized"
    assert node.stop() == 0


def test_a_transition_that_fails_is_told_and_leaves_the_node_alive(start: Callable[..., Any], robot: Robot) -> None:
    node = start(autostart=False, map_dir="nowhere")
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    assert not robot.call(ChangeState, f"{NODE}/change_state", request).success
    assert "nowhere holds no map" in node.output
    state = robot.call(GetState, f"{NODE}/get_state", GetState.Request()).current_state.label
    assert state == "unconfigured"


def test_a_transition_that_the_state_does_not_allow_leaves_the_node_alive(
    start: Callable[..., Any], robot: Robot
) -> None:
    """rclpy answers such a request with an exception in the node, and the client not at all."""
    node = start()
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    robot.ask(IMAGE, image(scene(0)), lambda: bool(poses))
    client = robot.node.create_client(ChangeState, f"{NODE}/change_state")
    assert client.wait_for_service(30)
    client.call_async(ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE)))
    wait_for(lambda: "[ERROR]" in node.output, "the error in the log")
    before = len(poses)
    robot.ask(IMAGE, image(scene(0)), lambda: len(poses) > before)
    assert node.stop() == 0


def test_two_nodes_in_one_process(home: Path, robot: Robot) -> None:
    """As a program does that composes nodes: other names, parameters and one executor."""
    both = [
        VisualLocalization(
            "localizer",
            context=robot.context,
            namespace=side,
            parameter_overrides=[
                Parameter("map_dir", value=str(home / "map")),
                Parameter("map_frame", value=side),
            ],
        )
        for side in ("left", "right")
    ]
    heard = robot.listen(DiagnosticArray, "/diagnostics")
    try:
        for node in both:
            node.start()
            robot.add(node)
        for side in ("left", "right"):
            poses = robot.listen(PoseWithCovarianceStamped, f"/{side}/{POSE}")
            robot.ask(f"/{side}/{IMAGE}", image(scene(1)), lambda poses=poses: bool(poses))
            assert poses[0].header.frame_id == side
        names = {f"{side}/localizer: /{side}/{IMAGE}" for side in ("left", "right")}
        wait_for(lambda: names <= {each.name for each in answers(heard)}, "diagnostics of both")
        assert {each.hardware_id for each in answers(heard)} == {f"/left/{IMAGE}", f"/right/{IMAGE}"}
    finally:
        for node in both:
            robot.remove(node)
            node.close()


def test_an_exception_in_the_thread_that_answers_ends_the_node_whatever_the_clock(home: Path, robot: Robot) -> None:
    node = VisualLocalization(
        context=robot.context,
        parameter_overrides=[Parameter("map_dir", value=str(home / "map")), Parameter("use_sim_time", value=True)],
    )
    try:
        node.start()
        assert node._localizer is not None
        node._localizer._refresh = None  # what a fault in our own code does
        robot.add(node)
        robot.ask(IMAGE, image(scene(0)), lambda: isinstance(robot.fault, AttributeError))
    finally:
        node.close()


@pytest.mark.parametrize("file", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.stem)
def test_parameter_files_are_read_by_ros_itself(file: Path, tmp_path: Path) -> None:
    """Nodes of the names in the file, in a namespace, get the values; ours takes all of its own."""
    text = file.read_text()
    expected = {
        "nav2_amcl": {"amcl": {"set_initial_pose": False, "global_frame_id": "map"}},
        "robot_localization": {"ekf_map": {"pose0": "visual_localization/pose", "frequency": 30.0}},
        "visual_localization": {"visual_localization": {"matches": 10, "rotation_stddev": 0.35}},
    }[file.stem]
    (tmp_path / "given.yaml").write_text(text)
    arguments = ["--ros-args", "--params-file", str(tmp_path / "given.yaml")]
    for name, values in expected.items():
        robot = Robot(
            name, namespace="robot1", cli_args=arguments, automatically_declare_parameters_from_overrides=True
        )
        try:
            assert {each: robot.node.get_parameter(each).value for each in values} == values
        finally:
            robot.close()
    robot = Robot("any")
    try:
        node = VisualLocalization(context=robot.context, namespace="robot1", cli_args=arguments)
        try:
            given = {name: value.value for name, value in node._parameter_overrides.items()}
            assert set(given) <= {*Parameters.describe(), "use_sim_time"}
            assert given
        finally:
            node.close()
    finally:
        robot.close()
