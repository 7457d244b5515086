"""Long runs, in short; their long forms with `pytest -m soak`."""

from __future__ import annotations

import array
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

pytest.importorskip("rclpy", reason="needs ROS 2: make test-ros")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from sensor_msgs.msg import CompressedImage, Image

from pairvpr.runtime.sources.ros_messages import ENCODINGS
from tests.ros2.real.robot import Robot, answers, compressed, image, wait_for
from tests.runtime.sources.bag_writer import scene

IMAGE = "visual_localization/image_0"
POSE = "visual_localization/pose"
LARGE = 2**32 - 1
MEGABYTES = 2**20


def long(value: int) -> Any:
    return pytest.param(value, marks=pytest.mark.soak)


@contextmanager
def flowing(robot: Robot, topics: list[str], pixels: np.ndarray, rate: float) -> Iterator[dict[str, Any]]:
    """Publish images at a rate in a thread; what was sent stands in the dictionary."""
    state: dict[str, Any] = {"sent": 0, "stamp": (0, 0)}
    running = threading.Event()
    running.set()
    message = image(pixels)

    def flow() -> None:
        due = time.monotonic()
        while running.is_set():
            state["stamp"] = message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.time_ns(), 10**9)
            for topic in topics:
                robot.send(topic, message)
            state["sent"] += 1
            due = max(due + 1 / rate, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))

    for topic in topics:
        robot.send(topic, message)
    thread = threading.Thread(target=flow)
    thread.start()
    try:
        yield state
    finally:
        running.clear()
        thread.join()


@pytest.mark.parametrize("rounds", [2, long(50)])
def test_signals_end_it_in_order_every_time(start: Callable[..., Any], robot: Robot, rounds: int) -> None:
    """Once, twice, and at any moment of an answer."""
    chosen = random.Random(0)
    for count in range(rounds):
        node = start()
        poses = robot.listen(PoseWithCovarianceStamped, POSE)
        with flowing(robot, [IMAGE], scene(0), 30):
            wait_for(lambda poses=poses: bool(poses), "a pose")
            time.sleep(chosen.uniform(0, 0.3))
            for _ in range(1 + count % 2):
                node.signal(signal.SIGINT)
            assert node.wait() == 0, (count, node.output)
        assert "Traceback" not in node.output, (count, node.output)
        robot.forget(POSE)


def malformed(count: int) -> Iterator[Image]:
    """Images whose fields do not go together, or hold what no camera sends."""
    chosen = random.Random(0)
    sizes = (0, 1, 2, 3, 15, 16, 17, 48, 64, 640, 100_000, LARGE)
    pixels = scene(0)
    while count:
        message = image(pixels, stamp=(chosen.choice((0, 1, -1, -(2**31), 2**31 - 1)), chosen.choice((0, 5, LARGE))))
        for name in ("height", "width", "step"):
            if chosen.random() < 0.4:
                setattr(message, name, chosen.choice(sizes))
        if chosen.random() < 0.7:
            message.encoding = chosen.choice([*ENCODINGS, "", "32FC1", "bgr16", "x" * 1000, "\u00e9"])
        if chosen.random() < 0.5:
            message.data = array.array("B", chosen.randbytes(chosen.choice((0, 1, 100, 3072, 9216))))
        message.is_bigendian = chosen.choice((0, 1, 255))
        message.header.frame_id = chosen.choice(("", "lens", "\u00e9" * 100))
        yield message
        count -= 1


def damaged(count: int) -> Iterator[CompressedImage]:
    """Compressed images with bytes that were changed, cut off or repeated."""
    chosen = random.Random(0)
    sound = [compressed(scene(0), form).data for form in ("PNG", "JPEG", "TIFF")]
    while count:
        content = bytearray(chosen.choice(sound))
        for _ in range(chosen.randint(0, 20)):
            content[chosen.randrange(len(content))] = chosen.randrange(256)
        cut = chosen.randrange(len(content)) if chosen.random() < 0.3 else len(content)
        yield CompressedImage(
            format=chosen.choice(("", "jpeg", "png", "tiff", "x")), data=array.array("B", content[:cut])
        )
        count -= 1


@pytest.mark.parametrize("count", [150, long(15_000)])
@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_malformed_messages_end_nothing(start: Callable[..., Any], robot: Robot, transport: str, count: int) -> None:
    """Each is answered before the next is sent, so that none is dropped unseen."""
    topic = IMAGE if transport == "raw" else f"{IMAGE}/compressed"
    reliable = f"qos_overrides./{topic}.subscription.reliability:=reliable"
    node = start("-p", reliable, image_transport=transport)
    heard = robot.listen(DiagnosticArray, "/diagnostics", 1000)
    for message in malformed(count) if transport == "raw" else damaged(count):
        del heard[:-1]
        robot.ask(topic, message, lambda: bool(answers(heard)))
        del heard[:]
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    sound = image(scene(1)) if transport == "raw" else compressed(scene(1))
    robot.ask(topic, sound, lambda: bool(poses))
    assert node.stop() == 0
    assert "Traceback" not in node.output


@pytest.mark.parametrize("seconds", [10, long(600)])
def test_two_cameras_at_full_rate(start: Callable[..., Any], robot: Robot, seconds: int) -> None:
    """960 x 540 at 30 Hz from either: memory stays flat, answers are for the newest images."""
    topics = [IMAGE, "visual_localization/image_1"]
    reliable = [f"qos_overrides./{topic}.subscription.reliability:=reliable" for topic in topics]
    node = start(*(part for each in reliable for part in ("-p", each)), num_cameras=2)
    pixels = np.asarray(Picture.fromarray(scene(1)).resize((960, 540)))
    poses = robot.listen(PoseWithCovarianceStamped, POSE)
    delays, sizes, answered = [], [], 0
    with flowing(robot, topics, pixels, 30) as state:
        wait_for(lambda: len(poses) > 5, "poses")
        before, began = state["sent"], time.monotonic()
        while time.monotonic() < began + seconds:
            time.sleep(seconds / 20)
            assert node.is_running, node.output
            sizes.append(resident(node.pid))
            delays.append(time.time() - (poses[-1].header.stamp.sec + poses[-1].header.stamp.nanosec / 1e9))
            answered += len(poses) - 1
            del poses[:-1]
        rate, poses_a_second = ((count / (time.monotonic() - began)) for count in (state["sent"] - before, answered))
    print(  # noqa: T201
        f"{seconds} s: {rate:.1f} images a second of each camera, {poses_a_second:.1f} poses a second, "
        f"RSS {sizes[2]:.0f} to {sizes[-1]:.0f} MiB (at most {max(sizes[2:]):.0f}), "
        f"newest pose {min(delays):.2f} to {max(delays):.2f} s old"
    )
    assert max(sizes[5:]) < min(sizes[2:]) + 25  # MiB; one pair of images takes 3
    assert max(delays[-5:]) < 5 * (min(delays) + 1)  # old images do not pile up
    assert node.stop() == 0


def resident(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    (line,) = [each for each in Path(f"/proc/{process}/status").read_text().splitlines() if each.startswith("VmRSS")]
    return int(line.split()[1]) * 1024 / MEGABYTES
