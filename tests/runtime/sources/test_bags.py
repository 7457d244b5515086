"""Bags of every kind: images, poses, and what is wrong with some."""

from __future__ import annotations

import array
import io
import json
import logging
import math
import re
import shutil
import sqlite3
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("rosbags", reason="bags need the extra pairvpr[bags]")

from pairvpr.cli.main import main as pairvpr
from pairvpr.cli.run import main as pairvpr_run
from pairvpr.errors import SourceError
from pairvpr.runtime.remarks import remark_scope
from pairvpr.runtime.sources import Frame, SourceOptions, open_source
from pairvpr.runtime.sources.base import Header
from pairvpr.runtime.sources.options import DEFAULT
from pairvpr.runtime.sources.ros_messages import ENCODINGS, decode_image, parse_frame
from tests.runtime.sources.bag_writer import KINDS, BagWriter, scene, stamp, write_drive


def frames_of(path: Path, options: SourceOptions = DEFAULT) -> list[Frame]:
    with open_source(str(path), options) as source:
        return list(source)


@pytest.mark.parametrize("kind", KINDS)
def test_images_with_stamps_and_poses(tmp_path: Path, kind: str) -> None:
    path = write_drive(tmp_path, kind)
    with open_source(str(path)) as source:
        assert (source.live, source.single, source.length) == (False, False, 5)
        frames = list(source)
        source.close()  # may be called again
    assert [frame.name for frame in frames] == [f"{path.name}/cam/image_raw#{i:06d}" for i in range(5)]
    assert [frame.timestamp for frame in frames] == [stamp(i) / 1e9 for i in range(5)]
    assert [frame.header for frame in frames] == [(stamp(i), "lens") for i in range(5)]
    for i, frame in enumerate(frames):
        assert np.array_equal(np.asarray(frame.picture), scene(i))
        assert (frame.error, frame.decode_ms > 0) == (None, True)
    assert frames[0].pose is None  # odometry begins later
    for i, frame in enumerate(frames[1:], start=1):
        assert (frame.pose.x, frame.pose.y) == (pytest.approx(i, abs=1e-5), 2)
        assert re.fullmatch(rf"odom@{re.escape(path.name)}-[0-9a-f]{{8}}", frame.pose.frame)
        assert frame.pose.q == (0, 0, 0, 1)


def test_recordings_of_one_name_have_frames_of_their_own(tmp_path: Path) -> None:
    frames = {}
    for robot, start in (("one", 0), ("two", 500)):
        (tmp_path / robot).mkdir()
        with BagWriter(tmp_path / robot, "drive.bag") as bag:
            for i in range(3):
                bag.image("/image", stamp(start + i), scene(i))
                bag.pose("nav_msgs/msg/Odometry", "/odom", stamp(start + i), i)
        frames[robot] = {frame.pose.frame for frame in frames_of(bag.path)}
    assert all(len(found) == 1 for found in frames.values())
    assert frames["one"] != frames["two"]
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert {frame.pose.frame for frame in frames_of(tmp_path / "copy" / "drive.bag")} == frames["one"]


def test_a_bag_becomes_a_map_and_a_query(tmp_path: Path) -> None:
    path, db = write_drive(tmp_path, "drive.bag"), tmp_path / "map"
    for added in (5, 0):  # going on adds nothing
        built = CliRunner().invoke(pairvpr, ["map", "build", str(path), "--db", str(db)])
        assert built.exit_code == 0, built.stderr
        assert f"{added} pictures added, {min(added, 4)} with a place, {5 - added} already there" in built.stdout
    listed = CliRunner().invoke(pairvpr, ["map", "list", "--db", str(db), "--format", "jsonl"]).stdout
    records = [json.loads(line) for line in listed.splitlines()]
    assert records[3]["pose"]["x"] == pytest.approx(3, abs=1e-5)
    assert records[3]["timestamp"] == stamp(3) / 1e9
    answered = CliRunner().invoke(pairvpr_run, ["--db", str(db), "--query", str(path), "--format", "jsonl"])
    assert answered.exit_code == 0, answered.stderr
    assert [json.loads(line)["query"] for line in answered.stdout.splitlines()] == [each["name"] for each in records]


