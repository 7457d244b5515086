"""A pose graph has the map's poses and the loops that have an information matrix, in numbers that other tools read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy.spatial.transform import Rotation

from pairvpr.cli.main import main
from pairvpr.errors import MapError
from pairvpr.runtime.calibrated.acceptance import FRAMES, Acceptance, ScoreSetup
from pairvpr.runtime.features import Features
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Map, MapWriter
from pairvpr.runtime.mapping.closure import Closure, Threshold
from pairvpr.runtime.mapping.loop_closing import seen_from
from pairvpr.runtime.mapping.pose_graph import write_tum

FEATURES = Features(np.full((1, 4), 0.5, np.float32), np.zeros((1, 2, 3), np.float16))[0]
TURN = tuple(Rotation.from_euler("z", 30, degrees=True).as_quat())
POSES = {
    "a": Pose(1.0, 2.0, 3.0, (0.0, 0.0, 0.0, 1.0)),
    "b": Pose(0.1, 2.0, 3.0),
    "c": Pose(4.0, 5.0, 6.0, TURN),
    "d": None,
    "e": Pose(1.5, 2.5, 3.5, TURN),
}
ACCEPTANCE = Acceptance(
    identity="a" * 64, engine="e", setup=ScoreSetup("", 20, None), threshold=1.0, slope=1.0, bias=0.0, radius=2.0,
    precision=0.9, delta=0.1, fitted=1, checked=1, right=1, outside=0, expected=1.0, accepted=1, accepted_right=1,
    traverses=(), own=0,
)  # fmt: skip
CALIBRATED = Threshold(1.0, ACCEPTANCE, "other/map")


def make_map(path: Path, poses: dict[str, Pose | None], times: bool = True) -> Path:
    def install(folder: Path) -> None:
        (folder / "bundle.json").write_text("{}")

    with MapWriter.open(path, identity="a" * 64, descriptor_dim=4, token_shape=(2, 3), install_model=install) as writer:
        for number, (name, pose) in enumerate(poses.items()):
            stamp = 100.5 - number if times else None
            gps = None if pose else Gps(48, 11)
            writer.add(name=name, source="/drive", features=FEATURES, timestamp=stamp, pose=pose, gps=gps)
    return path


def loop(name: str, earlier: str, threshold: Threshold = CALIBRATED) -> Closure:
    return Closure(name, 1.0, earlier, 0.0, 5.0, 0.5, threshold, seen_from(POSES[earlier], POSES[name]))


def graph(db: Path, out: Path, *options: object) -> Result:
    return CliRunner().invoke(main, ["map", "graph", "--db", str(db), "--out", str(out), *map(str, options)])


def test_loops_have_what_the_calibration_says() -> None:
    edge = json.loads(loop("e", "c").to_json())
    assert edge["kind"] == "loop"
    assert edge["relative_pose"] == {"x": 0, "y": 0, "z": 0, "q": [0, 0, 0, 1]}
    matrix = np.zeros((6, 6))
    matrix[np.triu_indices(6)] = edge["information"]
    deviations = np.diag(matrix) ** -0.5
    assert np.count_nonzero(matrix) == 6
    assert deviations == pytest.approx([0.932] * 3 + [0.35] * 3, abs=1e-3)
    # The share of the plane within the radius is the promised one.
    assert 1 - np.exp(-(2.0**2) / (2 * deviations[0] ** 2)) == pytest.approx(0.9)


@pytest.mark.parametrize(
    "threshold", [Threshold(1.0), Threshold(1.0, dataclasses.replace(ACCEPTANCE, unit=FRAMES), "other/map")]
)
def test_without_metres_a_loop_is_a_candidate(threshold: Threshold) -> None:
    edge = json.loads(loop("e", "c", threshold).to_json())
    assert edge["kind"] == "loop candidate"
    assert edge["relative_pose"] is edge["information"] is None
    assert edge["by_poses"] is not None


def test_the_relative_pose_by_the_maps_poses() -> None:
    edge = json.loads(loop("e", "c").to_json())
    back = Rotation.from_quat(TURN).inv()
    expected = back.apply([-2.5, -2.5, -2.5])
    assert [edge["by_poses"][axis] for axis in "xyz"] == pytest.approx(list(expected))
    assert edge["by_poses"]["q"] == pytest.approx([0, 0, 0, 1])
    assert "frame" not in edge["by_poses"]
    for name in "bd":  # no orientation, no pose
        assert json.loads(loop(name, "c").to_json())["by_poses"] is None
    assert seen_from(POSES["a"], dataclasses.replace(POSES["c"], frame="odom")) is None


def test_a_graph_for_g2o(tmp_path: Path) -> None:
    db, out, edges = make_map(tmp_path / "map", POSES), tmp_path / "graph.g2o", tmp_path / "edges.jsonl"
    closures = [loop("e", "a"), loop("e", "c", Threshold(1.0)), loop("d", "a"), loop("e", "a")]
    edges.write_text("".join(f"{closure.to_json()}\n" for closure in closures))
    done = graph(db, out, "--loops", edges)
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        f"{out}: 3 poses, 2 loops, 1 loop candidates without a relative pose left out, 1 loops of pictures without a "
        "pose left out, 2 pictures left out\n"
    )
    lines = [line.split() for line in out.read_text().splitlines()]
    vertices = {int(line[1]): [float(each) for each in line[2:]] for line in lines if line[0] == "VERTEX_SE3:QUAT"}
    assert vertices == {
        number: [pose.x, pose.y, pose.z, *pose.q]
        for number, pose in enumerate(POSES.values())
        if pose is not None and pose.q is not None
    }
    found = [line[1:] for line in lines if line[0] == "EDGE_SE3:QUAT"]
    assert len(lines) == 5
    assert len(found) == 2
    first, second, *numbers = found[0]
    assert (first, second, len(numbers)) == ("0", "4", 7 + 21)
    assert [float(each) for each in numbers[:7]] == [0, 0, 0, 0, 0, 0, 1]
    # A small turn costs as much by its quaternion as it does in radians.
    matrix = np.zeros((6, 6))
    matrix[np.triu_indices(6)] = [float(each) for each in numbers[7:]]
    turn = np.array([0.01, -0.02, 0.03])
    error = Rotation.from_rotvec(turn).as_quat()[:3]
    assert error @ matrix[3:, 3:] @ error == pytest.approx(turn @ turn / 0.35**2, rel=1e-3)
    assert matrix[0, 0] == pytest.approx(0.932**-2, rel=2e-3)


def test_poses_for_tum(tmp_path: Path) -> None:
    db, out = make_map(tmp_path / "map", POSES), tmp_path / "poses.tum"
    assert graph(db, out).stdout == f"{out}: 3 poses, 2 pictures left out\n"
    rows = [[float(each) for each in line.split()] for line in out.read_text().splitlines()]
    assert [row[0] for row in rows] == [96.5, 98.5, 100.5]  # by time
    assert rows[0][1:] == [1.5, 2.5, 3.5, *TURN]


def test_maps_without_poses_are_refused(tmp_path: Path) -> None:
    nothing = make_map(tmp_path / "nothing", {"b": POSES["b"], "d": None})
    for out in (tmp_path / "x.g2o", tmp_path / "x.tum"):
        done = graph(nothing, out)
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
        assert "no picture has a pose with an orientation" in done.stderr
        assert not out.exists()
    timeless = make_map(tmp_path / "timeless", {"a": POSES["a"]}, times=False)
    frames = make_map(tmp_path / "frames", {"a": POSES["a"], "c": dataclasses.replace(POSES["c"], frame="odom")})
    for db, message in ((timeless, "which TUM files need"), (frames, "in the frames map, odom, not in one")):
        with Map.open(db) as map_, pytest.raises(MapError, match=message):
            write_tum(map_, tmp_path / "x.tum")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        '{"from": 1, "to": "a"}',
        '{"from": "a", "to": "e", "relative_pose": {"x": 0}, "information": [1]}',
        "[1]",
    ],
)
def test_damaged_loops_are_refused(tmp_path: Path, line: str) -> None:
    db, edges = make_map(tmp_path / "map", POSES), tmp_path / "edges.jsonl"
    edges.write_text(f"{loop('e', 'a').to_json()}\n{line}\n")
    done = graph(db, tmp_path / "graph.g2o", "--loops", edges)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "edges.jsonl, line 2: is no loop" in done.stderr
    assert not (tmp_path / "graph.g2o").exists()


def test_options_of_a_graph(tmp_path: Path) -> None:
    db = make_map(tmp_path / "map", POSES)
    for out, options, message in (
        ("graph.txt", (), "ends in .g2o or .tum"),
        ("poses.tum", ("--loops", tmp_path / "edges.jsonl"), "--loops needs a .g2o file"),
        ("graph.g2o", ("--loops", tmp_path / "none.jsonl"), "none.jsonl: cannot be read"),
        ("none/graph.g2o", (), "cannot be written"),
    ):
        done = graph(db, tmp_path / out, *options)
        assert (done.exit_code, message in done.stderr) == (2, True), done.output
