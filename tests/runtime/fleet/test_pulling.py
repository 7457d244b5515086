"""A robot keeps an ordinary map of the tiles around it, and moves only changed files."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from pairvpr.cli.main import main
from pairvpr.errors import MapError
from pairvpr.runtime import PlaceRecognizer
from pairvpr.runtime.fleet import storage
from pairvpr.runtime.fleet.publishing import adopt
from pairvpr.runtime.fleet.pulling import pull
from pairvpr.runtime.fleet.version import read_current
from pairvpr.runtime.map import Map, MapWriter, merge_maps, verify_map
from tests.runtime.fleet.fleets import build, content_at, files_of, gps_of

RADIUS = 400.0


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A fleet of 12 tiles: 10 km to the north, and a drive without positions."""
    path = tmp_path / "fleet"
    adopt([build(tmp_path / "a", range(0, 200, 2))], path)
    adopt([build(tmp_path / "n", range(6), drive="n", kind="none", same=3)], path)
    return path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve a folder, and note what was sent."""

    asked: list[str]
    cut: int | None = None  # bytes after which an answer ends

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def copyfile(self, source, outputfile) -> None:
        if self.cut is None:
            super().copyfile(source, outputfile)
        else:
            outputfile.write(source.read(self.cut))

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(fleet: Path) -> Iterator[tuple[str, type[Handler]]]:
    handler = type("Noting", (Handler,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=fleet)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", handler
        running.shutdown()
        thread.join()


def test_a_part_is_a_map_of_its_pictures(fleet: Path, tmp_path: Path, server: tuple[str, type[Handler]]) -> None:
    version = read_current(storage.FolderStorage(fleet))
    tiles = version.near(gps_of(40), RADIUS)
    assert 1 < len(tiles) < len(version.tiles) / 2
    for source in (fleet, server[0]):
        db = tmp_path / f"map-{len(str(source))}"
        report = pull(source, db, gps_of(40), RADIUS)
        assert (report.version, report.tiles, report.own) == (2, len(tiles), 0)
        assert report.pictures == sum(tile.pictures for tile in tiles) == len(content_at(db))
        everything = content_at(tmp_path / "a")
        assert content_at(db).items() <= everything.items()
        assert {f"a/{number:03d}.jpg" for number in range(36, 45, 2)} <= content_at(db).keys()
        assert verify_map(db) == []
        again = pull(source, db, gps_of(40), RADIUS)
        assert (again.files, again.bytes, again.pictures) == (0, 0, report.pictures)
    server[1].asked.clear()
    pull(server[0], db, gps_of(40), RADIUS)
    assert [path.split("/")[1] for path in server[1].asked] == ["fleet.json", "versions"]


def test_everything_in_the_order_of_publication(fleet: Path, tmp_path: Path) -> None:
    pull(fleet, tmp_path / "map")
    merge_maps([tmp_path / "n"], tmp_path / "a")
    assert content_at(tmp_path / "map") == content_at(tmp_path / "a")
    with Map.open(tmp_path / "map") as pulled, Map.open(tmp_path / "a") as one:
        assert pulled.records.names() == one.records.names()


def test_only_changes_move(fleet: Path, tmp_path: Path) -> None:
    db = tmp_path / "map"
    first = pull(fleet, db, gps_of(40), RADIUS)
    before = {file.name: file.stat().st_ino for file in (db / "segments").iterdir()}
    adopt([build(tmp_path / "b", range(39, 42), drive="b")], fleet)
    adopt([build(tmp_path / "far", range(150, 160), drive="far")], fleet)
    with Map.open(db) as reader:
        report = pull(fleet, db, gps_of(40), RADIUS)
        assert (report.version, report.pictures - first.pictures, report.tiles - first.tiles) == (4, 3, 1)
        assert report.files == 3  # catalog, segment, thumbnails
        newer = reader.open_newer()
        assert newer is not None
        with newer:
            assert len(newer) == report.pictures
    after = {file.name: file.stat().st_ino for file in (db / "segments").iterdir()}
    assert before.items() <= after.items()
    moved = pull(fleet, db, gps_of(60), RADIUS)
    assert moved.files > 0
    assert len(content_at(db)) == moved.pictures < sum(1 for _ in range(0, 200, 2))
    assert {tile.digest for tile in read_current(storage.FolderStorage(fleet)).near(gps_of(60), RADIUS)} == {
        each.name for each in (db / "tiles").iterdir()
    }


def test_own_pictures_stay_and_go_back(fleet: Path, tmp_path: Path) -> None:
    db = tmp_path / "map"
    first = pull(fleet, db, gps_of(40), RADIUS)
    build(db, range(7), drive="own")  # beside the pulled pictures
    expected = content_at(db)
    assert len(expected) == first.pictures + 7
    adopt([build(tmp_path / "b", range(39, 42), drive="b")], fleet)  # takes the numbers of the own segments
    report = pull(fleet, db, gps_of(40), RADIUS)
    assert (report.own, report.pictures) == (7, first.pictures + 10)
    assert content_at(db) == expected | content_at(tmp_path / "b")
    assert pull(fleet, db, gps_of(40), RADIUS).files == 0
    back = adopt([db], fleet)
    assert (back.added, back.already) == (7, first.pictures + 3)
    sent = pull(fleet, db, gps_of(40), RADIUS)
    assert sent.pictures == report.pictures
    assert sent.own == 7 - sum(
        tile.pictures
        for tile in back.tiles
        if tile in read_current(storage.FolderStorage(fleet)).near(gps_of(40), RADIUS)
    )
    near = pull(fleet, db, gps_of(3), RADIUS)
    assert near.own == 0
    assert {f"own/00{number}.jpg" for number in range(7)} <= content_at(db).keys()
    assert verify_map(db) == []


def test_a_different_picture_of_the_same_name_is_refused(fleet: Path, tmp_path: Path) -> None:
    db = tmp_path / "map"
    pull(fleet, db, gps_of(40), RADIUS)
    build(db, [999], drive="b")
    adopt([build(tmp_path / "b", [40], drive="b"), build(tmp_path / "c", [999], drive="b", same=1, kind="none")], fleet)
    before = content_at(db)
    pull(fleet, db, gps_of(40), RADIUS)
    assert content_at(db) == before | content_at(tmp_path / "b")
    before = content_at(db)
    with pytest.raises(MapError, match=r"each hold a picture 'b/999.jpg', and they differ: .*nothing was changed"):
        pull(fleet, db)
    assert content_at(db) == before


@pytest.mark.parametrize("cut", [0, 1, 100, 5000, 70_000, 110_000])
def test_a_cut_download_leaves_the_old_map(
    fleet: Path, tmp_path: Path, server: tuple[str, type[Handler]], cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = tmp_path / "map"
    pull(fleet, db, gps_of(40), RADIUS)
    before = content_at(db)
    monkeypatch.setattr(server[1], "cut", cut)
    with pytest.raises(MapError, match=r"http://127.0.0.1.* (was cut short|cannot be read|is damaged)"):
        pull(server[0], db)
    assert content_at(db) == before
    with pytest.raises(MapError):
        pull(server[0], tmp_path / "new")
    if (tmp_path / "new").exists():
        with pytest.raises(MapError, match="`pairvpr fleet pull`"):
            PlaceRecognizer.open(tmp_path / "new")
    monkeypatch.setattr(server[1], "cut", None)
    for path in (db, tmp_path / "new"):
        pull(server[0], path)
        assert content_at(path) == content_at(tmp_path / "a") | content_at(tmp_path / "n")


def test_a_killed_pull_goes_on(fleet: Path, tmp_path: Path) -> None:
    db = tmp_path / "map"
    pull(fleet, db, gps_of(40), RADIUS)
    build(db, range(3), drive="own")
    before, everything = content_at(db), content_at(tmp_path / "a") | content_at(tmp_path / "n")
    script = """
