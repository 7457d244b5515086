"""Building a map skips and counts bad pictures, and keeps committed work."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr.cli.main import main
from pairvpr.errors import MapError, SourceError
from pairvpr.runtime import Model, load_model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.map import Map, merge_maps, verify_map
from pairvpr.runtime.map import writer as writer_module
from pairvpr.runtime.map.segments import Segment
from pairvpr.runtime.mapping import builder as builder_module
from pairvpr.runtime.mapping.builder import BuildOptions, add_pictures
from pairvpr.runtime.sources import SourceOptions
from tests.scenes import draw_scene

SIZE = (96, 128)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model()


def draw(folder: Path, *places: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for place in places:
        Image.fromarray(draw_scene(place, 0, SIZE)).save(folder / f"p{place}.png")
    return folder


def names(db: Path) -> list[str]:
    with Map.open(db) as map_:
        return [record.name for record in map_.records]


def png(width: int, height: int) -> bytes:
    """A few bytes that claim to be a picture of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def saved(picture: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


def bad_pictures() -> dict[str, bytes]:
    scene = Image.fromarray(draw_scene(50, 0, SIZE))
    return {
        "empty.jpg": b"",
        "text.jpg": b"not a picture at all",
        "cut.jpg": saved(scene, "JPEG")[:-500],
        "cut.png": saved(scene, "PNG")[:2000],
        "one.png": saved(Image.new("RGB", (1, 1)), "PNG"),
        "bomb.png": png(20_000, 20_000),
    }


def test_adding_listing_and_removing_read_no_descriptors(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, db = draw(tmp_path / "in", 0, 1), tmp_path / "map"
    add_pictures(pictures, db, model, create=True)

    def refuse(*_: object) -> None:
        raise AssertionError("descriptors are read")

    monkeypatch.setattr(Segment, "read_descriptors", refuse)
    draw(pictures, 2)
    for command in (["add", pictures], ["list"], ["info"], ["remove", "p0.png"], ["index", "--precision", "float16"]):
        result = CliRunner().invoke(main, ["map", *map(str, command), "--db", str(db)])
        assert result.exit_code == 0, result.output
    assert result.stdout == f"{db}: searched in float16\n"
    monkeypatch.undo()
    assert names(db) == ["p1.png", "p2.png"]
    assert "index precision    float16" in CliRunner().invoke(main, ["map", "info", "--db", str(db)]).stdout
    with Map.open(db) as map_:
        assert map_.index_precision == map_.info().index_precision == "float16"


@pytest.mark.parametrize("every", [1, 2])
def test_parts_merged_in_order_are_the_whole_map(tmp_path: Path, model: Model, every: int) -> None:
    pictures = draw(tmp_path / "in", *range(11))
    options = BuildOptions(SourceOptions(every=every))
    add_pictures(pictures, tmp_path / "whole", model, options, create=True)
    reports = []
    for number in (1, 2, 3):
        chosen = dataclasses.replace(options, part=(number, 3))
        reports.append(add_pictures(pictures, tmp_path / f"part{number}", model, chosen, create=True))
        again = add_pictures(pictures, tmp_path / f"part{number}", model, chosen)
        assert (again.added, again.already) == (0, reports[-1].added)
    assert [report.added for report in reports] == ([3, 4, 4] if every == 1 else [2, 2, 2])
    merge_maps([tmp_path / "part2", tmp_path / "part3"], tmp_path / "part1")
    with Map.open(tmp_path / "whole") as whole, Map.open(tmp_path / "part1") as merged:
        stored = [(record.id, record.name, record.source, record.pose) for record in whole.records]
        assert [(record.id, record.name, record.source, record.pose) for record in merged.records] == stored
        np.testing.assert_allclose(merged.descriptors, whole.descriptors, atol=1e-5)


def test_bad_parts_are_refused(tmp_path: Path, model: Model) -> None:
    pictures, db = draw(tmp_path / "in", 0, 1), tmp_path / "map"
    for text in ("0/2", "3/2", "1", "1/0", "-1/2", "1/2/3"):
        result = CliRunner().invoke(main, ["map", "build", str(pictures), "--db", str(db), "--part", text])
        assert (result.exit_code, f"{text!r} is not I/N" in result.output) == (2, True)
    with pytest.raises(SourceError, match="part 1 of 3 has none of its 2 pictures; give fewer parts with --part"):
        add_pictures(pictures, db, model, BuildOptions(part=(1, 3)), create=True)
    by_time = BuildOptions(SourceOptions(start=1.0), part=(1, 2))
    with pytest.raises(SourceError, match="not known before they are read; leave out --part"):
        add_pictures(pictures, db, model, by_time, create=True)
    assert not db.exists()


def test_every_picture_is_stored_as_the_model_sees_it(tmp_path: Path, model: Model) -> None:
    pictures, db = draw(tmp_path / "in", 0, 1), tmp_path / "map"
    draw(pictures / "deep" / "er", 2)
    steps: list[tuple[int, int]] = []
    report = add_pictures(
        str(pictures),
        str(db),
        model,
        BuildOptions(token_type="float16"),
        create=True,
        progress=lambda *step: steps.append(step),
    )
    assert (report.added, report.already, report.with_place, report.skipped) == (3, 0, 0, ())
    assert steps[-1] == (3, 3)
    with Map.open(db) as map_:
        assert {record.source for record in map_.records} == {str(pictures.resolve())}
        features = model.encode([pictures / record.name for record in map_.records])
        np.testing.assert_allclose(map_.descriptors, features.descriptors, atol=1e-5)
        np.testing.assert_allclose(map_.read_tokens(range(3)), features.tokens, rtol=2e-3, atol=1e-3)
        assert sorted(record.name for record in map_.records) == ["deep/er/p2.png", "p0.png", "p1.png"]
        assert Bundle.open(map_.model_path).info == model.bundle.info
    assert verify_map(db) == []


def test_bad_pictures_are_left_out_and_counted(tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    pictures, db = draw(tmp_path / "in", 0, 1, 2), tmp_path / "map"
    bad = bad_pictures()
    for name, content in bad.items():
        (pictures / name).write_bytes(content)
    (pictures / "gone.jpg").symlink_to(pictures / "nowhere.jpg")
    with caplog.at_level("WARNING"):
        report = add_pictures(pictures, db, model, create=True)
    assert (report.added, report.already) == (3, 0)
    assert sorted(names(db)) == ["p0.png", "p1.png", "p2.png"]
    assert len(report.skipped) == len(bad)
    assert f"{pictures}: 1 links lead nowhere and are left out; first: '{pictures}/gone.jpg'" in caplog.text
    for name in bad:
        lines = [line for line in report.skipped if name in line]
        assert len(lines) == 1, name
        assert "\n" not in lines[0]


def test_modes_of_all_kinds_are_pictures(tmp_path: Path, model: Model) -> None:
    pictures, scene = draw(tmp_path / "in", 0), Image.fromarray(draw_scene(0, 0, SIZE))
    for mode in ("L", "1", "P", "RGBA", "LA"):
        scene.convert(mode).save(pictures / f"{mode}.png")
    Image.fromarray(np.asarray(scene.convert("L"), np.uint16) * 257).save(pictures / "16.png")
    scene.convert("CMYK").save(pictures / "cmyk.jpg")
    assert add_pictures(pictures, tmp_path / "map", model, BuildOptions(strict=True), create=True).added == 8


@pytest.mark.parametrize("name", sorted(bad_pictures()))
def test_strict_stops_at_a_bad_picture(tmp_path: Path, model: Model, name: str) -> None:
    pictures, db = draw(tmp_path / "in", 0), tmp_path / "map"
    (pictures / name).write_bytes(bad_pictures()[name])
    with pytest.raises(SourceError, match=name) as error:
        add_pictures(pictures, db, model, BuildOptions(strict=True), create=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("strict", [True, False])
def test_a_folder_without_a_picture_that_can_be_read_leaves_no_map(tmp_path: Path, model: Model, strict: bool) -> None:
    pictures, db = draw(tmp_path / "in"), tmp_path / "map"
    for number in range(10):
        (pictures / f"{number}.jpg").write_bytes(b"nothing")
    with pytest.raises(SourceError, match=r"0\.jpg is not a picture" if strict else "none of its 10 pictures"):
        add_pictures(pictures, db, model, BuildOptions(strict=strict), create=True)
    assert not db.exists()


def test_running_again_goes_on(tmp_path: Path, model: Model) -> None:
    pictures, db = draw(tmp_path / "in", 0, 1), tmp_path / "map"
    (pictures / "bad.png").write_bytes(b"bad")
    add_pictures(pictures, db, model, create=True)
    again = add_pictures(pictures, db, model, create=True)
    assert (again.added, again.already, len(again.skipped)) == (0, 2, 1)
    draw(pictures, 2, 3)
    (pictures / "bad.png").unlink()
    more = add_pictures(pictures, db, model)
    assert (more.added, more.already, more.skipped) == (2, 2, ())
    assert sorted(names(db)) == ["p0.png", "p1.png", "p2.png", "p3.png"]
    assert verify_map(db) == []


def test_a_name_from_another_folder_is_refused(tmp_path: Path, model: Model) -> None:
    db = tmp_path / "map"
    first, second = draw(tmp_path / "monday", 0, 1), draw(tmp_path / "tuesday", 5, 1)
    add_pictures(first, db, model, create=True)
    with pytest.raises(
        MapError,
        match=r"already holds a picture 'p1\.png', from .*monday; move .*tuesday into a new folder.*'tuesday/'",
    ):
        add_pictures(second, db, model)
    assert sorted(names(db)) == ["p0.png", "p1.png"]
    # What the message advises works.
    (tmp_path / "above").mkdir()
    second.rename(tmp_path / "above" / "tuesday")
    assert add_pictures(tmp_path / "above", db, model).added == 2
    assert sorted(names(db)) == ["p0.png", "p1.png", "tuesday/p1.png", "tuesday/p5.png"]


def test_poses_of_a_file_come_into_the_map(tmp_path: Path, model: Model) -> None:
    pictures, db, poses = draw(tmp_path / "in", 0, 1), tmp_path / "map", tmp_path / "poses.csv"
    poses.write_text("name,latitude,longitude,altitude\np1.png,47.5,8.25,400\nother.png,1,2,3\n")
    assert add_pictures(pictures, db, model, BuildOptions(poses=poses), create=True).with_place == 1
    with Map.open(db) as map_:
        found = {record.name: record.gps for record in map_.records}
    assert found["p0.png"] is None
    assert (found["p1.png"].latitude, found["p1.png"].longitude, found["p1.png"].altitude) == (47.5, 8.25, 400)


@pytest.mark.parametrize("text", ["name,x,y,z,qx,qy,qz,qw\nother.png,0,0,0,0,0,0,1\n", "nonsense\n", None])
def test_an_unusable_pose_file_is_refused_before_anything_is_written(
    tmp_path: Path, model: Model, text: str | None
) -> None:
    pictures, db, poses = draw(tmp_path / "in", 0), tmp_path / "map", tmp_path / "poses.csv"
    if text is not None:
        poses.write_text(text)
    with pytest.raises(SourceError, match=r"poses\.csv"):
        add_pictures(pictures, db, model, BuildOptions(poses=poses), create=True)
    assert not db.exists()


def write_clip(path: Path, *places: int) -> Path:
    """A lossless video of places, two frames each."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "bgr0"
        for place in places:
            for _ in range(2):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(draw_scene(place, 0, SIZE), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video_becomes_a_map_and_goes_on(tmp_path: Path, model: Model) -> None:
    clip, db = write_clip(tmp_path / "drive.mkv", 0, 1), tmp_path / "map"
    steps: list[tuple[int, int | None]] = []
    report = add_pictures(clip, db, model, create=True, progress=lambda *step: steps.append(step))
    assert (report.added, report.already, report.with_place, report.skipped) == (4, 0, 0, ())
    assert steps[-1] == (4, 4)
    with Map.open(db) as map_:  # a video has no files to show
        stored = [map_.read_thumbnail(record) for record in map_.records]
    for jpeg, place in zip(stored, (0, 0, 1, 1), strict=True):
        with Image.open(io.BytesIO(jpeg or b"")) as shown:
            expected = Image.fromarray(draw_scene(place, 0, SIZE)).resize(shown.size)
            assert np.abs(np.asarray(shown, np.float32) - np.asarray(expected, np.float32)).mean() < 20
    with Map.open(db) as map_:
        assert [record.name for record in map_.records] == [f"drive.mkv#{i:06d}" for i in range(4)]
        assert [record.timestamp for record in map_.records] == pytest.approx([0, 0.1, 0.2, 0.3])
        assert {record.source for record in map_.records} == {str(clip.resolve())}
        expected = model.encode([draw_scene(place, 0, SIZE) for place in (0, 0, 1, 1)])
        np.testing.assert_allclose(map_.descriptors, expected.descriptors, atol=2e-2)  # colours were converted
    write_clip(clip, 0, 1, 2)
    again = add_pictures(clip, db, model)
    assert (again.added, again.already) == (2, 4)
    (tmp_path / "tuesday").mkdir()
    other = write_clip(tmp_path / "tuesday" / "drive.mkv", 3)
    with pytest.raises(MapError, match=r"'drive\.mkv#000000', from .*drive\.mkv; rename .*tuesday/drive\.mkv, which"):
        add_pictures(other, db, model)
    assert add_pictures(other.rename(tmp_path / "tuesday.mkv"), db, model).added == 2


def test_thumbnails_have_the_size_asked_for(tmp_path: Path, model: Model) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(draw_scene(0, 0, (480, 640))).save(tmp_path / "in" / "p.png")
    for given, size in ((BuildOptions(), (160, 120)), (BuildOptions(thumbnails=80), (80, 60))):
        add_pictures(tmp_path / "in", tmp_path / str(size), model, given, create=True)
        with (
            Map.open(tmp_path / str(size)) as map_,
            Image.open(io.BytesIO(map_.read_thumbnail(map_.records[0]) or b"")) as shown,
        ):
            assert shown.size == size
    add_pictures(tmp_path / "in", tmp_path / "none", model, BuildOptions(thumbnails=0), create=True)
    with Map.open(tmp_path / "none") as map_:
        assert map_.read_thumbnail(map_.records[0]) is None
        assert map_.info().thumbnail_bytes == 0
    with pytest.raises(ValueError, match="thumbnails of 321 pixels"):
        BuildOptions(thumbnails=321)


def test_poses_of_other_pictures_show_a_name_of_each_side(tmp_path: Path, model: Model) -> None:
    pictures, poses = draw(tmp_path / "in", 0, 1), tmp_path / "poses.csv"
    poses.write_text("name,x,y,z,qx,qy,qz,qw\nin/p0.png,1,2,3,0,0,0,1\n")
    sides = r"\(the file has in/p0\.png, a picture is p0\.png\); check names or time stamps"
    with pytest.raises(SourceError, match=rf"poses\.csv: none of its entries belongs to one of the pictures {sides}"):
        add_pictures(pictures, tmp_path / "map", model, BuildOptions(poses=poses), create=True)
    colmap = tmp_path / "images.txt"
    colmap.write_text("#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n1 1 0 0 0 0 0 0 1 cam/0.png\n\n")
    with pytest.raises(SourceError, match=r"the file has cam/0\.png, a picture is p0\.png"):
        add_pictures(pictures, tmp_path / "map", model, BuildOptions(poses=colmap), create=True)


def test_poses_by_time_reach_the_frames_of_a_video(tmp_path: Path, model: Model) -> None:
    clip, db, poses = write_clip(tmp_path / "drive.mkv", 0, 1), tmp_path / "map", tmp_path / "poses.txt"
    poses.write_text("0.1 1 2 3 0 0 0 1\n0.3 4 5 6 0 0 0 1\n")
    assert add_pictures(clip, db, model, BuildOptions(poses=poses), create=True).with_place == 2
    with Map.open(db) as map_:
        assert [record.pose and record.pose.x for record in map_.records] == [None, 1, None, 4]
        assert map_.records[1].timestamp == pytest.approx(0.1)
    poses.write_text("1700000000.1 1 2 3 0 0 0 1\n")
    sides = r"\(the file has time stamp 1700000000.100000 s, a picture is drive\.mkv#000000 at 0.000000 s\)"
    with pytest.raises(SourceError, match=rf"poses\.txt: none of its .* 4 pictures that .* a pose {sides}; check"):
        add_pictures(clip, tmp_path / "other", model, BuildOptions(poses=poses), create=True)


def test_a_single_picture_is_the_one_of_its_folder(tmp_path: Path, model: Model) -> None:
    pictures, db = draw(tmp_path / "in", 0, 1), tmp_path / "map"
    assert add_pictures(pictures / "p0.png", db, model, create=True).added == 1
    report = add_pictures(pictures, db, model)
    assert (report.added, report.already) == (1, 1)


def test_an_interruption_keeps_the_pictures_added_before(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder_module, "ENCODE_BATCH", 2)
    pictures, db = draw(tmp_path / "in", *range(5)), tmp_path / "map"

    def interrupt(done: int, total: int) -> None:
        assert total == 5
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_pictures(pictures, db, model, create=True, progress=interrupt)
    assert names(db) == ["p0.png", "p1.png", "p2.png", "p3.png"]
    assert verify_map(db) == []
    report = add_pictures(pictures, db, model, create=True)
    assert (report.added, report.already) == (1, 4)
    assert names(db) == [f"p{place}.png" for place in range(5)]
    assert verify_map(db) == []


def test_a_reader_keeps_its_snapshot_while_pictures_are_added(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "COMMIT_PICTURES", 1)
    monkeypatch.setattr(builder_module, "ENCODE_BATCH", 1)
    pictures, db = draw(tmp_path / "in", 0, 1), tmp_path / "map"
    add_pictures(pictures, db, model, create=True)
    seen: list[int] = []
    with Map.open(db) as before:
        tokens = before.read_tokens([0, 1])
        draw(pictures, 2, 3)
        add_pictures(pictures, db, model, progress=lambda done, total: seen.append(len(names(db))))
        assert len(before) == 2
        np.testing.assert_array_equal(before.read_tokens([0, 1]), tokens)
    assert seen == [3, 4]


def test_adding_needs_a_map(tmp_path: Path, model: Model) -> None:
    pictures, db = draw(tmp_path / "in", 0), tmp_path / "map"
    with pytest.raises(MapError, match="holds no map: build it"):
        add_pictures(pictures, db, model)
    assert not db.exists()


def test_a_map_of_another_model_is_left_alone(tmp_path: Path, model: Model) -> None:
    pictures, db = draw(tmp_path / "in", 0), tmp_path / "map"
    add_pictures(pictures, db, model, create=True)
    info = dataclasses.replace(model.bundle.info, identity="0" * 64)
    stranger = Model(Bundle(model.bundle.path, info), model.engines)
    draw(pictures, 1)
    with pytest.raises(MapError, match="made with model"):
        add_pictures(pictures, db, stranger, create=True)
    assert names(db) == ["p0.png"]


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
def test_sources_without_pictures(tmp_path: Path, model: Model, what: str) -> None:
    pictures, db = tmp_path / "in", tmp_path / "map"
    if what == "file":
        pictures.touch()
    elif what == "empty":
        pictures.mkdir()
    told = {"missing": "is not a file, folder, camera", "file": "is an empty file", "empty": "holds no pictures"}[what]
    with pytest.raises(SourceError, match=told):
        add_pictures(pictures, db, model, create=True)
    assert not db.exists()


def test_a_folder_with_other_files_is_refused(tmp_path: Path, model: Model) -> None:
    pictures, full = draw(tmp_path / "in", 0), tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").touch()
    with pytest.raises(MapError, match="not empty and holds no map"):
        add_pictures(pictures, full, model, create=True)
    assert [file.name for file in full.iterdir()] == ["thesis.tex"]


def test_poses_that_come_too_late_are_refused(tmp_path: Path, model: Model) -> None:
    """They could not reach the pictures that are there already; without a word they would be lost."""
    db, images = tmp_path / "map", draw(tmp_path / "monday", 0, 1)
    add_pictures(images, db, model, create=True)
    poses = tmp_path / "poses.csv"
    poses.write_text("name,x,y,z,qx,qy,qz,qw\np1.png,1,2,3,0,0,0,1\n")
    with pytest.raises(MapError, match=r"already holds 'p1\.png' without its pose; build a new map"):
        add_pictures(images, db, model, BuildOptions(poses=poses))
    other = tmp_path / "other"
    for _ in range(2):  # going on with the same poses is no mistake
        add_pictures(images, other, model, BuildOptions(poses=poses), create=True)


@pytest.mark.parametrize("options", [BuildOptions(), BuildOptions(min_change=0.05)], ids=["all", "keyframes"])
def test_reading_ahead_changes_no_bit(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, options: BuildOptions
) -> None:
    pictures = draw(tmp_path / "in", *range(19))
    for number in (3, 11):
        (pictures / f"p{number}.png").write_bytes(b"torn")
    found = add_pictures(pictures, tmp_path / "ahead", model, options, create=True)
    monkeypatch.setattr(builder_module, "read_ahead", lambda items, depth=1: contextlib.nullcontext(items))
    wanted = add_pictures(pictures, tmp_path / "plain", model, options, create=True)
    assert found == wanted
    assert len(found.skipped) == 2
    with Map.open(tmp_path / "ahead") as ahead, Map.open(tmp_path / "plain") as plain:
        assert [each.name for each in ahead.records] == [each.name for each in plain.records]
        np.testing.assert_array_equal(ahead.descriptors, plain.descriptors)
        np.testing.assert_array_equal(ahead.read_tokens(range(len(ahead))), plain.read_tokens(range(len(plain))))


def test_an_interrupt_between_batches_keeps_the_batches_before(tmp_path: Path, model: Model) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done == 16:
            raise KeyboardInterrupt

    pictures, db = draw(tmp_path / "in", *range(20)), tmp_path / "map"
    with pytest.raises(KeyboardInterrupt):
        add_pictures(pictures, db, model, create=True, progress=interrupt)
    assert names(db) == [f"p{place}.png" for place in range(16)]
    assert not [thread for thread in threading.enumerate() if thread.name == "pairvpr pictures"]
    report = add_pictures(pictures, db, model)
    assert (report.added, report.already) == (4, 16)
