"""Several cameras at one moment are one query: sources read together, answers fused, poses of the robot's base."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pairvpr.cli.run import main
from pairvpr.errors import SourceError
from pairvpr.runtime import Frame, PlaceRecognizer, Pose, Prior, build_map
from pairvpr.runtime.geometry.transforms import Transform, parse_transforms
from pairvpr.runtime.sources import SourceOptions
from pairvpr.runtime.sources.live import LiveSource
from pairvpr.runtime.sources.rig import RigSource, open_rig
from tests.scenes import draw_scene

PLACES, SIZE = 8, (96, 128)
AHEAD = Transform.of((0, 0, 0), (0, 0, 0, 1))
BACK = Transform.of((-0.5, 0, 0), (0, 0, 1, 0))
UNKNOWN = 50  # number of the first scene that the map does not have


def scene(place: int, visit: int = 1) -> Image.Image:
    return Image.fromarray(draw_scene(place, visit, SIZE))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map of eight places a metre apart, and a drive whose back camera alone sees them."""
    home = tmp_path_factory.mktemp("home")
    lines = ["name,x,y,z,qx,qy,qz,qw"]
    for folder in ("map_pictures", "front", "back"):
        (home / folder).mkdir()
    for place in range(PLACES):
        scene(place, 0).save(home / "map_pictures" / f"p{place}.png")
        lines.append(f"p{place}.png,{place},0,0,0,0,0,1")
    for moment in range(4):
        scene(UNKNOWN + moment).save(home / "front" / f"{moment}.png")
        scene(moment + 2).save(home / "back" / f"{moment}.png")
    (home / "poses.csv").write_text("\n".join(lines))
    build_map(home / "map_pictures", home / "map", poses=home / "poses.csv")
    return home


def run(home: Path, *options: str | Path) -> Result:
    return CliRunner().invoke(main, ["--db", str(home / "map"), "--format", "jsonl", *map(str, options)])


def rig(home: Path) -> list[str | Path]:
    return ["--query", home / "front", "--query", home / "back"]


def test_cameras_of_one_moment_are_one_query(home: Path) -> None:
    result = run(home, *rig(home))
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["query"] for line in lines] == [f"back/{moment}.png" for moment in range(4)]
    assert [line["best"]["name"] for line in lines] == [f"p{moment + 2}.png" for moment in range(4)]
    for line in lines:
        assert line["camera"] == 1
        assert [each["query"].partition("/")[0] for each in line["cameras"]] == ["front", "back"]
        assert line["cameras"][1]["best"] == line["best"]
        assert line["cameras"][0]["best"]["score"] < line["best"]["score"]


def test_poses_of_cameras_give_the_pose_of_the_base(home: Path) -> None:
    """The back camera, half a metre behind the base, sees the view of the first camera at x = 2."""
    result = run(home, *rig(home), "--camera-poses", "0,0,0,0,0,0,1; -0.5,0,0,0,0,1,0")
    assert result.exit_code == 0, result.output
    pose = json.loads(result.stdout.splitlines()[0])["best"]["pose"]
    assert (pose["x"], pose["y"]) == pytest.approx((1.5, 0))
    assert np.abs(pose["q"]) == pytest.approx([0, 0, 1, 0])
    with PlaceRecognizer.open(home / "map") as recognizer:
        answer = recognizer.recognize_rig([scene(UNKNOWN), scene(2)], mounts=[AHEAD, BACK])
        assert answer.best.pose == Pose(pose["x"], pose["y"], pose["z"], tuple(pose["q"]))
        assert answer.camera == 1
        alone = recognizer.recognize(scene(2))
        assert answer.cameras[1].best.score == pytest.approx(alone.best.score, abs=1e-5)


def test_a_prior_of_the_base_is_moved_to_each_camera(home: Path) -> None:
    """The robot drives backwards at x = 1.5. Its back camera sees the way ahead of the map's drive, at x = 2."""
    prior = Prior(Pose(1.5, 0, 0, (0, 0, 1, 0)), radius=0.6, turn=20)
    with PlaceRecognizer.open(home / "map") as recognizer:
        answer = recognizer.recognize_rig([scene(UNKNOWN), scene(2)], prior, [AHEAD, BACK])
        assert answer.cameras[0].error is not None
        assert [match.name for match in answer.cameras[1].matches] == ["p2.png"]
        assert answer.camera == 1
        unmounted = recognizer.recognize_rig([scene(UNKNOWN), scene(2)], prior)
        assert [each.error is None for each in unmounted.cameras] == [False, False]
        without_heading = recognizer.recognize_rig([scene(UNKNOWN), scene(2)], Prior(Pose(1.5, 0, 0), 0.6))
        assert [len(each.matches) for each in without_heading.cameras] == [2, 2]


