"""The node's parts that need no ROS: cameras, their places on the robot, fusion, parameters."""

from __future__ import annotations

import io
import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pairvpr_ros.cameras import CameraInput, Cameras
from pairvpr_ros.health import Throttle, silent_cameras
from pairvpr_ros.localizer import Localizer
from pairvpr_ros.mounts import Mounts
from pairvpr_ros.parameters import Parameters
from pairvpr_ros.transforms import map_to_odom
from PIL import Image

from pairvpr.errors import PairVPRError
from pairvpr.runtime import Match, Pose, Recognition, build_map
from pairvpr.runtime.geometry.transforms import Transform
from pairvpr.runtime.measure import DESCRIPTOR_ALONE
from pairvpr.runtime.outputs.ros_messages import CANDIDATES, DIAGNOSTICS
from pairvpr.runtime.rig import fuse
from pairvpr.runtime.sources.options import DEFAULT

pytest.importorskip("rosbags", reason="message definitions come with the extra pairvpr[bags]")

from tests.runtime.outputs.ros_contract import acceptance
from tests.scenes import draw_scene

AHEAD = Transform.of((0, 0, 0), (0, 0, 0, 1))
QUARTER = (0.0, 0.0, math.sin(math.pi / 4), math.cos(math.pi / 4))  # to the left


def answer(name: str, x: float, confidence: float | None, score: float = 5.0, radius: float = 5.0) -> Recognition:
    """An answer at (x, 0, 0), accepted if it has a confidence."""
    match = Match("m.png", score, 0.9, "full", Pose(x, 0, 0, (0.0, 0.0, 0.0, 1.0)))
    return Recognition(
        name, 0.0, (match,), accepted=confidence is not None, confidence=confidence, reason="",
        acceptance=acceptance(radius=radius),
    )  # fmt: skip


def test_the_accepted_answer_of_highest_confidence_is_chosen() -> None:
    assert fuse([answer("a", 0, 0.9), answer("b", 1, 0.95), answer("c", 50, None, 99)]).camera == 1
    assert fuse([answer("a", 0, None, 1.0), answer("b", 1, None, 3.0)]).camera == 1
    nothing = Recognition("c", 0.0, error="no picture")
    assert fuse([nothing, answer("b", 1, None, 3.0)]).camera == 1
    assert fuse([nothing]).camera == 0


def test_answers_further_apart_than_their_radii_are_not_accepted() -> None:
    fused = fuse([answer("a", 0, 0.9), answer("b", 9.9, 0.95)])
    assert fused.accepted
    fused = fuse([answer("a", 0, 0.9), answer("b", 10.1, 0.95), answer("c", 0, None)])
    assert [each.accepted for each in fused.cameras] == [False, False, False]
    assert fused.cameras[0].reason == "cameras contradict each other: a and b"


def test_the_base_follows_from_the_camera_that_recognised_the_place() -> None:
    """A camera that looks left, half a metre ahead of the base, sees what the map's camera saw looking along x."""
    left = Transform.of((0.5, 0, 0), QUARTER)
    seen = answer("left", 10, 0.9)
    mounts = Mounts([AHEAD, left], None)
    assert mounts.in_base(0, "", seen).best.pose == seen.best.pose
    pose = mounts.in_base(1, "", seen).best.pose
    base = Transform.of((pose.x, pose.y, pose.z), pose.q)
    camera = base.then(left)
    assert np.allclose(camera.position, [10, 0, 0])
    assert np.allclose(camera.q, [0, 0, 0, 1])
    flat = Recognition("flat", 0.0, (Match("m.png", 1.0, 0.9, "full", Pose(3, 4, 0)),))
    assert mounts.in_base(1, "", flat).best.pose == Pose(3, 4, 0)


def test_a_camera_without_a_known_place_gives_no_accepted_answer() -> None:
    known = {"front": AHEAD}
    mounts = Mounts(None, known.get)
    assert mounts.in_base(1, "rear", answer("rear", 0, 0.9)).accepted is None
    known["rear"] = AHEAD
    unknown = mounts.in_base(1, "rear", answer("rear", 0, 0.9))
    assert (unknown.accepted, "image_0" in unknown.reason) == (None, True)
    assert mounts.in_base(0, "front", answer("front", 0, 0.9)).accepted
    assert mounts.in_base(1, "rear", answer("rear", 0, 0.9)).accepted


