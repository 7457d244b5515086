"""What tests under real ROS 2 share. They run where rclpy is: `make test-ros`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# Read when a context is made: nothing outside this machine is met, and no other run on it.
os.environ.update(ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST", ROS_DOMAIN_ID=str(1 + os.getpid() % 100))

if find_spec("rclpy") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.ros2.real.robot import NodeProcess, Robot
    from tests.runtime.outputs.ros_contract import write_accepting_map

PLACES = 3
STAND_INS = Path(__file__).parent / "stand_ins"  # tf2_ros, which no wheel has


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a map of PLACES pictures, whose answers to these pictures are accepted."""
    home = tmp_path_factory.mktemp("home")
    os.environ["ROS_LOG_DIR"] = str(home / "log")
    write_accepting_map(home, PLACES)
    return home


@pytest.fixture
def robot() -> Iterator[Any]:
    """The ROS node of the test."""
    robot = Robot()
    yield robot
    robot.close()


@pytest.fixture
def start(home: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A function: parameters and arguments -> the node as a process, which ends with the test."""
    started: list[NodeProcess] = []

    def begin(*arguments: str, **parameters: Any) -> NodeProcess:
        log = tmp_path / f"node{len(started)}.log"
        started.append(NodeProcess(log, arguments, [STAND_INS], **{"map_dir": str(home / "map"), **parameters}))
        return started[-1]

    yield begin
    for node in started:
        node.kill()
        print(node.output)  # noqa: T201  shown where the test fails
