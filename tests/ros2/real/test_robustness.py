"""What used to end the node or leave it silent: messages, signals, parameters, clocks."""

from __future__ import annotations

import array
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: make test-ros")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from pairvpr_ros.node import VisualLocalization
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from pairvpr.errors import PairVPRError
from tests.ros2.real.robot import ROOT, Robot, answers, compressed, image, wait_for
from tests.runtime.sources.bag_writer import scene

IMAGE = "visual_localization/image_0"
POSE = "visual_localization/pose"


def bad_images() -> dict[str, Any]:
    """Messages that once ended the node, by what is wrong with them."""
    nothing = {"height": 0, "width": 0, "step": 0, "data": array.array("B")}
    return {
        "empty bayer": image(scene(0), encoding="bayer_rggb8", **nothing),
        "empty yuv422": image(scene(0), encoding="yuv422", **nothing),
        "no rows": image(scene(0), encoding="mono16", **{**nothing, "width": 2**32 - 1}),
        "before 1970": image(scene(0), stamp=(-1, 0)),
        "after 2038": image(scene(0), stamp=(2**31 - 1, 2**32 - 1)),
        "another size": image(np.zeros((32, 32, 3), np.uint8)),
        "another encoding": image(scene(0), encoding="bgr10"),
        "too little data": image(scene(0), data=array.array("B", [0])),
    }


def test_no_message_ends_the_node(start: Callable[..., Any], robot: Robot) -> None:
    start(crop="0,0,60,40")
    heard = robot.listen(DiagnosticArray, "/diagnostics")
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    for title, message in bad_images().items():
        before = len(answers(heard))
        robot.ask(IMAGE, message, lambda before=before: len(answers(heard)) > before, title)
        status = answers(heard)[-1]
        assert status.level == b"\x02", title
        assert status.message, title
        assert ("outside 1970 to 2038" in status.message) == (title in ("before 1970", "after 2038"))
    robot.ask(IMAGE, image(scene(1)), lambda: bool(poses))


def test_undecodable_images_are_logged_and_not_for_each_again(start: Callable[..., Any], robot: Robot) -> None:
    node = start(image_transport="compressed")
    heard = robot.listen(DiagnosticArray, "/diagnostics")
    message = compressed(scene(0))
    message.data = message.data[:100]
    for count in range(1, 6):
        robot.ask(f"{IMAGE}/compressed", message, lambda count=count: len(answers(heard)) >= count)
    assert node.output.count("its JPEG, PNG, TIFF or WebP data is damaged") == 1


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM, signal.SIGINT]])
def test_signals_end_it_in_order_while_images_flow(start: Callable[..., Any], robot: Robot, signals: list[int]) -> None:
    node = start()
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    flowing = threading.Event()
    flowing.set()

    def flow() -> None:
        while flowing.is_set():
            robot.send(IMAGE, image(scene(0)))
            time.sleep(0.02)

    thread = threading.Thread(target=flow)
    thread.start()
    try:
        wait_for(lambda: bool(poses), "a pose")
        for number in signals:
            node.signal(number)
        assert node.wait() == 0
    finally:
        flowing.clear()
        thread.join()
    assert "Traceback" not in node.output


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.5])
def test_a_signal_while_it_loads_ends_it(start: Callable[..., Any], delay: float) -> None:
    """From the node's first line on; what Python does before is Python's."""
    node = start()
    wait_for(lambda: signal.SIGINT in node.blocked_signals(), "the node's first line")
    time.sleep(delay)
    node.signal()
    assert node.wait() == 0
    assert "Traceback" not in node.output


def test_quality_of_service_is_overridden(start: Callable[..., Any], robot: Robot) -> None:
    """Large images arrive whole with reliable transport; best effort is the default."""
    start("-p", f"qos_overrides./{IMAGE}.subscription.reliability:=reliable")
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    large = np.asarray(scene(1)).repeat(14, axis=0).repeat(14, axis=1)
    assert large.nbytes > 1_500_000
    for count in range(1, 5):
        robot.ask(IMAGE, image(large), lambda count=count: len(poses) >= count)
    (found,) = robot.node.get_subscriptions_info_by_topic(IMAGE)
    assert found.qos_profile.reliability == ReliabilityPolicy.RELIABLE