def test_headings_and_times_of_queries_come_from_the_pose_topic(tmp_path: Path) -> None:
    """The robot turns left by 30 degrees from one picture to the next."""
    with BagWriter(tmp_path, "drive.bag") as bag:
        for i in range(5):
            half = math.radians(30 * i) / 2
            bag.image("/image", stamp(i), scene(i))
            bag.pose("Odometry", "/odom", stamp(i), float(i), q=(0, 0, math.sin(half), math.cos(half)))
    db = tmp_path / "map"
    built = CliRunner().invoke(pairvpr, ["map", "build", str(bag.path), "--db", str(db)])
    assert built.exit_code == 0, built.stderr
    command = ["--db", str(db), "--query", str(bag.path), "--format", "jsonl"]
    for options, compared in (
        (["--heading", "31"], [2, 3, 3, 3, 2]),
        (["--heading", "61", "--near", "1.5"], [2, 3, 3, 3, 2]),
        (["--heading", "61"], [3, 4, 5, 4, 3]),
        (["--hours", "0.00003"], [2, 3, 3, 3, 2]),  # 0.108 s
    ):
        answered = CliRunner().invoke(pairvpr_run, [*command, *options])
        assert (answered.exit_code, answered.stderr.count("left out for them")) == (0, 0)
        assert [json.loads(line)["compared"] for line in answered.stdout.splitlines()] == compared


def test_a_trajectory_file_belongs_to_a_bags_images(tmp_path: Path) -> None:
    path, db, poses = write_drive(tmp_path, "mcap"), tmp_path / "map", tmp_path / "slam.txt"
    poses.write_text(f"{stamp(2) / 1e9:.9f} 70 8 9 0 0 0 1\n")
    built = CliRunner().invoke(pairvpr, ["map", "build", str(path), "--db", str(db), "--poses", str(poses)])
    assert built.exit_code == 0, built.stderr
    listed = CliRunner().invoke(pairvpr, ["map", "list", "--db", str(db), "--format", "jsonl"]).stdout
    found = [json.loads(line)["pose"] for line in listed.splitlines()]
    assert [pose and round(pose["x"]) for pose in found] == [None, 1, 70, 3, 4]


@pytest.mark.parametrize("kind", ["drive.bag", "sqlite"])
@pytest.mark.parametrize("pose", ["PoseStamped", "PoseWithCovarianceStamped", "Odometry"])
def test_every_kind_of_pose(tmp_path: Path, kind: str, pose: str, caplog: pytest.LogCaptureFixture) -> None:
    with BagWriter(tmp_path, kind) as bag:
        bag.image("/image", stamp(0), scene(0))
        bag.pose(pose, "/pose", stamp(0), 7.0, frame="")
        bag.pose(pose, "/pose", stamp(0), 9.0, q=(0, 0, 0, 0))
        bag.pose(pose, "/pose", stamp(1), float("nan"))
        bag.pose(pose, "/pose", stamp(1), -1.1e12)
    (frame,) = frames_of(bag.path)
    assert (frame.pose.x, frame.pose.frame) == (7, "map")
    assert "3 of 4 poses on /pose have no fix or orientation" in caplog.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1.1e12])
def test_points_without_a_position_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: float) -> None:
    with BagWriter(tmp_path, "sqlite") as bag:
        for i, y in enumerate((2.0, bad, 4.0)):
            bag.image("/image", stamp(i), scene(i))
            inner = bag.new("geometry_msgs/msg/Point", 1.0, y, 3.0)
            bag.write("/point", bag.new("geometry_msgs/msg/PointStamped", bag.header(stamp(i), "a"), inner), stamp(i))
    assert [frame.pose and frame.pose.y for frame in frames_of(bag.path)] == [2, pytest.approx(3), 4]
    assert "1 of 3 poses on /point have no fix or orientation: left out" in caplog.text


def test_gps_fixes(tmp_path: Path) -> None:
    with BagWriter(tmp_path, "mcap") as bag:
        for i in range(3):
            bag.image("/image", stamp(5 * i), scene(i))
        bag.fix("/gps", stamp(0), 47.0)
        bag.fix("/gps", stamp(6), 0.0, status=-1)
        bag.fix("/gps", stamp(7), 91.0)
        bag.fix("/gps", stamp(8), 0.0, longitude=0.0)
        bag.fix("/gps", stamp(10), 48.0)
    frames = frames_of(bag.path)
    assert [frame.gps.latitude for frame in frames] == pytest.approx([47, 47.5, 48])
    assert (frames[0].gps.longitude, frames[0].gps.altitude, frames[0].pose) == (8.5, 400, None)


