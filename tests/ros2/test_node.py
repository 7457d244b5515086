"""The node on a stand-in for ROS with the real message definitions; it has not been run under ROS 2 itself."""

from __future__ import annotations

import array
import importlib
import io
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rosbags", reason="message definitions come with the extra pairvpr[bags]")

from pairvpr_ros.parameters import Parameters

from pairvpr.errors import PairVPRError
from pairvpr.runtime import Pose
from pairvpr.runtime.geometry import rotations
from pairvpr.runtime.outputs.covariance import promised_deviation
from tests.ros2.fake_ros import Ros
from tests.runtime.outputs.ros_contract import DISTRIBUTIONS, acceptance, write_accepting_map
from tests.runtime.sources.bag_writer import scene

COUNT = 3
POSE, DIAGNOSTICS = "visual_localization/pose", "/diagnostics"
STAMP = (1_700_000_000, 123_456_789)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_accepting_map(home, COUNT)
    return home


class Running:
    """A node, and the ROS around it."""

    def __init__(self, ros: Ros, module: Any) -> None:
        self.ros, self.node = ros, module.VisualLocalization()

    def see(self, place: int, encoding: str = "rgb8") -> None:
        """Send the picture of a place as an image, and wait until there is a diagnosis of it."""
        before = len(self.ros.published[DIAGNOSTICS])
        self.send(place, encoding)
        wait_for(lambda: len(self.ros.published[DIAGNOSTICS]) > before)

    def send(self, place: int, encoding: str = "rgb8") -> None:
        ((topic, (kind, callback, _)),) = self.ros.subscriptions.items()
        stamp = self.ros.new("builtin_interfaces/msg/Time", sec=STAMP[0], nanosec=STAMP[1])
        header = self.ros.new("std_msgs/msg/Header", stamp=stamp, frame_id="lens")
        pixels = scene(place)
        if topic.endswith("compressed"):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            data = array.array("B", stream.getvalue())
            message = self.ros.image("CompressedImage", header=header, format="png", data=data)
        else:
            ordered = np.ascontiguousarray(pixels[:, :, ::-1] if encoding == "bgr8" else pixels)
            height, width = pixels.shape[:2]
            message = self.ros.image(
                "Image", header=header, height=height, width=width, encoding=encoding, is_bigendian=0, step=3 * width,
                data=array.array("B", ordered.tobytes()),
            )  # fmt: skip
        assert kind.kind == message.kind
        callback(message)

    def values(self) -> dict[str, str]:
        (status,) = self.ros.published[DIAGNOSTICS][-1].status
        return {each.key: each.value for each in status.values}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(params=DISTRIBUTIONS)
def start(
    request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Running]]:
    """A function: parameters -> the node, running on the messages of a distribution."""
    started: list[Running] = []

    def begin(**parameters: Any) -> Running:
        ros = Ros(DISTRIBUTIONS[request.param], {"map_dir": str(home / "map"), **parameters})
        ros.install(monkeypatch)
        monkeypatch.delitem(sys.modules, "pairvpr_ros.node", raising=False)
        started.append(Running(ros, importlib.import_module("pairvpr_ros.node")))
        return started[-1]

    yield begin
    for running in started:
        running.node.close()
    sys.modules.pop("pairvpr_ros.node", None)


def test_accepted_places_are_published(start: Callable[..., Running]) -> None:
    running = start(map_frame="site")
    ros = running.ros
    ((topic, (_, _, qos)),) = ros.subscriptions.items()
    assert (topic, qos) == ("visual_localization/image_0", "sensor data")
    for place, encoding in ((1, "rgb8"), (2, "bgr8")):
        running.see(place, encoding)
        pose = ros.published[POSE][-1]
        assert (pose.header.stamp.sec, pose.header.stamp.nanosec, pose.header.frame_id) == (*STAMP, "site")
        assert (pose.pose.pose.position.x, pose.pose.pose.position.y) == (place, 2.0)
        assert pose.pose.covariance[0] >= promised_deviation(acceptance()) ** 2
    candidates = ros.published["visual_localization/candidates"][-1]
    assert (len(candidates.poses), candidates.header.frame_id) == (COUNT, "site")
    diagnostics = ros.published[DIAGNOSTICS][-1]
    (status,) = diagnostics.status
    assert (status.level, status.hardware_id, diagnostics.header.frame_id) == (b"\x00", topic, "lens")
    values = running.values()
    assert (values["query"], values["candidate_1.name"]) == ("visual_localization/image_0#000001", "p2.png")
    assert (values["num_published_poses"], values["trigger_next_localization"]) == ("2", "Yes")
    assert not ros.transforms
    assert any("; decisions: accepted from a pair score of " in text for _, text in ros.logged)


def test_what_is_not_accepted_stands_in_the_diagnostics_alone(start: Callable[..., Running]) -> None:
    running = start(top_k=2)  # not what the threshold is calibrated for
    running.see(1)
    assert not running.ros.published[POSE]
    (status,) = running.ros.published[DIAGNOSTICS][-1].status
    assert (status.level, status.message) == (b"\x01", "not calibrated for --top-k 2, but for 3")
    assert running.values()["candidate_1.name"] == "p1.png"