import os, sys
from pairvpr.runtime.fleet.pulling import pull
left, fsync = [int(sys.argv[3])], os.fsync
def kill(descriptor):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), 9)
    fsync(descriptor)
os.fsync = kill
pull(sys.argv[1], sys.argv[2])
"""
    killed = 0
    for at in (1, 20, 60, 90, 120, 140):
        done = subprocess.run([sys.executable, "-c", script, fleet, db, str(at)], check=False)
        killed += done.returncode == -9
        held = content_at(db)
        assert held == before or everything.items() <= held.items()
    assert killed >= 3
    assert pull(fleet, db).own == 3
    assert content_at(db) == before | everything


@pytest.mark.parametrize("file", ["*.safetensors", "map.sqlite", "encoder.fp16.onnx"])
def test_a_changed_byte_is_refused_by_name(fleet: Path, tmp_path: Path, file: str) -> None:
    found = sorted(fleet.rglob(file))[0]
    raw = bytearray(found.read_bytes())
    raw[len(raw) // 2] ^= 1
    found.unlink()  # it is linked
    found.write_bytes(raw)
    with pytest.raises(MapError, match=rf"{found.name} is damaged \(its sha256 is not the one that the fleet lists\)"):
        pull(fleet, tmp_path / "map")
    found.unlink()
    with pytest.raises(MapError, match=f"{found.name} is missing"):
        pull(fleet, tmp_path / "map")


def test_a_cut_file_of_a_folder_does_not_come_back(fleet: Path, tmp_path: Path) -> None:
    found = sorted(fleet.rglob("*.safetensors"))[0]
    raw = found.read_bytes()
    found.unlink()  # it is linked
    found.write_bytes(raw[:-1])
    with pytest.raises(MapError, match=r"was cut short \(.*\): publish its map again with `pairvpr fleet adopt`, or"):
        pull(fleet, tmp_path / "map")


def test_a_fleet_without_positions_has_no_tile_near(tmp_path: Path) -> None:
    adopt([build(tmp_path / "n", range(6), kind="pose")], tmp_path / "fleet")
    with pytest.raises(MapError, match="the fleet has no GPS positions; leave out --near and --radius"):
        pull(tmp_path / "fleet", tmp_path / "map", gps_of(0), 1e6)
    assert not (tmp_path / "map").exists()


def test_a_map_of_another_model_is_refused(fleet: Path, tmp_path: Path) -> None:
    with MapWriter.open(
        tmp_path / "other",
        identity="b" * 64,
        descriptor_dim=4,
        token_shape=(2, 2),
        install_model=lambda folder: (folder / "bundle.json").touch(),
    ):
        pass
    before = files_of(tmp_path / "other")
    with pytest.raises(MapError, match="was made with model bbbb"):
        pull(fleet, tmp_path / "other")
    assert files_of(tmp_path / "other") == before


def test_a_full_disk_leaves_the_old_map(fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db, calls, sync = tmp_path / "map", [0], os.fsync
    pull(fleet, db, gps_of(40), RADIUS)
    before = content_at(db)

    def fail(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] % 40 == 0:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(MapError, match="cannot be written"):
            pull(fleet, db)
    assert content_at(db) == before
    pull(fleet, db)
    assert content_at(db) == content_at(tmp_path / "a") | content_at(tmp_path / "n")


def test_the_command(fleet: Path, tmp_path: Path, server: tuple[str, type[Handler]]) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["fleet", "pull", "--db", str(tmp_path / "map"), *arguments])
        return result.exit_code, result.output

    near = f"{gps_of(40).latitude},{gps_of(40).longitude}"
    code, output = run("--fleet", server[0], "--near", near, "--radius", "400")
    assert (code, "version 2, " in output) == (0, True), output
    assert "0 files moved, 0.0 MB" in run("--fleet", server[0], "--near", near, "--radius", "400")[1]
    for arguments, fault in [
        (["--near", near], "--near needs --radius"),
        (["--radius", "3"], "--radius needs --near"),
        (["--near", "91,0", "--radius", "3"], "is not LAT,LON"),
        (["--near", "north", "--radius", "3"], "is not LAT,LON"),
        (["--near", "0,0", "--radius", "3"], "has no tile within 3 m"),
    ]:
        code, output = run("--fleet", str(fleet), *arguments)
        assert (code, output.count("\n"), fault in output) == (2, 1, True), output
    shutil.rmtree(fleet)
    code, output = run("--fleet", server[0])
    assert (code, output.count("\n"), "holds no fleet: check the address" in output) == (2, 1, True), output
    code, output = run("--fleet", "http://127.0.0.1:9")
    assert (code, output.count("\n"), "fleet.json cannot be read" in output) == (2, 1, True), output