def test_poses_of_transforms_points_and_paths(tmp_path: Path) -> None:
    def transform(bag: BagWriter, i: int) -> Any:
        vector = bag.new("geometry_msgs/msg/Vector3", float(i), 2.0, 3.0)
        turn = bag.new("geometry_msgs/msg/Quaternion", 0.0, 0.0, 1.0, 0.0)
        inner = bag.new("geometry_msgs/msg/Transform", vector, turn)
        return bag.new("geometry_msgs/msg/TransformStamped", bag.header(stamp(i), "world"), "body", inner)

    def point(bag: BagWriter, i: int) -> Any:
        inner = bag.new("geometry_msgs/msg/Point", float(i), 2.0, 3.0)
        return bag.new("geometry_msgs/msg/PointStamped", bag.header(stamp(i), "world"), inner)

    def path(bag: BagWriter, i: int) -> Any:
        """Corrects the earlier poses, as SLAM does."""
        turn = bag.new("geometry_msgs/msg/Quaternion", 0.0, 0.0, 1.0, 0.0)
        poses = [
            bag.new(
                "geometry_msgs/msg/PoseStamped",
                bag.header(stamp(k), ""),
                bag.new("geometry_msgs/msg/Pose", bag.new("geometry_msgs/msg/Point", k + i - 3.0, 2.0, 3.0), turn),
            )
            for k in range(i + 1)
        ]
        return bag.new("nav_msgs/msg/Path", bag.header(stamp(i), "world"), poses)

    for make, turned in ((transform, (0, 0, 1, 0)), (point, None), (path, (0, 0, 1, 0))):
        with BagWriter(tmp_path, f"{make.__name__}_mcap") as bag:
            for i in range(4):
                bag.image("/image", stamp(i), scene(0))
                bag.write("/poses", make(bag, i), stamp(i))
        for i, frame in enumerate(frames_of(bag.path)):
            assert frame.pose is not None, make
            assert (frame.pose.x, frame.pose.y, frame.pose.z, frame.pose.q) == (i, 2, 3, turned)
            assert frame.pose.frame == "world"


def transforms(bag: BagWriter, topic: str, i: int, *edges: tuple[str, str, float, tuple[float, ...]]) -> None:
    parts = []
    for parent, child, x, turn in edges:
        vector = bag.new("geometry_msgs/msg/Vector3", x, 0.0, 0.0)
        inner = bag.new("geometry_msgs/msg/Transform", vector, bag.new("geometry_msgs/msg/Quaternion", *turn))
        parts.append(bag.new("geometry_msgs/msg/TransformStamped", bag.header(stamp(i), parent), child, inner))
    bag.write(topic, bag.new("tf2_msgs/msg/TFMessage", parts), stamp(i))


LEFT, NONE = (0.0, 0.0, 0.5**0.5, 0.5**0.5), (0.0, 0.0, 0.0, 1.0)


def test_transforms_of_tf_are_composed_down_to_the_first_branch(tmp_path: Path) -> None:
    with BagWriter(tmp_path, "mcap") as bag:
        transforms(bag, "/tf_static", 0, ("earth", "map", 100.0, NONE), ("base", "camera", 9.0, NONE))
        for i in range(3):
            bag.image("/image", stamp(i), scene(0))
            transforms(bag, "/tf", i, ("map", "odom", 10.0, LEFT), ("odom", "base", float(i), LEFT))
            transforms(bag, "/tf", i, ("base", "left_wheel", 1.0, NONE), ("base", "right_wheel", 1.0, NONE))
    for i, frame in enumerate(frames_of(bag.path)):
        assert (frame.pose.x, frame.pose.y, frame.pose.frame) == (pytest.approx(110), pytest.approx(i), "earth")
        assert frame.pose.q == pytest.approx((0, 0, 1, 0))


def test_transforms_of_tf_without_one_chain_give_no_poses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, edges, told in (
        ("two_mcap", [("a", "b", 1.0, NONE), ("c", "d", 1.0, NONE)], "not one root of its moving frames (roots: a, c)"),
        ("branch_mcap", [("a", "b", 1.0, NONE), ("a", "c", 1.0, NONE)], "several moving frames (b, c)"),
    ):
        with BagWriter(tmp_path, name) as bag:
            bag.image("/image", stamp(0), scene(0))
            transforms(bag, "/tf", 0, *edges)
        (frame,) = frames_of(bag.path)
        assert frame.pose is None
        assert told in caplog.text.replace("has not", "not")


def test_poses_are_taken_from_odometry_before_tf(tmp_path: Path) -> None:
    with BagWriter(tmp_path, "mcap") as bag:
        bag.image("/image", stamp(0), scene(0))
        bag.pose("Odometry", "/odom", stamp(0), 7.0, frame="map")
        transforms(bag, "/tf", 0, ("map", "base", 1.0, NONE))
    assert frames_of(bag.path)[0].pose.x == 7
    assert frames_of(bag.path, SourceOptions(pose_topic="/tf"))[0].pose.x == 1


def test_slow_poses_are_interpolated_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with BagWriter(tmp_path, "mcap") as bag:
        for i in range(0, 21, 5):
            bag.image("/image", stamp(i), scene(0))
        for i in (0, 10, 20):
            bag.pose("PoseStamped", "/pose", stamp(i), float(i), frame="map")
    assert [frame.pose.x for frame in frames_of(bag.path)] == pytest.approx([0, 5, 10, 15, 20])
    assert "poses on /pose are 1.0 s apart: places between are interpolated" in caplog.text