def test_compressed_images_turned_as_the_maps_were(start: Callable[..., Running]) -> None:
    running = start(image_transport="compressed", rotate=90, crop="0,0,40,60")
    running.see(0)
    assert list(running.ros.subscriptions) == ["visual_localization/image_0/compressed"]
    assert running.values()["compared"] == str(COUNT)


def test_images_that_cannot_be_read(start: Callable[..., Running]) -> None:
    running = start()
    running.see(0, "bgr10")
    (status,) = running.ros.published[DIAGNOSTICS][-1].status
    assert status.level == b"\x02"
    assert "encoding 'bgr10' is not one of" in status.message
    running.see(0)
    assert running.ros.published[POSE]


def test_localisation_on_request(start: Callable[..., Running]) -> None:
    running = start(enable_continuous_localization=False)
    running.see(0)
    assert running.values()["trigger_next_localization"] == "No"
    running.send(1)
    time.sleep(0.3)
    assert len(running.ros.published[DIAGNOSTICS]) == 1
    service, callback = running.ros.services["visual_localization/trigger_localization"]
    response = callback(service.Request(), service.Response())
    assert response.success is True
    assert isinstance(response.message, str)
    running.see(2)
    assert [pose.pose.pose.position.x for pose in running.ros.published[POSE]] == [0, 2]


def test_the_transform_to_odometry(start: Callable[..., Running]) -> None:
    """That which takes the base from where odometry has it to where it was recognised."""
    running = start(publish_map_to_odom_tf=True)
    ros = running.ros
    running.see(1)
    assert not ros.transforms
    assert any(level == "warning" and "no transform from odom to base_link" in text for level, text in ros.logged)
    assert ros.lookups == [("odom", "base_link", STAMP[0] * 10**9 + STAMP[1])]
    turned = (0.0, 0.0, math.sin(0.4), math.cos(0.4))
    names = ("x", "y", "z", "w")
    rotation = ros.new("geometry_msgs/msg/Quaternion", **dict(zip(names, turned, strict=True)))
    position = ros.new("geometry_msgs/msg/Vector3", x=5.0, y=-1.0, z=0.5)
    ros.odometry = ros.new(
        "geometry_msgs/msg/TransformStamped",
        transform=ros.new("geometry_msgs/msg/Transform", translation=position, rotation=rotation),
    )
    running.see(1)
    wait_for(lambda: bool(ros.transforms))
    (sent,) = ros.transforms
    assert (sent.header.frame_id, sent.child_frame_id, sent.header.stamp.sec) == ("map", "odom", STAMP[0])
    q = tuple(getattr(sent.transform.rotation, name) for name in names)
    shift = sent.transform.translation
    turned_base = rotations.rotate(q, np.array([5.0, -1.0, 0.5]))
    assert np.allclose(turned_base + np.array([shift.x, shift.y, shift.z]), [1, 2, 0])
    assert np.allclose(rotations.rotation_vector(rotations.multiply(q, turned)), 0)


def test_what_ends_the_thread_ends_the_node(start: Callable[..., Running]) -> None:
    running = start(crop="0,0,4000,4000")
    (check,) = running.ros.timers
    check()
    running.send(0)
    wait_for(lambda: running.node._localizer._fault is not None)
    with pytest.raises(Exception, match="--crop 0,0,4000,4000 exceeds visual_localization/image_0#000000"):
        check()


def test_the_whole_program(start: Callable[..., Running]) -> None:
    ros = start().ros
    module = sys.modules["pairvpr_ros.node"]
    ros.spin = lambda node: (_ for _ in ()).throw(KeyboardInterrupt)
    module.main()
    assert ros.shut_down
    for parameters, told in (
        ({"map_dir": ""}, "the parameter map_dir is empty: name the folder"),
        ({"map_dir": "nowhere"}, "nowhere holds no map"),
        ({"rotate": 45}, "the parameter rotate is 45: set it to one of 0, 90, 180, 270"),
        ({"crop": "1,2"}, "'1,2' is not X,Y,WIDTH,HEIGHT"),
        ({"image_transport": "theora"}, "the parameter image_transport is 'theora'"),
    ):
        before, ros.parameters = ros.parameters, {**ros.parameters, **parameters}
        with pytest.raises(SystemExit) as left:
            module.main()
        ros.parameters = before
        level, text = ros.logged[-1]
        assert (left.value.code, level) == (2, "fatal")
        assert told in text


def test_poses_in_several_frames_need_their_own_names() -> None:
    def of(*frames: str) -> Any:
        return SimpleNamespace(
            path="db", records=[SimpleNamespace(pose=Pose(0, 0, 0, frame=frame) if frame else None) for frame in frames]
        )

    assert Parameters("db").frames(of("odom", "odom", "")) == {"odom": "map"}
    assert Parameters("db").frames(of("map")) == Parameters("db").frames(of("")) == {}
    assert Parameters("db", map_frame="").frames(of("map", "utm32T")) == {}
    with pytest.raises(PairVPRError, match="several frames, map, utm32T, which cannot all be map_frame 'map'"):
        Parameters("db").frames(of("map", "utm32T"))