@pytest.mark.parametrize("parameters", [{"map_dir": "nowhere"}, {"top_k": "many"}])
def test_what_cannot_be_used_is_one_line_and_exit_code_2(start: Callable[..., Any], parameters: dict[str, Any]) -> None:
    node = start(**parameters)
    assert node.wait() == 2
    (line,) = node.output.splitlines()
    assert "nowhere holds no map" in line or "the parameter top_k is not of its type: write a whole number" in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--params-file", "nowhere.yaml"], "Couldn't parse params file: '--params-file nowhere.yaml'"),
        (["-p", "map_dir"], "Couldn't parse parameter override rule: '-p map_dir'"),
        (["--speed"], "these arguments after --ros-args are unknown: ['--speed']"),
    ],
)
def test_arguments_that_cannot_be_used(start: Callable[..., Any], arguments: list[str], told: str) -> None:
    node = start(*arguments)
    assert node.wait() == 2
    (line,) = [line for line in node.output.splitlines() if "[visual_localization]" in line]  # rcl has one of its own
    assert told in line
    assert "Traceback" not in node.output


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"map_dir": ""}, "the parameter map_dir is empty: name the folder"),
        ({"rotate": 45}, "the parameter rotate is 45: set it to one of 0, 90, 180, 270"),
        ({"crop": "1,2"}, "'1,2' is not X,Y,WIDTH,HEIGHT"),
        ({"image_transport": "theora"}, "the parameter image_transport is 'theora'"),
        ({"max_rate": 5}, "the parameter max_rate is not of its type: write a number with a point, as 5.0"),
        ({"num_cameras": 9}, "the parameter num_cameras is out of range: set it to 1 to 8"),
        ({"top_k": 4}, "top_k 4 is outside 1 to 3"),
        ({"camera_poses": "0,0,0"}, "the parameter camera_poses has '0,0,0': write X,Y,Z,QX,QY,QZ,QW"),
        ({"camera_poses": "0,0,0,0,0,0,1;0,0,0,0,0,0,1"}, "has 2 poses for 1 cameras"),
        ({"publish_map_to_odom_tf": True, "publish_map_to_base_tf": True}, "a frame has one parent"),
        ({"publish_map_to_base_tf": True}, "transforms need tf2_ros"),
    ],
)
def test_parameters_that_cannot_be_used(home: Path, robot: Robot, parameters: dict[str, Any], told: str) -> None:
    given = {"map_dir": str(home / "map"), **parameters}
    overrides = [Parameter(name, value=value) for name, value in given.items()]

    def start() -> None:
        node = VisualLocalization(context=robot.context, parameter_overrides=overrides)
        try:
            node.start()
        finally:
            node.close()

    with pytest.raises(PairVPRError, match=re.escape(told)):
        start()


def test_the_parameters_file_holds_in_a_namespace(
    start: Callable[..., Any], robot: Robot, home: Path, tmp_path: Path
) -> None:
    content = (ROOT / "ros2" / "config" / "visual_localization.yaml").read_text()
    content = content.replace("matches: 10", "matches: 2").replace('map_dir: ""', f'map_dir: "{home / "map"}"')
    (tmp_path / "changed.yaml").write_text(content)
    start("--params-file", str(tmp_path / "changed.yaml"), "-r", "__ns:=/left")
    candidates = robot.listen(PoseArray, "/left/visual_localization/candidates")
    robot.ask(f"/left/{IMAGE}", image(scene(0)), lambda: bool(candidates))
    assert len(candidates[0].poses) == 2


def test_an_answer_that_cannot_be_judged_is_warned_of_in_the_parameters_words(
    start: Callable[..., Any], robot: Robot
) -> None:
    node = start(top_k=2)  # the map's decisions are calibrated for 3
    robot.ask(IMAGE, image(scene(0)), lambda: "no pose is published" in node.output)
    (line,) = [line for line in node.output.splitlines() if "no pose is published" in line]
    assert "[WARN]" in line
    assert "top_k 2, but for 3" in line
    assert "--" not in line.partition("published")[2]


@pytest.mark.parametrize("level", ["info", "debug"])
def test_each_answer_is_logged_at_the_level_debug(start: Callable[..., Any], robot: Robot, level: str) -> None:
    node = start("--log-level", f"visual_localization:={level}")
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    robot.ask(IMAGE, image(scene(0)), lambda: bool(poses))
    assert node.stop() == 0
    assert ("best match p0.png" in node.output) == (level == "debug")


def test_silence_is_told_even_where_simulated_time_stands_still(start: Callable[..., Any], robot: Robot) -> None:
    node = start(use_sim_time=True)
    heard = robot.listen(DiagnosticArray, "/diagnostics")

    def inputs() -> list[Any]:
        return [each for array_ in heard for each in array_.status if ": images of" in each.name]

    wait_for(lambda: bool(inputs()) and inputs()[-1].level == b"\x01", "a warning")
    assert f"s on /{IMAGE}" in inputs()[-1].message
    wait_for(lambda: "no images for" in node.output, "a line in the log")
    robot.ask(IMAGE, image(scene(0)), lambda: inputs()[-1].level == b"\x00", "the end of the warning")
    assert inputs()[-1].message == "images come in"


def test_images_without_a_stamp_get_the_robots_time(start: Callable[..., Any], robot: Robot) -> None:
    start(use_sim_time=True)
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    clock = Clock()
    clock.clock.sec = 777
    robot.send("/clock", clock)

    def answered() -> bool:  # time and image come on different topics
        robot.send("/clock", clock)
        robot.send(IMAGE, image(scene(0), stamp=(0, 0)))
        time.sleep(0.2)
        return any(pose.header.stamp.sec == 777 for pose in poses)

    wait_for(answered, "a pose of simulated time")
    assert poses[-1].header.stamp.sec == 777