def test_odometry_and_a_place_give_map_to_odom() -> None:
    base_in_map, base_in_odom = Transform.of((1, 2, 3), QUARTER), Transform.of((5, -1, 0.5), (0, 0, 0.6, 0.8))
    again = map_to_odom(base_in_map, base_in_odom).then(base_in_odom)
    assert np.allclose(again.position, base_in_map.position)
    assert np.allclose(again.q, base_in_map.q)


def cameras(count: int) -> Cameras:
    return Cameras([CameraInput(f"/image_{i}", DEFAULT, False, lambda: 0) for i in range(count)])


def test_a_round_takes_the_newest_image_of_each_camera() -> None:
    both = cameras(2)
    for message in "abc":
        both.offer(0, message)
    both.offer(1, "d")
    taken = both.wait()
    assert [(camera.topic, message, number) for camera, message, number in taken or []] == [
        ("/image_0", "c", 2),
        ("/image_1", "d", 0),
    ]
    assert both.all[0].dropped == 2
    both.offer(1, "e")
    assert [message for _, message, _ in both.wait() or []] == ["e"]
    both.offer(0, "f")
    both.forget()
    threading.Timer(0.2, both.close).start()
    assert both.wait() is None
    both.offer(0, "late")
    assert not both.all[0].waiting


def test_an_image_that_comes_at_once_after_the_first_belongs_to_its_round() -> None:
    both = cameras(2)
    both.offer(0, "a")
    threading.Timer(0.005, both.offer, (1, "b")).start()
    assert {message for _, message, _ in both.wait() or []} <= {"a", "b"}
    assert not both.all[0].waiting


def test_silence_counts_from_activation_and_from_the_last_image() -> None:
    both = cameras(2)
    now = time.monotonic()
    both.all[0].seen = now - 10
    both.all[1].seen = now
    assert silent_cameras(both.all, now - 60) == {"/image_0": pytest.approx(10, abs=1)}
    assert silent_cameras(both.all, now) == {}


def test_a_thing_is_said_again_only_after_a_while() -> None:
    throttle = Throttle(0.2)
    assert [throttle.allows("a"), throttle.allows("a"), throttle.allows("b")] == [True, False, True]
    time.sleep(0.25)
    assert throttle.allows("a")


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


class _Outlet:
    """Keeps what the node publishes."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Any]] = []
        self.answered = threading.Event()

    def publish(self, topic: str, message: Any) -> None:
        self.messages.append((topic, message))
        if topic == CANDIDATES:
            self.answered.set()

    def is_heard(self, topic: str) -> bool:
        return False


def compressed(picture: np.ndarray) -> Any:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    header = SimpleNamespace(stamp=SimpleNamespace(sec=1_700_000_000, nanosec=0), frame_id="camera")
    return SimpleNamespace(header=header, format="png", data=np.frombuffer(stream.getvalue(), np.uint8))


def test_a_model_without_a_pair_classifier_answers_by_similarity(
    descriptor_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "db").mkdir()
    lines = ["name,x,y,z,qx,qy,qz,qw"]
    for place in range(3):
        Image.fromarray(draw_scene(place, 0, (96, 128))).save(tmp_path / "db" / f"p{place}.png")
        lines.append(f"p{place}.png,{place},0,0,0,0,0,1")
    (tmp_path / "poses.csv").write_text("\n".join(lines))
    build_map(tmp_path / "db", tmp_path / "map", model=descriptor_bundle, poses=tmp_path / "poses.csv")
    outlet = _Outlet()
    with caplog.at_level("INFO"):
        localizer = Localizer(Parameters(str(tmp_path / "map")), "node", ["/image"], outlet, None, time.time_ns)
        try:
            localizer.cameras.offer(0, compressed(draw_scene(1, 1, (96, 128))))
            assert outlet.answered.wait(60)
        finally:
            localizer.close()
        localizer.check()
    assert DESCRIPTOR_ALONE in caplog.text
    (candidates,) = (message for topic, message in outlet.messages if topic == CANDIDATES)
    assert candidates.fields["poses"][0].fields["position"].fields["x"] == 1.0
    (told,) = (message for topic, message in outlet.messages if topic == DIAGNOSTICS)
    (status,) = told.fields["status"]
    values = {each.fields["key"]: each.fields["value"] for each in status.fields["values"]}
    assert (values["candidate_1.name"], values["candidate_1.stage"]) == ("p1.png", "descriptor")
    assert float(values["candidate_1.similarity"]) > float(values["candidate_2.similarity"])
    assert not any(key.endswith(".score") for key in values)
    assert (values["compared"], values["accepted"]) == ("0", "unknown")