def test_images_without_a_place_have_a_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with BagWriter(tmp_path, "clock_mcap") as bag:
        bag.image("/image", stamp(0), scene(0))
        bag.pose("PoseStamped", "/pose", 10**9, 1.0)
    frames_of(bag.path)
    assert "no image has a place, because the time stamps of /image (1700000000.0 to 1700000000.0)" in caplog.text
    with BagWriter(tmp_path, "unread_mcap") as bag:
        bag.image("/image", stamp(0), scene(0))
        bag.write("/goal", bag.new("geometry_msgs/msg/Pose2D", 1.0, 2.0, 0.0), stamp(0))
    frames_of(bag.path)
    assert "these types are not read: /goal (geometry_msgs/msg/Pose2D)" in caplog.text
    with remark_scope(strict=True), pytest.raises(SourceError, match=r"not read: /goal .*; --strict stops here"):
        frames_of(bag.path)


def test_poses_before_and_after_a_clock_is_set_back_are_not_mixed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second half of the recording has the time stamps of the first once more."""
    with BagWriter(tmp_path, "mcap") as bag:
        for i in range(40):
            logged, again = stamp(i), stamp(i % 20)
            bag.image("/image", again, scene(0), logged=logged)
            point = bag.new("geometry_msgs/msg/Point", float(i), 0.0, 0.0)
            bag.write("/point", bag.new("geometry_msgs/msg/PointStamped", bag.header(again, "map"), point), logged)
    with remark_scope():
        assert [frame.pose.x for frame in frames_of(bag.path)] == list(range(40))
    assert (
        "1 jumps of the clock; times before and after a jump are not compared; first: mcap/image#000020" in caplog.text
    )
    assert "the clock of /point was set 1 times" in caplog.text


def test_bags_as_recorders_leave_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("sqlite", "mcap"):
        path = write_drive(tmp_path, kind)
        assert len(frames_of(path / "metadata.yaml")) == 5
        (path / "metadata.yaml").unlink()
        assert len(frames_of(path)) == 5
    assert "recording" not in caplog.text
    (tmp_path / "split").mkdir()
    for i in range(2):
        with BagWriter(tmp_path, f"part{i}_mcap") as bag:
            bag.image("/image", stamp(i), scene(i))
        (file,) = bag.path.glob("*.mcap")
        file.rename(tmp_path / "split" / file.name)
    assert [frame.timestamp for frame in frames_of(tmp_path / "split")] == [stamp(0) / 1e9, stamp(1) / 1e9]
    assert "split has no metadata.yaml: its 2 bag files are read as the parts of one recording" in caplog.text
    for name, told in (("a.bag.active", "rosbag reindex"), ("a.mcap.zstd", "zstd -d"), ("a.zip", "unpack it")):
        (tmp_path / name).write_bytes(bytes(100))
        with pytest.raises(SourceError, match=told):
            open_source(str(tmp_path / name))


def test_a_topic_without_messages(tmp_path: Path) -> None:
    with BagWriter(tmp_path, "mcap") as bag:
        bag.pose("Odometry", "/odom", stamp(0), 1.0)
        bag._writer.add_connection("/image", "sensor_msgs/msg/Image", typestore=bag.store)
    with pytest.raises(SourceError, match=r"no messages on /image: check that the camera ran, .* quality of service"):
        open_source(str(bag.path))


def test_topics_are_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with BagWriter(tmp_path, "mcap") as bag:
        bag.image("/left", stamp(0), scene(0))
        bag.image("/right", stamp(0), scene(1))
        bag.compressed("/depth/compressedDepth", stamp(0), b"", "16UC1; compressedDepth")
        bag.pose("Odometry", "/odom", stamp(0), 1.0)
        bag.pose("PoseStamped", "/slam", stamp(0), 5.0)
    with pytest.raises(
        SourceError, match=r"several image topics, choose .*--topic: /left \(Image\), /right \(Image\)$"
    ):
        open_source(str(bag.path))
    (frame,) = frames_of(bag.path, SourceOptions(topic="/right"))
    assert np.array_equal(np.asarray(frame.picture), scene(1))
    assert frame.pose is None
    assert "there are several pose topics: choose --pose-topic of /odom, /slam" in caplog.text
    (frame,) = frames_of(bag.path, SourceOptions("/left", "/slam"))
    assert frame.pose.x == 5
    for options, told in (
        (SourceOptions("/odom"), "--topic /odom is not a usable topic of this bag; choose one of: /left, /right"),
        (SourceOptions("/left", "/left"), "--pose-topic /left is not a usable topic .*: /odom, /slam"),
    ):
        with pytest.raises(SourceError, match=told):
            open_source(str(bag.path), options)
    with pytest.raises(SourceError, match="only bags have topics: leave out"):
        open_source(str(tmp_path), SourceOptions("/left"))


def encoded(pixels: np.ndarray, encoding: str) -> np.ndarray:
    """The picture as a camera of that encoding would send it; a plain loop where that is clearer."""
    luma = np.asarray(Image.fromarray(pixels).convert("L"))
    if encoding in ("rgb8", "bgr8", "8uc3"):
        return pixels if encoding == "rgb8" else pixels[:, :, ::-1]
    if encoding in ("rgba8", "bgra8"):
        colours = pixels if encoding == "rgba8" else pixels[:, :, ::-1]
        return np.concatenate([colours, np.full((*pixels.shape[:2], 1), 9, np.uint8)], axis=2)
    if encoding in ("mono8", "8uc1"):
        return luma[:, :, None]
    if encoding in ("mono16", "16uc1"):
        return (luma.astype("<u2") * 257)[:, :, None]
    if encoding in ("rgb16", "bgr16", "16uc3", "rgba16", "bgra16"):
        named = "bgr8" if encoding == "16uc3" else encoding.replace("16", "8")
        return encoded(pixels, named).astype("<u2") * 257
    if encoding.startswith("bayer") and encoding.endswith("16"):
        return encoded(pixels, f"{encoding[:-2]}8").astype("<u2") * 257
    if encoding.startswith("bayer"):
        out = np.zeros((*pixels.shape[:2], 1), np.uint8)
        for y in range(pixels.shape[0]):
            for x in range(pixels.shape[1]):
                out[y, x] = pixels[y, x, "rgb".index(encoding[6 + 2 * (y % 2) + x % 2])]
        return out
    red, green, blue = (pixels[:, :, i].astype(float) for i in range(3))
    y = 16 + 0.257 * red + 0.504 * green + 0.098 * blue
    u = (128 - 0.148 * red - 0.291 * green + 0.439 * blue).reshape(len(pixels), -1, 2).mean(axis=2).repeat(2, axis=1)
    v = (128 + 0.439 * red - 0.368 * green - 0.071 * blue).reshape(len(pixels), -1, 2).mean(axis=2).repeat(2, axis=1)
    colour = np.where(np.arange(pixels.shape[1]) % 2 == 0, u, v)
    return np.round(np.stack([colour, y] if encoding in ("yuv422", "uyvy") else [y, colour], axis=2)).astype(np.uint8)


SMOOTH = np.stack(np.broadcast_arrays(np.arange(64) * 3, 20 + np.arange(48)[:, None] * 4, 90), axis=2).astype(np.uint8)


@pytest.mark.parametrize("encoding", [each for each in ENCODINGS if not each.startswith(("nv", "32", "64"))])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    smooth = SMOOTH
    with BagWriter(tmp_path, "drive.bag") as bag:
        bag.image("/image", stamp(0), np.ascontiguousarray(encoded(smooth, encoding)), encoding)
    (frame,) = frames_of(bag.path)
    expected = smooth
    if encoding in ("mono8", "mono16", "16uc1", "8uc1"):
        expected = np.asarray(Image.fromarray(smooth).convert("L"))[:, :, None].repeat(3, axis=2)
    found = np.asarray(frame.picture)
    assert found.shape == expected.shape
    off = np.abs(found.astype(int) - expected)
    assert off.max() <= (4 if encoding.startswith(("bayer", "y", "u")) else 0)


@pytest.mark.parametrize("encoding", ["nv12", "nv21", "nv24"])
@pytest.mark.parametrize("padding", [0, 6])
def test_planes_of_luma_and_colour(encoding: str, padding: int) -> None:
    height, width = SMOOTH.shape[:2]
    red, green, blue = (SMOOTH[:, :, i].astype(float) for i in range(3))
    y = 16 + 0.257 * red + 0.504 * green + 0.098 * blue
    u = 128 - 0.148 * red - 0.291 * green + 0.439 * blue
    v = 128 + 0.439 * red - 0.368 * green - 0.071 * blue
    if encoding != "nv24":
        u, v = (each.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for each in (u, v))
    colours = np.stack([v, u] if encoding == "nv21" else [u, v], axis=2).reshape(len(u), -1)
    step = width + padding
    luma_rows = np.pad(y, ((0, 0), (0, padding)))
    colour_rows = np.pad(colours, ((0, 0), (0, step * colours.shape[1] // width - colours.shape[1])))
    data = np.round(np.concatenate([luma_rows.ravel(), colour_rows.ravel()])).astype(np.uint8)
    message = SimpleNamespace(encoding=encoding, height=height, width=width, step=step, is_bigendian=0, data=data)
    found = np.asarray(decode_image(message)).astype(int)
    assert np.abs(found - SMOOTH).max() <= 5


@pytest.mark.parametrize("encoding", ["uyvy", "nv12", "nv24", "mono16", "rgb16"])
def test_bands_of_rows_do_not_show(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    height, width = 46, 32
    data = random.integers(0, 256, height * width * 6, np.uint8)
    step = width * {"uyvy": 2, "nv12": 1, "nv24": 1, "mono16": 2, "rgb16": 6}[encoding]
    message = SimpleNamespace(encoding=encoding, height=height, width=width, step=step, is_bigendian=0, data=data)
    whole = np.asarray(decode_image(message))
    monkeypatch.setattr("pairvpr.runtime.bit_depth.BAND", 10)
    monkeypatch.setattr("pairvpr.runtime.sources.ros_messages.BAND", 10)
    assert np.array_equal(np.asarray(decode_image(message)), whole)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("height", "width"), [(0, 0), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1), (15, 64)])
def test_sizes_that_are_no_picture(encoding: str, height: int, width: int) -> None:
    data = array.array("B")
    message = SimpleNamespace(encoding=encoding, height=height, width=width, step=0, is_bigendian=0, data=data)
    with pytest.raises(SourceError, match="a picture needs 16 on each side"):
        decode_image(message)


def test_any_fault_in_a_message_is_its_frames_error() -> None:
    broken = SimpleNamespace(encoding=7, data=None)
    frame = parse_frame(broken, "image#000000", Header(0, ""))
    assert frame.picture is None
    assert frame.error is not None
    assert frame.error.startswith("image#000000 cannot be read (")


@pytest.mark.parametrize(("encoding", "size"), [("rgb8", 3), ("bgr8", 3), ("rgba8", 4), ("bgra8", 4), ("mono8", 1)])
def test_images_are_unpacked_from_the_messages_buffer(encoding: str, size: int) -> None:
    """Without a copy of it, as rclpy gives it. Pillow's own memory is not traced."""
    height, width = 1080, 1920
    data = array.array("B", bytes(height * width * size))
    message = SimpleNamespace(
        encoding=encoding, height=height, width=width, step=width * size, is_bigendian=0, data=data
    )
    tracemalloc.start()
    try:
        assert decode_image(message).size == (width, height)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(data) / 10


