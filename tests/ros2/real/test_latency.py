"""The benchmark of the time from message to pose, on small pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("rclpy", reason="needs ROS 2: make test-ros")

from benchmarks.ros_latency import WARM_UP, run
from tests.runtime.sources.bag_writer import scene


@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_every_image_is_measured(home: Path, form: str) -> None:
    pictures = [Image.fromarray(scene(i % 3)) for i in range(WARM_UP + 4)]
    found = run(home / "map", pictures, (320, 240), form)
    assert (found["answered"], found["sent"]) == (4, 4)
    assert 0 < found["own_ms"]["median"] < found["message_to_pose_ms"]["median"]
