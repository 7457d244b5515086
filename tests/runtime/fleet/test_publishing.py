"""Maps are published as tiles, checked and whole, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pairvpr.cli.main import main
from pairvpr.errors import MapError
from pairvpr.files import lock_file
from pairvpr.runtime.fleet import publishing, version
from pairvpr.runtime.fleet.collection import collect
from pairvpr.runtime.fleet.place import quadkey, reaches
from pairvpr.runtime.fleet.publishing import adopt
from pairvpr.runtime.fleet.recognizer import FleetRecognizer
from pairvpr.runtime.fleet.storage import FolderStorage
from pairvpr.runtime.fleet.tiles import open_tiles
from pairvpr.runtime.geometry.poses import Gps
from pairvpr.runtime.map import Map, MapWriter
from tests.runtime.fleet.fleets import build, content_at, content_of, files_of, gps_of


def read(path: Path) -> version.Version:
    return version.read_current(FolderStorage(path))


def content(path: Path) -> dict[str, tuple]:
    with open_tiles(path, read(path)) as opened:
        return content_of(opened)


def test_published_pictures_are_those_of_the_maps(tmp_path: Path) -> None:
    maps = [build(tmp_path / "a", range(20)), build(tmp_path / "b", range(3), drive="b", kind="pose")]
    maps.append(build(tmp_path / "c", range(4), drive="c", kind="none"))
    with MapWriter.edit(maps[0]) as writer:
        writer.remove(["a/007.jpg"])
    before = [files_of(path) for path in maps]
    report = adopt(maps, tmp_path / "fleet")
    assert (report.version, report.added, report.already) == (1, 26, 0)
    assert content(tmp_path / "fleet") == content_at(maps[0]) | content_at(maps[1]) | content_at(maps[2])
    assert [files_of(path) for path in maps] == before
    assert {tile.id.partition("-")[0] for tile in report.tiles} == {"gps", "grid", "drive"}
    assert len(report.tiles) > 4  # 2 km to the north are several places
    for tile in report.tiles:  # a tile is a map without a model
        with Map.open(tmp_path / "fleet" / tile.folder) as opened:
            assert len(opened) == tile.pictures
    inodes = {file.stat().st_ino for path in maps for file in (path / "segments").iterdir()}
    assert {file.stat().st_ino for file in (tmp_path / "fleet" / "tiles").rglob("*.safetensors")} <= inodes


def test_pictures_are_published_once(tmp_path: Path) -> None:
    path, fleet = build(tmp_path / "a", range(6)), tmp_path / "fleet"
    adopt([path], fleet)
    before = files_of(fleet)
    assert (adopt([path], fleet).added, adopt([path, path], fleet).already) == (0, 12)
    assert files_of(fleet) == before
    build(path, range(6, 8))  # the last segment of the first commit and a new one
    with MapWriter.edit(path) as writer:
        writer.compact()  # one segment holds old and new pictures
    report = adopt([path], fleet)
    assert (report.version, report.added, report.already) == (2, 2, 6)
    assert content(fleet) == content_at(path)
    assert len({tile.folder for tile in read(fleet).tiles}) == len(read(fleet).tiles)


def test_the_order_of_a_map_is_kept(tmp_path: Path) -> None:
    numbers = [0, 1, 2, 3, 4, 15, 16, 17, 18, 19, 5, 6, 7, 8, 9, 10]
    adopt([build(tmp_path / "a", numbers)], tmp_path / "fleet")
    with open_tiles(tmp_path / "fleet", read(tmp_path / "fleet")) as opened:
        assert [record.name for record in opened.records] == [f"a/{number:03d}.jpg" for number in numbers]


def test_another_picture_of_the_same_name_is_refused(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    adopt([build(tmp_path / "a", range(6))], fleet)
    before = files_of(fleet)
    with pytest.raises(MapError, match=r"each hold a picture 'a/003.jpg', and they differ.*nothing was published"):
        adopt([build(tmp_path / "b", range(3, 5), same=1)], fleet)
    assert files_of(fleet) == before


@pytest.mark.parametrize("change", ["model", "tokens"])
def test_another_model_or_token_format_is_refused(tmp_path: Path, change: str) -> None:
    fleet = tmp_path / "fleet"
    adopt([build(tmp_path / "a", range(3))], fleet)
    before = files_of(fleet)
    other = build(tmp_path / "b", range(3), drive="b", settings={"tokens": {"type": "int8"}})
    if change == "model":
        with MapWriter.open(
            tmp_path / "other",
            identity="b" * 64,
            descriptor_dim=4,
            token_shape=(2, 2),
            install_model=lambda folder: (folder / "bundle.json").touch(),
        ):
            other = tmp_path / "other"
    fault = "was made with model bbbb" if change == "model" else "stores 100% of the tokens as int8"
    with pytest.raises(MapError, match=fault):
        adopt([other], fleet)
    assert files_of(fleet) == before


def test_a_damaged_map_is_refused_by_name(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    adopt([build(tmp_path / "a", range(3))], fleet)
    before, other = files_of(fleet), build(tmp_path / "b", range(8), drive="b")
    segment = other / "segments" / "000002.safetensors"
    content = bytearray(segment.read_bytes())
    content[-100] ^= 1
    segment.write_bytes(content)
    with pytest.raises(MapError, match=r"b/segments/000002.safetensors is damaged \(the tokens of 'b/00.*nothing"):
        adopt([other], fleet)
    assert files_of(fleet) == before
    assert not (fleet / "staging").exists()


def test_a_second_publisher_is_told(tmp_path: Path) -> None:
    fleet, path = tmp_path / "fleet", build(tmp_path / "a", range(3))
    adopt([path], fleet)
    with (
        lock_file(fleet / "lock", "pairvpr fleet publisher"),
        pytest.raises(MapError, match=rf"is being published to by process {os.getpid()} on .*: run the command again"),
    ):
        adopt([path], fleet)


def test_a_publisher_without_locks_loses_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a share that does not lock, the later one of two says so."""
    fleet = tmp_path / "fleet"
    first, second = (build(tmp_path / name, range(3), drive=name) for name in "ab")
    adopt([build(tmp_path / "c", range(2), drive="c")], fleet)
    check = publishing.check_parts

    def publish_between(parts, progress) -> None:
        monkeypatch.setattr(publishing, "check_parts", check)
        (fleet / "lock").rename(fleet / "lock-of-another")
        adopt([second], fleet)
        check(parts, progress)

    monkeypatch.setattr(publishing, "check_parts", publish_between)
    with pytest.raises(MapError, match="was published to by another program meanwhile: run the command again"):
        adopt([first], fleet)
    assert set(content(fleet)) == {"b/000.jpg", "b/001.jpg", "b/002.jpg", "c/000.jpg", "c/001.jpg"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("at", range(1, 30, 3))
def test_a_full_disk_leaves_the_current_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, number: int
) -> None:
    """The disk fails at one of the steps that bring content to it."""
    fleet, path = tmp_path / "fleet", build(tmp_path / "a", range(6))
    adopt([build(tmp_path / "b", range(3), drive="b")], fleet)
    before, calls, sync = content(fleet), [0], os.fsync

    def fail(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        try:
            adopt([path], fleet)
        except MapError as error:
            assert "cannot be written" in str(error)  # noqa: PT017
            assert content(fleet) in (before, before | content_at(path))
    adopt([path], fleet)
    assert content(fleet) == before | content_at(path)
    collect(fleet)
    assert content(fleet) == before | content_at(path)


KILLED = """
import os, sys
from pairvpr.runtime.fleet.publishing import adopt
from pairvpr.runtime.fleet.recognizer import FleetRecognizer
left, fsync = [int(sys.argv[3])], os.fsync
def kill(descriptor):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), 9)
    fsync(descriptor)
os.fsync = kill
adopt([sys.argv[1]], sys.argv[2])
"""


def test_a_killed_publisher_leaves_a_version(tmp_path: Path) -> None:
    fleet, path = tmp_path / "fleet", build(tmp_path / "a", range(12))
    adopt([build(tmp_path / "b", range(3), drive="b")], fleet)
    before = content(fleet)
    killed = 0
    for at in (1, 4, 8, 12, 16, 20, 23, 24):
        done = subprocess.run([sys.executable, "-c", KILLED, path, fleet, str(at)], check=False)
        killed += done.returncode == -9
        assert content(fleet) in (before, before | content_at(path))
    assert killed >= 4
    adopt([path], fleet)
    collect(fleet)
    assert content(fleet) == before | content_at(path)
    held = set(files_of(fleet))
    model = read(fleet)
    wanted = {"fleet.json", model.file}
    wanted |= {f"{tile.folder}/{name}" for tile in model.tiles for name in tile.files}
    assert held == wanted | {f"{model.model_folder}/{name}" for name in model.model}


@pytest.mark.parametrize("file", ["fleet.json", "000001-*.json", "map.sqlite"])
def test_a_changed_byte_is_refused_by_name(tmp_path: Path, file: str) -> None:
    fleet = tmp_path / "fleet"
    adopt([build(tmp_path / "a", range(3))], fleet)
    found = next(fleet.rglob(file))
    raw = bytearray(found.read_bytes())
    raw[len(raw) // 2] ^= 1
    found.unlink()  # it may be linked
    found.write_bytes(raw)
    with pytest.raises(MapError, match="is damaged"):
        content(fleet)


def test_a_newer_format_and_a_forged_version_are_refused(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    adopt([build(tmp_path / "a", range(3))], fleet)
    current = read(fleet)
    for change, fault in [
        (lambda fields: fields.update(format=2), "newer pairvpr"),
        (lambda fields: fields["tiles"][0].update(id="../x"), "is not a tile's id"),
        (lambda fields: fields["tiles"][0]["files"].update({"../x": {}}), "has a file"),
        (lambda fields: fields["model"].update({"a/b": {}}), "has a file"),
        (lambda fields: fields["map"].update(identity="../.."), "is not the name of a file"),
        (lambda fields: fields["tiles"][0].update(digest="0" * 64), "is not the one of its files"),
    ]:
        fields = json.loads(current.encode())
        change(fields)
        raw = json.dumps(fields).encode()
        sha256 = hashlib.sha256(raw).hexdigest()
        (fleet / version.version_file(1, sha256)).write_bytes(raw)
        (fleet / "fleet.json").write_bytes(version.encode_start(1, sha256))
        with pytest.raises(MapError, match=fault):
            read(fleet)


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    path = build(tmp_path / "a", range(3))
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "notes.txt").write_text("mine")
    with pytest.raises(MapError, match="is not empty and holds no fleet"):
        adopt([path], tmp_path / "fleet")
    with pytest.raises(MapError, match="holds no fleet: publish maps there"):
        collect(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_fleet_without_its_first_file_is_refused(tmp_path: Path) -> None:
    """The message says how to write it again."""
    path, fleet = build(tmp_path / "a", range(6)), tmp_path / "fleet"
    adopt([path], fleet)
    adopt([build(tmp_path / "b", range(3), drive="b")], fleet)
    expected, start = content(fleet), (fleet / "fleet.json").read_text()
    (fleet / "fleet.json").unlink()
    before = files_of(fleet)
    for action in (lambda: adopt([path], fleet), lambda: collect(fleet), lambda: read(fleet)):
        with pytest.raises(
            MapError, match=r"fleet.json is missing, but .*restore it from a copy, or write \{"
        ) as caught:
            action()
        assert start.strip() in str(caught.value)
    assert files_of(fleet) == before
    (fleet / "fleet.json").write_text(start)
    assert content(fleet) == expected
    for name in ("fleet.json", *(file.name for file in (fleet / "versions").iterdir())):
        next(fleet.rglob(name)).unlink()
    with pytest.raises(MapError, match=r"fleet.json is missing, but .*: restore the folder from a copy$"):
        adopt([path], fleet)


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("fault", ["damaged", "clash", "full"])
def test_a_refused_first_publication_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, existed: bool
) -> None:
    fleet, maps = tmp_path / "fleet", [build(tmp_path / "a", range(6))]
    if existed:
        fleet.mkdir()
    if fault == "damaged":
        segment = maps[0] / "segments" / "000001.safetensors"
        segment.write_bytes(segment.read_bytes()[:-100] + bytes(100))
    elif fault == "clash":
        maps.append(build(tmp_path / "b", range(3), same=1))

    def fail(*_: object) -> None:
        raise MapError("cannot be written")

    if fault == "full":
        monkeypatch.setattr(publishing, "commit", fail)
    with pytest.raises(MapError):
        adopt(maps, fleet)
    assert list(fleet.iterdir()) == [] if existed else not fleet.exists()


def test_a_killed_first_publisher_can_run_again(tmp_path: Path) -> None:
    fleet, path = tmp_path / "fleet", build(tmp_path / "a", range(12))
    states = set()
    for at in (3, 12, 20, *range(24, 50)):
        subprocess.run([sys.executable, "-c", KILLED, path, fleet, str(at)], check=False)
        states |= {name for name in ("tiles", "versions") if (fleet / name).exists()}
        if (fleet / "fleet.json").exists():
            break
    assert states == {"tiles", "versions"}
    adopt([path], fleet)
    assert content(fleet) == content_at(path)


@pytest.mark.parametrize("address", ["http://localhost:1/fleet", "https://a.b/fleet", "ftp://a/b", "s3://bucket/f"])
def test_an_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    build(tmp_path / "a", range(3))
    for arguments in (
        ["fleet", "adopt", "a"],
        ["fleet", "build", "a"],
        ["fleet", "info"],
        ["fleet", "gc"],
        ["fleet", "serve", "--listen", "127.0.0.1:0"],
    ):
        result = CliRunner().invoke(main, [*arguments, "--fleet", address])
        assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
        assert f"{address} is an address, which only `pairvpr fleet pull` reads" in result.output
    with pytest.raises(MapError, match="is an address"):
        FleetRecognizer.open(address)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def spoil(file: Path, how: str) -> None:
    raw = bytearray(file.read_bytes())
    file.unlink()  # it may be linked
    if how == "byte":
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    elif how == "cut":
        file.write_bytes(raw[:-1])


@pytest.mark.parametrize("how", ["byte", "cut", "missing", "folder"])
@pytest.mark.parametrize("kind", ["map.sqlite", "*.safetensors"])
def test_a_damaged_tile_is_replaced_by_its_map(tmp_path: Path, kind: str, how: str) -> None:
    fleet, path, other = tmp_path / "fleet", build(tmp_path / "a", range(20)), build(tmp_path / "b", [0], drive="b")
    adopt([path, other], fleet)
    expected = content(fleet)
    tile = max(read(fleet).tiles, key=lambda tile: tile.pictures)
    file = next((fleet / tile.folder).rglob(kind))
    if how == "folder":
        shutil.rmtree(fleet / tile.folder)
    else:
        spoil(file, how)
    before = files_of(fleet)
    if (kind, how) != ("*.safetensors", "byte"):  # found by a publication of these pictures alone
        with pytest.raises(MapError, match=f"{tile.digest}/.*`pairvpr fleet adopt`.*the given maps do not have its"):
            adopt([other], fleet)
    assert files_of(fleet) == before
    report = adopt([path], fleet)
    assert (report.version, report.added, report.replaced) == (2, tile.pictures, 1)
    assert content(fleet) == expected
    collect(fleet)
    assert content(fleet) == expected
    assert read(fleet).meta.records == 21


def test_a_tile_is_never_changed(tmp_path: Path) -> None:
    """Not even a damaged one by its repair. The messages name the remedy that helps."""
    fleet = tmp_path / "fleet"
    adopt([build(tmp_path / "a", range(5))], fleet)
    tile = fleet / read(fleet).tiles[0].folder

    def run(*arguments: str) -> str:
        before = files_of(fleet)
        result = CliRunner().invoke(main, ["map", *arguments, "--db", str(tile)])
        assert (result.exit_code, files_of(fleet), (tile / "lock").exists()) == (2, before, False)
        return result.output

    assert "is missing" not in CliRunner().invoke(main, ["map", "verify", "--db", str(tile)]).output
    (tile / "map.sqlite").write_bytes((tile / "map.sqlite").read_bytes()[:5000])
    for arguments in (
        ["verify", "--repair"],
        ["remove", "a/001.jpg"],
        ["compact"],
        ["index", "--precision", "float16"],
        ["add", str(tmp_path)],
        ["build", str(tmp_path)],
    ):
        assert "is a tile of a fleet, which never changes; change the map" in run(*arguments)
    for output in (run("verify"), run("info")):
        assert "publish the map that this tile of a fleet came from again" in output
        assert "--repair" not in output
    result = CliRunner().invoke(main, ["fleet", "adopt", str(tmp_path / "a"), "--fleet", str(fleet)])
    assert "5 pictures added in 1 tile, 0 already there, 1 damaged tile replaced" in result.output


def test_places() -> None:
    assert quadkey(0, 0, 1) == "3"
    assert quadkey(47.61, -122.33, 9) == "021230030"
    assert quadkey(90, 180, 3) == "111"
    for degrees in (0.0, 48.0, -70.0, 179.99):
        position = Gps(min(degrees, 80.0), degrees)
        east = Gps(position.latitude, position.longitude + 0.01)
        box = (east.latitude, east.longitude, east.latitude, east.longitude)
        assert reaches(box, position, 1120)
        assert not reaches(box, position, 100)
    assert reaches((10, -179.999, 10, -179.999), Gps(10, 179.999), 300)
    assert reaches((89.99, 100, 89.99, 100), Gps(89.99, -80), 3000)
    assert not reaches((48, 11, 48.1, 11), gps_of(300), 1000)


def test_the_commands(tmp_path: Path) -> None:
    build(tmp_path / "a", range(8))
    fleet = tmp_path / "fleet"

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(main, ["fleet", *map(str, arguments), "--fleet", str(fleet)])
        assert result.exit_code == 0, result.output
        return result.output

    assert "version 1, 8 pictures added in 2 tiles, 0 already there" in run("adopt", tmp_path / "a")
    assert "pictures           8" in run("info")
    info = json.loads(run("info", "--json"))
    assert (info["version"], info["pictures"], len(info["tiles"])) == (1, 8, 2)
    assert sum(tile["pictures"] for tile in info["tiles"]) == 8
    build(tmp_path / "a", [8])
    run("adopt", tmp_path / "a")
    assert "1 file deleted" in run("gc")
    result = CliRunner().invoke(main, ["fleet", "info", "--fleet", str(tmp_path / "a")])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "holds no fleet" in result.output