def test_padded_rows_and_big_endian_values() -> None:
    values = (np.arange(20 * 30).reshape(20, 30) * 100).astype(">u2")
    rows = np.zeros((20, 64), np.uint8)
    rows[:, :60] = values.view(np.uint8)
    message = SimpleNamespace(encoding="mono16", height=20, width=30, step=64, is_bigendian=1, data=rows.ravel())
    assert np.array_equal(np.asarray(decode_image(message))[:, :, 0], (values.astype(int) + 128) // 257)


def test_zeros_before_a_compressed_image_are_passed_over() -> None:
    stream = io.BytesIO()
    Image.fromarray(scene(0)).save(stream, "png")
    message = SimpleNamespace(format="png", data=bytes(16) + stream.getvalue())
    assert np.array_equal(np.asarray(decode_image(message)), scene(0))


@pytest.mark.parametrize("form", ["jpeg", "png", "tiff"])
def test_compressed_images(tmp_path: Path, form: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(scene(0)).save(stream, form)
    with BagWriter(tmp_path, "sqlite") as bag:
        bag.compressed("/image/compressed", stamp(0), stream.getvalue(), form)
        bag.compressed("/image/compressed", stamp(1), stream.getvalue()[:500], form)
        bag.compressed("/image/compressed", stamp(2), b"no picture", form)
    first, cut, none = frames_of(bag.path)
    assert np.array_equal(np.asarray(first.picture), np.asarray(Image.open(stream)))
    assert "sqlite/image/compressed#000001: its JPEG, PNG, TIFF or WebP data is" in cut.error
    assert "sqlite/image/compressed#000002: its JPEG, PNG, TIFF or WebP data is not a picture" in none.error


@pytest.mark.parametrize(("encoding", "kind"), [("32FC1", "f4"), ("64FC1", "f8")])
@pytest.mark.parametrize("big", [0, 1])
def test_images_of_floats_are_scaled_by_the_range_they_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoding: str, kind: str, big: int
) -> None:
    """As distances in metres, with holes, or temperatures."""
    grey = scene(0)[:, :, 1]
    metres = 0.4 + grey * 0.03
    metres[:4] = np.nan
    values = metres.astype((">" if big else "<") + kind)
    with BagWriter(tmp_path, "sqlite") as bag:
        for i, pixels in enumerate((values, np.full_like(values, np.nan))):
            rows = pixels.view(np.uint8)
            height, width = grey.shape
            message = bag.new(
                "sensor_msgs/msg/Image", bag.header(stamp(i)), height, width, encoding, big, rows.shape[1], rows.ravel()
            )
            bag.write("/depth", message, stamp(i))
    with remark_scope():
        shown, none = frames_of(bag.path)
    pixels = np.asarray(shown.picture)
    assert (pixels[:, :, :1] == pixels).all()
    assert not pixels[:4].any()
    assert np.corrcoef(pixels[4:, :, 0].ravel(), grey[4:].ravel())[0, 1] > 0.99
    assert "#000001: none of its floating-point values is finite" in none.error
    (told,) = caplog.messages
    assert told.startswith("floating-point pictures are scaled to 8 bits by the range they use")


def test_an_image_that_cannot_be_used_is_an_error_of_its_own(tmp_path: Path) -> None:
    with BagWriter(tmp_path, "drive.bag") as bag:
        bag.image("/image", stamp(0), scene(0)[:, :, :2], "32FC2")
        bag.image("/image", stamp(1), scene(0)[:, :, :1], "rgb8")
        bag.image("/image", stamp(2), scene(0)[:8])
        nothing = np.zeros(0, np.uint8)
        empty = bag.new("sensor_msgs/msg/Image", bag.header(stamp(3)), 0, 0, "bayer_rggb8", 0, 0, nothing)
        bag.write("/image", empty, stamp(3))
        bag.image("/image", stamp(4), scene(0))
    frames = frames_of(bag.path)
    told = [
        "encoding '32FC2' is not one of",
        "bytes in rows of 64 do not make a picture of 64 x 48 in rgb8",
        "64 x 8 pixels",
        "0 x 0 pixels",
    ]
    for frame, part in zip(frames, told, strict=False):
        assert part in frame.error
        assert frame.error.startswith(f"{frame.name}: ")
    assert frames[4].error is None


def test_time_of_recording_where_the_header_has_none(tmp_path: Path) -> None:
    with BagWriter(tmp_path, "drive.bag") as bag:
        bag.image("/image", None, scene(0), logged=stamp(3))
    assert frames_of(bag.path)[0].timestamp == stamp(3) / 1e9


def test_a_bag_without_definitions_of_its_messages(tmp_path: Path) -> None:
    """As ROS 2 wrote them before Iron."""
    path = write_drive(tmp_path, "sqlite")
    with sqlite3.connect(next(path.glob("*.db3"))) as connection:
        connection.execute("DELETE FROM message_definitions")
    connection.close()
    assert len(frames_of(path)) == 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9])
