"""The node as a process of its own, and what a robot around it does: real publishers, subscribers and clients."""

from __future__ import annotations

import array
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import rclpy
from PIL import Image as Picture
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 60.0  # seconds until a test gives up
CHANNELS = {"mono8": 1, "rgb8": 3, "bgr8": 3}


def wait_for(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Return when the condition holds; fail when patience or a node of the test ends first."""
    deadline = time.monotonic() + patience
    while not condition():
        ended = [node.output for node in NodeProcess.started if not node.is_running]
        assert not ended, f"the node ended before {what}: {ended}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.002)


class Robot:
    """A ROS node of the tests, spinning in a thread; it keeps every message of the topics it listens to."""

    def __init__(self, name: str = "robot", **options: Any) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node(name, context=self.context, **options)
        self.heard: dict[str, list[Any]] = {}
        self.fault: Exception | None = None  # what ended the executor
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._closed = Future()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()
        self._publishers: dict[str, Any] = {}
        self._subscriptions: dict[str, Any] = {}

    def _spin(self) -> None:
        try:
            self._executor.spin_until_future_complete(self._closed)
        except ExternalShutdownException:
            pass
        except Exception as fault:
            self.fault = fault

    def close(self) -> None:
        self._closed.set_result(None)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the executor does not end"
        self._executor.shutdown()  # while it spins this may take its wake-up away before it is seen
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def add(self, node: Any) -> None:
        """Let another node's callbacks be called in the same executor."""
        self._executor.add_node(node)

    def remove(self, node: Any) -> None:
        """Call another node's callbacks no more."""
        self._executor.remove_node(node)

    def listen(self, kind: type, topic: str, qos: Any = 10) -> list[Any]:
        """Return the list that messages of the topic are added to."""
        self.forget(topic)
        self.heard[topic] = []
        self._subscriptions[topic] = self.node.create_subscription(kind, topic, self.heard[topic].append, qos)
        return self.heard[topic]

    def forget(self, topic: str) -> None:
        """Listen to the topic no more."""
        if topic in self._subscriptions:
            self.node.destroy_subscription(self._subscriptions.pop(topic))

    def send(self, topic: str, message: Any, qos: Any = 10) -> None:
        """Publish once somebody listens."""
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(type(message), topic, qos)
            wait_for(lambda: self._publishers[topic].get_subscription_count() > 0, f"a subscriber of {topic}")
        self._publishers[topic].publish(message)

    def ask(
        self,
        topic: str,
        message: Any,
        answered: Callable[[], bool],
        what: str = "an answer",
        patience: float = PATIENCE,
    ) -> None:
        """Publish, again each second, until it is answered: what is sent while two nodes still meet may be lost."""
        due = 0.0

        def ask() -> bool:
            nonlocal due
            if answered():
                return True
            if time.monotonic() >= due:
                self.send(topic, message)
                due = time.monotonic() + 1.0
            return False

        wait_for(ask, what, patience)

    def call(self, kind: type, name: str, request: Any, patience: float = PATIENCE) -> Any:
        """Return the service's response."""
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(patience), f"no service {name}"
        future = client.call_async(request)
        wait_for(future.done, f"the response of {name}", patience)
        self.node.destroy_client(client)
        return future.result()


def image(
    pixels: np.ndarray, stamp: tuple[int, int] = (1_700_000_000, 123_456_789), frame: str = "lens", **changed: Any
) -> Image:
    """An Image message of pixels (H, W, 3) rgb8, or with other fields."""
    height, width = pixels.shape[:2]
    data = array.array("B", np.ascontiguousarray(pixels).tobytes())
    given = {"height": height, "width": width, "encoding": "rgb8", "step": pixels[0].size, "data": data, **changed}
    message = Image(**given)
    message.header.stamp.sec, message.header.stamp.nanosec = stamp
    message.header.frame_id = frame
    return message


def compressed(pixels: np.ndarray, form: str = "PNG", frame: str = "lens") -> CompressedImage:
    """A CompressedImage message of pixels (H, W, 3)."""
    stream = io.BytesIO()
    Picture.fromarray(pixels).save(stream, form)
    message = CompressedImage(format=form.lower(), data=array.array("B", stream.getvalue()))
    message.header.stamp.sec = 1_700_000_000
    message.header.frame_id = frame
    return message


class NodeProcess:
    """The node, started as `ros2 run` starts it.

    parameters: of the node. arguments: further ROS arguments, such as remappings. started: those of the test.
    """

    started: ClassVar[list[NodeProcess]] = []

    def __init__(self, log: Path, arguments: Sequence[str] = (), paths: Sequence[Path] = (), **parameters: Any) -> None:
        given = [part for name, value in parameters.items() for part in ("-p", f"{name}:={_text(value)}")]
        command = [sys.executable, "-m", "pairvpr_ros.main", "--ros-args", *given, *arguments]
        path = os.pathsep.join(map(str, [*paths, ROOT, ROOT / "ros2"]))
        self._log = log
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env={**os.environ, "PYTHONPATH": path}, cwd=log.parent
            )
        self.started.append(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def blocked_signals(self) -> set[int]:
        """Return the signals that its main thread does not take."""
        (line,) = [
            each for each in Path(f"/proc/{self.pid}/status").read_text().splitlines() if each.startswith("SigBlk")
        ]
        bits = int(line.split()[1], 16)
        return {number for number in range(1, 65) if bits >> (number - 1) & 1}

    def signal(self, number: int = signal.SIGINT) -> None:
        self._process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Return the exit code."""
        code = self._process.wait(patience)
        if self in self.started:
            self.started.remove(self)
        return code

    def stop(self) -> int:
        """Interrupt it as Ctrl-C does, and return its exit code."""
        self.signal()
        return self.wait()

    def kill(self) -> None:
        """End it at once, if it runs."""
        self._process.kill()
        self.wait()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def stamps(messages: list[Any]) -> list[tuple[int, int]]:
    """Return the time stamps of messages with a header."""
    return [(each.header.stamp.sec, each.header.stamp.nanosec) for each in messages]


def answers(heard: list[Any]) -> list[Any]:
    """Return the statuses about answers in messages of /diagnostics, without those about images coming in."""
    return [each for message in heard for each in message.status if ": images of" not in each.name]
