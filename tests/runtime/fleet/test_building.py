"""Parts of a source, built side by side, make the pictures of one map."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr.cli.main import main
from pairvpr.errors import MapError, SourceError
from pairvpr.runtime import build_map
from pairvpr.runtime.fleet import building
from pairvpr.runtime.fleet.building import build_fleet
from pairvpr.runtime.fleet.storage import FolderStorage
from pairvpr.runtime.fleet.tiles import open_tiles
from pairvpr.runtime.fleet.version import read_current
from pairvpr.runtime.map import Map
from pairvpr.runtime.mapping.builder import BuildOptions
from tests.runtime.fleet.fleets import content_at, content_of
from tests.scenes import draw_scene

COUNT = 14


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    lines = ["name,latitude,longitude"]
    for place in range(COUNT):
        name = f"p{place:02d}.png"
        Image.fromarray(draw_scene(place, 0, (96, 128))).save(folder / name)
        lines.append(f"{name},{48 + place / 1000},11")
    (folder / "poses.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def one(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("maps") / "one"
    build_map(pictures, path, poses=pictures / "poses.csv")
    return path


def assert_same(fleet: Path, one: Path) -> None:
    with open_tiles(fleet, read_current(FolderStorage(fleet))) as opened, Map.open(one) as expected:
        assert opened.records.names() == expected.records.names()
        assert content_of(opened) == content_at(one)


def run(pictures: Path, fleet: Path, *options: str) -> dict:
    arguments = ["fleet", "build", str(pictures), "--fleet", str(fleet), "--poses", str(pictures / "poses.csv")]
    result = CliRunner().invoke(main, [*arguments, *options])
    assert result.exit_code == 0, result.output
    return json.loads(CliRunner().invoke(main, ["fleet", "info", "--fleet", str(fleet), "--json"]).output)


def test_parts_make_the_pictures_of_one_map(pictures: Path, one: Path, tmp_path: Path) -> None:
    info = run(pictures, tmp_path / "fleet", "--shards", "3")
    assert (info["version"], info["pictures"]) == (1, COUNT)
    assert_same(tmp_path / "fleet", one)
    assert not (tmp_path / "fleet.work").exists()
    assert run(pictures, tmp_path / "fleet", "--shards", "3") == info


def test_an_interrupted_build_goes_on(
    pictures: Path, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, built = building.add_pictures, list[str]()

    def fail_once(images, db, *arguments, **options):
        built.append(Path(db).name)
        if len(built) == 2:
            raise KeyboardInterrupt
        return add(images, db, *arguments, **options)

    monkeypatch.setattr(building, "add_pictures", fail_once)
    with pytest.raises(KeyboardInterrupt):
        build_fleet(pictures, tmp_path / "fleet", 3)
    assert not (tmp_path / "fleet").exists()
    reports, published = build_fleet(pictures, tmp_path / "fleet", 3)
    assert [(report.added, report.already) for report in reports] == [(0, 4), (5, 0), (5, 0)]
    assert published.added == COUNT


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other pictures, in files of which some have the names of `pictures`."""
    folder = tmp_path_factory.mktemp("others")
    for number in range(12, 16):
        Image.fromarray(draw_scene(number + 20, 0, (96, 128))).save(folder / f"p{number:02d}.png")
    return folder