def test_bags_that_are_cut(tmp_path: Path, kind: str, keep: float) -> None:
    path = write_drive(tmp_path, kind)
    file = path if path.is_file() else next(file for file in path.iterdir() if file.suffix in (".db3", ".mcap"))
    content = file.read_bytes()
    file.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(SourceError) as caught:
        frames_of(path)
    assert str(path) in str(caught.value)
    assert "check that it is whole" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_bytes_give_frames_or_source_errors(tmp_path: Path) -> None:
    """Every result of a flipped byte is a picture, an error of a frame, or a SourceError."""
    path, rng = write_drive(tmp_path, "drive.bag", frames=2), np.random.default_rng(0)
    whole = path.read_bytes()
    outcomes = set()
    for _ in range(30):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        content[len(content) - rng.integers(1, 3000)] ^= 1 << rng.integers(8)  # the index is at the end
        path.write_bytes(content)
        try:
            with open_source(str(path)) as source:
                outcomes.update(frame.error is None for frame in source)
        except SourceError:
            outcomes.add("refused")
    assert {True, "refused"} <= outcomes


def test_no_images(tmp_path: Path) -> None:
    with BagWriter(tmp_path, "drive.bag") as bag:
        bag.pose("Odometry", "/odom", stamp(0), 1.0)
    with pytest.raises(SourceError, match=r"no topic with images .*: it has /odom \(nav_msgs/msg/Odometry\)"):
        open_source(str(bag.path))
    with BagWriter(tmp_path, "mcap") as bag:
        pass
    with pytest.raises(SourceError):
        open_source(str(bag.path))