def test_camera_poses_without_effect_are_told(home: Path, tmp_path: Path) -> None:
    alone = run(home, "--query", home / "back", "--camera-poses", "0,0,0,0,0,0,1")
    assert alone.exit_code == 0, alone.output
    assert "--camera-poses has no effect: there is one camera" in alone.stderr
    assert "--camera-poses" not in run(home, *rig(home), "--camera-poses", "0,0,0,0,0,0,1; 0,0,0,0,0,1,0").stderr
    build_map(home / "map_pictures", tmp_path / "map")
    without = run(tmp_path, *rig(home), "--camera-poses", "0,0,0,0,0,0,1; 0,0,0,0,0,1,0")
    assert without.exit_code == 0, without.output
    assert f"--camera-poses has no effect: {tmp_path / 'map'} has no poses with orientations" in without.stderr


def test_files_of_one_name_are_told_apart(home: Path) -> None:
    with PlaceRecognizer.open(home / "map") as recognizer:
        alike = recognizer.recognize_rig([home / "front" / "1.png", home / "back" / "1.png", None])
        other = recognizer.recognize_rig([home / "front" / "1.png", home / "back" / "2.png"])
    assert [each.query for each in alike.cameras] == [f"{home}/front/1.png", f"{home}/back/1.png", "camera 2"]
    assert [each.query for each in other.cameras] == ["1.png", "2.png"]


def test_a_camera_without_a_picture_leaves_the_answer_to_the_others(home: Path, tmp_path: Path) -> None:
    with PlaceRecognizer.open(home / "map") as recognizer:
        answer = recognizer.recognize_rig([None, scene(3)])
        assert (answer.best.name, answer.camera) == ("p3.png", 1)
        assert answer.cameras[0].error == "camera 0 has no picture at this moment"
        assert recognizer.recognize_rig([None]).error == answer.cameras[0].error
        for pictures, mounts in (([], []), ([scene(3)], [AHEAD, BACK])):
            with pytest.raises(ValueError, match="give one of each for each camera"):
                recognizer.recognize_rig(pictures, mounts=mounts)
    (tmp_path / "front").mkdir()
    for moment in range(4):
        (tmp_path / "front" / f"{moment}.png").write_bytes(b"broken")
    result = run(home, "--query", tmp_path / "front", "--query", home / "back")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["error"] for line in result.stdout.splitlines()] == [None] * 4
    assert "4 of 8 pictures could not be read" in result.stderr


def test_a_budget_is_shared_by_the_cameras(home: Path) -> None:
    with PlaceRecognizer.open(home / "map", budget_ms=1e-3) as recognizer:
        answer = recognizer.recognize_rig([scene(1), scene(2)])
    assert [each.compared for each in answer.cameras] == [0, 0]
    with PlaceRecognizer.open(home / "map", budget_ms=1e6) as recognizer:
        answer = recognizer.recognize_rig([scene(1), scene(2)])
    assert [each.compared for each in answer.cameras] == [PLACES, PLACES]
    assert answer.timings["total"] == pytest.approx(sum(each.timings["total"] for each in answer.cameras))


def test_a_rig_is_tracked(home: Path) -> None:
    lines = [json.loads(line) for line in run(home, *rig(home), "--track").stdout.splitlines()]
    assert [line["sequence"]["name"] for line in lines[1:]] == ["p3.png", "p4.png", "p5.png"]


