"""EuRoC camera folders, from trees of the published layout that the tests write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr.cli.main import main as pairvpr
from pairvpr.cli.run import main as pairvpr_run
from pairvpr.errors import SourceError
from pairvpr.runtime.sources import open_source
from pairvpr.runtime.sources.euroc import EurocSource
from tests.scenes import draw_scene

START = 1403636579763555584  # of MH_01_easy
STEP = 50_000_000


def write_tree(root: Path, frames: int = 6, truth: bool = True) -> Path:
    """A sequence at 20 Hz that drives along x at 2 m/s; ground truth at 200 Hz from its second frame on."""
    cam = root / "mav0" / "cam0"
    (cam / "data").mkdir(parents=True)
    rows = ["#timestamp [ns],filename"]
    for i in range(frames):
        stamp = START + i * STEP
        Image.fromarray(draw_scene(i, 0, (96, 128))).convert("L").save(cam / "data" / f"{stamp}.png")
        rows.append(f"{stamp},{stamp}.png")
    (cam / "data.csv").write_text("\r\n".join(rows) + "\r\n")
    if truth:
        folder = root / "mav0" / "state_groundtruth_estimate0"
        folder.mkdir()
        lines = ["#timestamp, p_RS_R_x [m], p_RS_R_y [m], p_RS_R_z [m], q_RS_w [], q_RS_x [], q_RS_y [], q_RS_z []"]
        for i in range(9, (frames - 1) * 10 + 12):
            stamp = START + i * STEP // 10 + 1_000_000
            lines.append(f"{stamp},{(stamp - START) * 2e-9},4,0.5,1,0,0,0,0.1,0.2,0.3,0,0,0,0,0,0")
        (folder / "data.csv").write_text("\n".join(lines))
    return cam


def test_frames_with_stamps_and_poses(tmp_path: Path) -> None:
    cam = write_tree(tmp_path)
    with open_source(str(cam)) as source:
        assert isinstance(source, EurocSource)
        assert (source.live, source.single, source.length) == (False, False, 6)
        frames = list(source)
    assert [frame.name for frame in frames] == [f"data/{START + i * STEP}.png" for i in range(6)] == source.names
    assert [frame.timestamp for frame in frames] == pytest.approx([(START + i * STEP) / 1e9 for i in range(6)], abs=0)
    assert {frame.picture.mode for frame in frames} == {"RGB"}
    assert frames[0].pose is None  # before the first pose
    for i, frame in enumerate(frames[1:], start=1):
        assert (frame.pose.x, frame.pose.y) == (pytest.approx(0.1 * i, abs=1e-6), 4)
        assert frame.pose.q == (0, 0, 0, 1)


def test_the_layout_of_tum_vi_and_a_table_without_a_comment_sign(tmp_path: Path) -> None:
    cam = write_tree(tmp_path)
    (cam.parent / "state_groundtruth_estimate0").rename(cam.parent / "mocap0")
    (cam / "data.csv").write_text((cam / "data.csv").read_text().lstrip("#"))
    with open_source(str(cam)) as source:
        assert [frame.pose is not None for frame in source] == [False, True, True, True, True, True]


def test_the_folders_above_a_camera(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cam = write_tree(tmp_path)
    for folder in (cam.parent, tmp_path):
        with open_source(str(folder)) as source:
            assert (source.origin, source.length) == (str(cam), 6)
    assert not caplog.text
    (cam.parent / "cam1").mkdir()
    (cam.parent / "cam1" / "data.csv").touch()
    with open_source(str(tmp_path)) as source:
        assert source.origin == str(cam)
    assert "the pictures of cam0 are read; give" in caplog.text


def test_a_map_with_poses_and_a_query(tmp_path: Path) -> None:
    cam, db = write_tree(tmp_path), tmp_path / "map"
    built = CliRunner().invoke(pairvpr, ["map", "build", str(cam), "--db", str(db)])
    assert built.exit_code == 0, built.stderr
    assert "6 pictures added, 5 with a place" in built.stdout
    listed = CliRunner().invoke(pairvpr, ["map", "list", "--db", str(db), "--format", "jsonl"]).stdout
    records = [json.loads(line) for line in listed.splitlines()]
    assert records[2]["pose"]["x"] == pytest.approx(0.2)
    assert records[2]["timestamp"] == (START + 2 * STEP) / 1e9
    answered = CliRunner().invoke(pairvpr_run, ["--db", str(db), "--query", str(cam), "--format", "jsonl"])
    lines = [json.loads(line) for line in answered.stdout.splitlines()]
    assert [line["query"] for line in lines] == [record["name"] for record in records]
    assert lines[4]["timestamp"] == records[4]["timestamp"]


def test_a_pose_file_comes_before_the_ground_truth(tmp_path: Path) -> None:
    cam, db, poses = write_tree(tmp_path), tmp_path / "map", tmp_path / "slam.txt"
    poses.write_text(f"{(START + 2 * STEP) / 1e9:.9f} 7 8 9 0 0 0 1\n")
    built = CliRunner().invoke(pairvpr, ["map", "build", str(cam), "--db", str(db), "--poses", str(poses)])
    assert built.exit_code == 0, built.stderr
    listed = CliRunner().invoke(pairvpr, ["map", "list", "--db", str(db), "--format", "jsonl"]).stdout
    found = [json.loads(line)["pose"] for line in listed.splitlines()]
    assert [pose and pose["y"] for pose in found] == [None, 8, 8, 8, 4, 4]  # 50 ms apart still counts


def test_without_ground_truth_and_with_a_picture_that_is_gone(tmp_path: Path) -> None:
    cam = write_tree(tmp_path, truth=False)
    (cam / "data" / f"{START + STEP}.png").unlink()
    frames = list(open_source(str(cam)))
    assert [frame.error is None for frame in frames] == [True, False, True, True, True, True]
    assert "there is no picture" in frames[1].error
    assert {frame.pose for frame in frames} == {None}


def test_a_linked_camera_folder_finds_its_ground_truth(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write_tree(tmp_path))
    assert list(open_source(str(tmp_path / "link")))[1].pose is not None


def test_a_folder_with_another_table_is_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("name,x\n")
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.png")
    assert [frame.name for frame in open_source(str(tmp_path))] == ["a.png"]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("#timestamp [ns],filename\n", "lists no pictures"),
        ("12.5,a.png\n", r"data\.csv, line 1: '12\.5' is not a time stamp in nanoseconds"),
        ("#t\n\n1403636579763555584\n", r"data\.csv, line 3: 1 fields, fewer than the 2"),
        ("1,\n", "'' is not a file name of a picture"),
        ("1,../a.png\n", "is not a file name of a picture"),
        ("1,a.png\n2,a.png\n", "line 2: a.png is in the table twice"),
    ],
)
def test_tables_that_are_malformed(tmp_path: Path, table: str, told: str) -> None:
    cam = write_tree(tmp_path)
    (cam / "data.csv").write_text(table)
    with pytest.raises(SourceError, match=told):
        open_source(str(cam))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("1,2,3\n", "3 fields, fewer than the 8"),
        ("1,1,2,3,0,0,0,0\n", "the quaternion is zero"),
        ("1,1,2,x,1,0,0,0\n", "'x' is not a number"),
        ("1,1,2,nan,1,0,0,0\n", "nan is not a finite number"),
    ],
)
def test_ground_truth_that_is_malformed(tmp_path: Path, line: str, told: str) -> None:
    cam = write_tree(tmp_path)
    table = cam.parent / "state_groundtruth_estimate0" / "data.csv"
    table.write_text(line)
    with pytest.raises(SourceError, match=rf"estimate0/data\.csv, line 1: {told}"):
        open_source(str(cam))
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="is not a text file"):
        open_source(str(cam))