def test_files_that_are_no_bags(tmp_path: Path) -> None:
    for name in ("a.bag", "a.mcap", "a.db3"):
        (tmp_path / name).write_text("no bag at all\n" * 100)
        result = CliRunner().invoke(pairvpr_run, ["--db", str(tmp_path), "--query", str(tmp_path / name)])
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
        assert name in result.stderr
    (tmp_path / "drive").mkdir()
    (tmp_path / "drive" / "metadata.yaml").write_text("- no\n- bag")
    with pytest.raises(SourceError, match="drive is damaged or not a readable bag"):
        open_source(str(tmp_path / "drive"))


@pytest.mark.parametrize("kind", ["drive.bag", "sqlite", "mcap"])
def test_a_bag_is_read_as_a_stream(tmp_path: Path, kind: str) -> None:
    """80 images of 0.9 MB: what is held at any time is a few of them, or a chunk."""
    pixels = np.zeros((480, 640, 3), np.uint8)
    with BagWriter(tmp_path, kind) as bag:
        for i in range(80):
            bag.image("/image", stamp(i), pixels)
    with open_source(str(bag.path)) as source:
        next(source.frames())  # imports
        tracemalloc.start()
        count = sum(1 for _ in source.frames())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert count == 80
    assert peak < 25e6