def interrupt(monkeypatch: pytest.MonkeyPatch, images: Path, fleet: Path, **options: object) -> None:
    """Build the first part alone."""
    add, done = building.add_pictures, list[str]()

    def fail_second(*arguments, **more):
        if done:
            raise KeyboardInterrupt
        done.append("")
        return add(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(building, "add_pictures", fail_second)
        with pytest.raises(KeyboardInterrupt):
            build_fleet(images, fleet, 2, **options)


@pytest.mark.parametrize("work", [None, "work"])
def test_parts_of_another_source_are_not_published(
    pictures: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str | None
) -> None:
    where = None if work is None else tmp_path / work
    interrupt(monkeypatch, others, tmp_path / "fleet", work=where)
    reports, published = build_fleet(pictures, tmp_path / "fleet", 2, work=where)
    assert ([report.already for report in reports], published.added) == ([0, 0], COUNT)
    with open_tiles(tmp_path / "fleet", read_current(FolderStorage(tmp_path / "fleet"))) as opened:
        assert {record.source for record in opened.records} == {str(pictures)}


def test_parts_of_other_options_or_pictures_are_not_published(
    others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    shutil.copytree(others, images)
    interrupt(monkeypatch, images, tmp_path / "fleet")
    (images / "p12.png").unlink()
    interrupt(monkeypatch, images, tmp_path / "fleet")
    reports, _ = build_fleet(images, tmp_path / "fleet", 2, options=BuildOptions(thumbnails=0))
    assert [(report.added, report.already) for report in reports] == [(1, 0), (2, 0)]
    with open_tiles(tmp_path / "fleet", read_current(FolderStorage(tmp_path / "fleet"))) as opened:
        assert opened.records.names() == ["p13.png", "p14.png", "p15.png"]
        assert opened.read_thumbnail(opened.records[0]) is None


@pytest.mark.parametrize("known", [True, False])
def test_a_name_of_another_source_is_refused(
    pictures: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Before anything is built, if the names are known. No part is left behind, so that other sources can follow."""
    build_fleet(others, tmp_path / "fleet", 2)
    with monkeypatch.context() as patch:
        if known:
            patch.setattr(building, "add_pictures", None)
        else:
            patch.setattr(building, "_check_names", lambda *_: None)
        with pytest.raises(MapError) as caught:
            build_fleet(pictures, tmp_path / "fleet", 2)
    assert str(caught.value).startswith(
        f"{pictures}: {tmp_path / 'fleet'} already holds another picture 'p12.png'; move"
    )
    assert "part0" not in str(caught.value)
    assert not (tmp_path / "fleet.work").exists()
    (tmp_path / "more").mkdir()
    shutil.copytree(pictures, tmp_path / "more" / "drive")
    assert build_fleet(tmp_path / "more", tmp_path / "fleet", 2)[1].added == COUNT


def test_bad_input(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has 14 pictures, fewer than 20 parts; give --shards 14"):
        build_fleet(pictures, tmp_path / "fleet", 20)
    with pytest.raises(SourceError, match="is not a file, folder"):
        build_fleet(tmp_path / "nothing", tmp_path / "fleet", 2)
    assert list(tmp_path.iterdir()) == []
    result = CliRunner().invoke(main, ["fleet", "build", str(pictures), "--fleet", "x", "--part", "1/2"])
    assert (result.exit_code, "give --shards" in result.output) == (2, True)


def test_another_model_is_refused(pictures: Path, descriptor_bundle: Path, tmp_path: Path) -> None:
    build_fleet(pictures, tmp_path / "fleet", 1)
    with pytest.raises(MapError, match=r"was made with model .*, not with dddddddddddd"):
        build_fleet(pictures, tmp_path / "fleet", 1, model=descriptor_bundle)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
@pytest.mark.slow
def test_killed_tasks_build_the_same(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tasks of their own, of which one is killed."""
    killed, stop = list[int](), threading.Event()

    def kill() -> None:
        while not stop.wait(0.01) and not killed:
            for each in Path("/proc").iterdir():
                if (
                    each.name.isdecimal()
                    and b"ray::build_part" in _read(each / "cmdline")
                    and any((tmp_path / "fleet.work").glob("*/part*/map.sqlite"))
                ):
                    os.kill(int(each.name), signal.SIGKILL)
                    killed.append(int(each.name))
                    break

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        _, published = build_fleet(pictures, tmp_path / "fleet", 2, address="local")
    finally:
        stop.set()
        killer.join()
    assert (len(killed), published.added) == (1, COUNT)
    build_fleet(pictures, tmp_path / "alone", 2)
    digests = [
        [tile.digest for tile in read_current(FolderStorage(tmp_path / name)).tiles] for name in ("fleet", "alone")
    ]
    assert digests[0] == digests[1]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
