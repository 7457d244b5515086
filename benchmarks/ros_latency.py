"""Measure the time from an image message to its pose under ROS 2, and the node's own part of it.

    .venv-ros/jazzy/bin/python -m benchmarks.ros_latency --db map/ --images pictures/ --out latency.json

The node runs as a process of its own; images are published one at a time on the loopback interface, each after the
answer to the one before. `--db` needs a calibration with which the pictures are accepted. The same images are sent as
raw images of several sizes and as JPEG.
"""

from __future__ import annotations

import argparse
import array
import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from PIL import Image as Picture
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image

from pairvpr.files import write_atomically
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.sources import list_pictures

ROOT = Path(__file__).resolve().parents[1]
TOPIC = "visual_localization/image_0"
SIZES = ((640, 480), (1280, 720), (1920, 1080))
WARM_UP = 5
PATIENCE = 30.0  # seconds for one answer


class Robot:
    """Publish images and note the times of their answers."""

    def __init__(self, topic: str, kind: type) -> None:
        rclpy.init()
        self._node = rclpy.create_node("latency")
        self._publisher = self._node.create_publisher(kind, topic, QoSProfile(depth=1))
        self._node.create_subscription(PoseWithCovarianceStamped, "visual_localization/pose", self._take_pose, 10)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._take_diagnostics, 10)
        self._arrived = threading.Event()
        self._sent: Any = None
        self._began = 0.0
        self._seconds: float | None = None
        self._own: float | None = None
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._closed = Future()
        self._thread = threading.Thread(
            target=self._executor.spin_until_future_complete, args=(self._closed,), daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._publisher.get_subscription_count():
            if time.monotonic() > deadline:
                raise TimeoutError("no node subscribes to images")
            time.sleep(0.1)

    def measure(self, message: Any) -> tuple[float, float] | None:
        """Return milliseconds from publishing to the pose and the node's own; None if the image is not accepted."""
        self._arrived.clear()
        self._seconds = self._own = None
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.time_ns(), 10**9)
        self._sent = message.header.stamp
        self._began = time.perf_counter()
        self._publisher.publish(message)
        if not self._arrived.wait(PATIENCE) or self._seconds is None or self._own is None:
            return None
        return self._seconds * 1e3, self._own * 1e3

    def close(self) -> None:
        """Leave ROS."""
        self._closed.set_result(None)
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def _take_pose(self, message: PoseWithCovarianceStamped) -> None:
        if message.header.stamp == self._sent:
            self._seconds = time.perf_counter() - self._began
            self._finish()

    def _take_diagnostics(self, message: DiagnosticArray) -> None:
        if message.header.stamp != self._sent:
            return
        values = {value.key: value.value for status in message.status for value in status.values}
        self._own = float(values.get("localization_execution_time", "0"))
        if values.get("accepted") == "true":
            self._finish()
        else:
            self._arrived.set()

    def _finish(self) -> None:
        """Tell of the answer once both its messages have come, in either order."""
        if self._seconds is not None and self._own is not None:
            self._arrived.set()


def messages(pictures: Sequence[Picture.Image], size: tuple[int, int], form: str) -> Iterator[Any]:
    """Yield the pictures scaled to a size (width, height), as raw or JPEG messages."""
    for picture in pictures:
        scaled = picture.resize(size)
        if form == "raw":
            data = array.array("B", scaled.tobytes())
            yield Image(height=size[1], width=size[0], encoding="rgb8", step=3 * size[0], data=data)
        else:
            stream = io.BytesIO()
            scaled.save(stream, "JPEG", quality=90)
            yield CompressedImage(format="jpeg", data=array.array("B", stream.getvalue()))


def run(database: Path, pictures: Sequence[Picture.Image], size: tuple[int, int], form: str) -> dict[str, Any]:
    """Start a node, measure every picture, and return medians and 95th percentiles in milliseconds."""
    transport = "raw" if form == "raw" else "compressed"
    topic = TOPIC if form == "raw" else f"{TOPIC}/compressed"
    node = subprocess.Popen(
        [
            sys.executable, "-m", "pairvpr_ros.main", "--ros-args", "-p", f'map_dir:="{database}"',
            "-p", f"image_transport:={transport}", "-p", f"qos_overrides./{topic}.subscription.reliability:=reliable",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "ros2")))},
    )  # fmt: skip
    try:
        robot = Robot(topic, Image if form == "raw" else CompressedImage)
        time.sleep(1)
        found = [robot.measure(each) for each in messages(pictures, size, form)][WARM_UP:]
        robot.close()
    finally:
        node.terminate()
        node.wait()
    answered = [each for each in found if each is not None]
    if len(answered) < 2:
        raise SystemExit(
            f"{database}: {len(answered)} of {len(found)} images got a pose: give pictures that are accepted"
        )
    whole, own = zip(*answered, strict=True)
    return {
        "size": size,
        "form": form,
        "answered": len(answered),
        "sent": len(found),
        "message_to_pose_ms": _spread(whole),
        "own_ms": _spread(own),
        "rest_ms": _spread([a - b for a, b in answered]),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "p95": round(statistics.quantiles(values, n=20)[-1], 2)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", type=Path, required=True, help="Map with a calibration.")
    parser.add_argument("--images", type=Path, required=True, help="Folder of pictures that are accepted.")
    parser.add_argument("--count", type=int, default=50, help="Images of each size and form.")
    parser.add_argument("--out", type=Path, default=Path("latency.json"))
    given = parser.parse_args()
    files = [path for _, path in list_pictures(given.images)]
    pictures = [load_picture(files[i % len(files)]) for i in range(given.count + WARM_UP)]
    rows = [run(given.db, pictures, size, form) for size in SIZES for form in ("raw", "jpeg")]
    for row in rows:
        print(json.dumps(row, allow_nan=False))
    with write_atomically(given.out) as path:
        path.write_text(json.dumps(rows, indent=1, allow_nan=False))


if __name__ == "__main__":
    main()