def test_without_rosbags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rosbags.highlevel", None)
    (tmp_path / "a.bag").touch()
    with pytest.raises(SourceError, match=r'needs rosbags .*: pip install "pairvpr\[bags\]"$'):
        open_source(str(tmp_path / "a.bag"))


def test_warnings_are_shown_by_the_command(tmp_path: Path) -> None:
    with BagWriter(tmp_path, "drive.bag") as bag:
        bag.image("/image", stamp(0), scene(0))
        bag.pose("Odometry", "/odom", stamp(0), 1.0)
        bag.pose("Odometry", "/slam", stamp(0), 1.0)
    built = CliRunner().invoke(pairvpr, ["map", "build", str(bag.path), "--db", str(tmp_path / "map")])
    assert "choose --pose-topic of /odom, /slam" in built.stderr
    assert logging.getLogger("pairvpr").handlers
    options = ["--pose-topic", "/slam", "--topic", "/image"]
    built = CliRunner().invoke(pairvpr, ["map", "build", str(bag.path), "--db", str(tmp_path / "two"), *options])
    assert "1 pictures added, 1 with a place" in built.stdout


def test_a_damaged_length_that_exceeds_memory_is_an_error(tmp_path: Path) -> None:
    path = write_drive(tmp_path, "lone.mcap")
    content = bytearray(path.read_bytes())
    content[9:17] = (1 << 60).to_bytes(8, "little")  # of the header's record
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"alone\.mcap is damaged.* \(it asks for more memory than there is\): check"):
        open_source(str(path))


def test_a_message_hidden_by_damage_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One whose record has another opcode is skipped by whoever reads an MCAP file."""
    path = write_drive(tmp_path, "lone.mcap", frames=3)
    content = bytearray(path.read_bytes())
    at = content.index(b"\x05", content.index(scene(1).tobytes()) - 200)  # a message's opcode, then its length
    while int.from_bytes(content[at + 1 : at + 9], "little") not in range(scene(1).nbytes, scene(1).nbytes + 200):
        at = content.index(b"\x05", at + 1)
    content[at] = 0xFF
    path.write_bytes(content)
    assert len(frames_of(path)) == 2
    assert "alone.mcap: only 2 of 3 messages on /cam/image_raw were found: check that the bag is whole" in caplog.text


def test_quotes_of_a_damaged_bag_are_printable(tmp_path: Path) -> None:
    path = write_drive(tmp_path, "drive.bag")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"uint32 height", b"uint32 \x1b[31mt"))
    with pytest.raises(SourceError, match="check that it is whole") as caught:
        frames_of(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300 + 300
    path.write_bytes(content.replace(b"/cam/image_raw", b"/cam/\x1b[31m_raw"))
    with pytest.raises(SourceError, match="topics have names that cannot be printed"):
        frames_of(path)


@pytest.mark.parametrize("kind", ["drive.bag", "sqlite", "lone.mcap"])
def test_damaged_poses_cost_places_and_no_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    with BagWriter(tmp_path, kind) as bag:
        for i in range(3):
            bag.image("/cam/image_raw", stamp(i), scene(i))
            bag.pose("Odometry" if i < 2 else "PoseStamped", "/odom", stamp(i), i)  # the topic's type is Odometry
    frames = frames_of(bag.path)
    assert all(frame.picture is not None for frame in frames)
    assert [frame.pose is not None for frame in frames] == [True, True, False]
    (told,) = [each for each in caplog.messages if "first: /odom is damaged" in each]
    assert told.startswith(f"{bag.path}: 1 messages on /odom give no place")
    with pytest.raises(SourceError, match="1 messages on /odom give no place"), remark_scope(strict=True):
        frames_of(bag.path)