@pytest.mark.parametrize(
    ("second", "options", "message"),
    [
        ("short", [], "front has 4 pictures and "),
        ("short", [], "(only one of them has 3.png): a rig needs a picture of each camera at each moment"),
        ("back", ["--camera-poses", "0,0,0,0,0,0,1"], "--camera-poses has 1 poses for 2 cameras: give one for each"),
        ("back", ["--camera-poses", "0,0,0;1"], "--camera-poses has '0,0,0': write X,Y,Z,QX,QY,QZ,QW"),
        ("nothing", [], "is not a file, folder, camera or stream"),
    ],
)
def test_cameras_that_do_not_belong_together_are_refused(
    home: Path, tmp_path: Path, second: str, options: list[str], message: str
) -> None:
    (tmp_path / "short").mkdir()
    for moment in range(3):
        scene(moment).save(tmp_path / "short" / f"{moment}.png")
    other = home / "back" if second == "back" else tmp_path / second
    result = run(home, "--query", home / "front", "--query", other, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def write_bag(folder: Path) -> Path:
    """Five front pictures at 10 Hz. The back camera is faster and a little late, and fails for a while."""
    from tests.runtime.sources.bag_writer import BagWriter, stamp

    with BagWriter(folder, "mcap") as bag:
        for i in range(5):
            bag.image("/front", stamp(i), draw_scene(UNKNOWN + i, 1, SIZE))
            for late in (-40_000_000, 10_000_000) if i not in (2, 3) else ():
                bag.image("/back", stamp(i) + late, draw_scene(i if late > 0 else UNKNOWN, 1, SIZE))
    return bag.path


def test_topics_of_a_bag_are_paired_by_time(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags")
    bag = write_bag(tmp_path)
    with open_rig([str(bag)], SourceOptions(topic="/front,/back")) as source:
        moments = list(source)
    assert len(moments) == 5
    apart = [None if b.error else round(1e3 * (b.timestamp - a.timestamp)) for a, b in (m.cameras for m in moments)]
    assert apart == [10, 10, None, None, 10]
    assert [m.cameras[1].error for m in moments][2] == "/back has no picture at this moment"
    result = run(home, "--query", bag, "--topic", "/front,/back")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [lines[i]["best"]["name"] for i in (0, 1, 4)] == ["p0.png", "p1.png", "p4.png"]
    assert [line["camera"] for line in lines] == [1, 1, 0, 0, 1]
    refused = run(home, *rig(home), "--topic", "/front,/back")
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert "--topic /front,/back names several cameras: give one --query with it, a bag" in refused.stderr


def test_one_camera_is_no_rig(home: Path) -> None:
    with open_rig([str(home / "front")]) as source:
        assert [frame.name for frame in source] == [f"{moment}.png" for moment in range(4)]


def test_cameras_of_one_name_are_told_apart(home: Path) -> None:
    with open_rig([str(home / "front"), str(home / "back" / ".." / "front")]) as source:
        (first, *_) = source
    assert [frame.name for frame in first.cameras] == [
        f"{home}/front/0.png",
        f"{home}/back/../front/0.png",
    ]


class _Shot:
    def as_frame(self, name: str, timestamp: float | None) -> Frame:
        return Frame(name, timestamp, scene(0), None, 0.0)


class _Camera:
    """Sends a picture for each permit, until it is unplugged."""

    def __init__(self) -> None:
        self.permits, self.unplugged = threading.Semaphore(0), False

    def shots(self) -> Iterator[_Shot]:
        while not self.unplugged:
            if self.permits.acquire(timeout=0.05):
                yield _Shot()

    def close(self) -> None:
        pass


def test_live_cameras_answer_without_the_one_that_is_silent() -> None:
    cameras = [_Camera(), _Camera()]
    sources = [
        LiveSource(f"cam{i}", lambda camera=camera: camera, endless=False)  # type: ignore[misc]
        for i, camera in enumerate(cameras)
    ]
    with RigSource(sources, ["cam0", "cam1"], None) as source:
        moments = iter(source)
        for camera in cameras:
            camera.permits.release()
        assert [frame.picture is None for frame in next(moments).cameras] == [False, False]
        cameras[1].permits.release()
        silent, other = next(moments).cameras
        assert (silent.picture, silent.error) == (None, "cam0 has no picture at this moment")
        assert other.picture is not None
        for camera in cameras:
            camera.unplugged = True
        assert next(moments, None) is None


def test_a_live_camera_beside_a_recording_is_refused(home: Path) -> None:
    live: Any = SimpleNamespace(live=True, single=False, length=None, names=None, origin="cam0")
    with (
        open_rig([str(home / "front")]) as recorded,
        pytest.raises(SourceError, match="cam0 is live and front a recording"),
    ):
        RigSource([live, recorded], ["cam0", "front"], None)


def test_transforms_are_read_from_text() -> None:
    first, second = parse_transforms("1,2,3,0,0,0,2;0,0,0,0,0,1,1")
    assert (first.position.tolist(), first.q) == ([1, 2, 3], (0, 0, 0, 1))
    assert second.q == pytest.approx((0, 0, math.sqrt(0.5), math.sqrt(0.5)))
    for text in ("", "1,2,3", "0,0,0,0,0,0,0", "a,0,0,0,0,0,1", "nan,0,0,0,0,0,1"):
        with pytest.raises(ValueError, match="write X,Y,Z,QX,QY,QZ,QW"):
            parse_transforms(text)
