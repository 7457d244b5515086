"""A map keeps the keyframes of a drive, and an interrupted build keeps the same ones."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr.cli.main import main as pairvpr
from pairvpr.errors import SourceError
from pairvpr.runtime import Model, load_model
from pairvpr.runtime.geometry.poses import Place, Pose
from pairvpr.runtime.map import Map
from pairvpr.runtime.mapping import builder as builder_module
from pairvpr.runtime.mapping.builder import BuildOptions, add_pictures
from pairvpr.runtime.mapping.keyframes import KeyframeSelector
from tests.scenes import draw_scene

SIZE = (96, 128)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model()


def at(x: float) -> Place:
    return Place(Pose(x, 0, 0))


def test_distance_is_from_the_last_one_kept() -> None:
    selector = KeyframeSelector(min_distance=1)
    assert [selector.select(at(x), None) for x in (0, 0.6, 1.2, 1.8, 2.2)] == [True, False, True, False, True]
    assert not selector.select(Place(), None)
    assert selector.left_out == 3


def test_change_is_from_the_last_one_kept() -> None:
    selector = KeyframeSelector(min_change=0.1)
    views = [np.array([math.cos(a), math.sin(a)], np.float32) for a in (0, 0.3, 0.5, 0.6, 1.0)]
    assert [selector.select(Place(), view) for view in views] == [True, False, True, False, True]


def test_distance_and_change_are_combined() -> None:
    selector, same, other = KeyframeSelector(1, 0.5), np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    assert selector.select(at(0), same)
    assert not selector.select(at(5), same)
    assert not selector.select(at(0.5), other)
    assert selector.select(at(5), other)


def drive(folder: Path) -> Path:
    """Twelve pictures, of which three each show the same place, and one is broken; a metre apart."""
    (folder / "in").mkdir()
    for i in range(12):
        Image.fromarray(draw_scene(i // 3, 0, SIZE)).save(folder / "in" / f"{i:02}.png")
    (folder / "in" / "04.png").write_bytes(b"broken")
    lines = [f"{i:02}.png,{i},0,0,0,0,0,1" for i in range(12)]
    (folder / "poses.csv").write_text("\n".join(["name,x,y,z,qx,qy,qz,qw", *lines]))
    return folder / "in"


def names(db: Path) -> list[str]:
    with Map.open(db) as map_:
        return [record.name for record in map_.records]


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({"min_distance": 2}, ["00", "02", "05", "07", "09", "11"]),  # 04 would be next, if it could be read
        ({"min_change": 1e-4}, ["00", "03", "06", "09"]),
        ({"min_change": 1e-4, "min_distance": 4}, ["00", "05", "09"]),
    ],
)
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_map_of_fewer_pictures(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, asked: dict, kept: list[str], interrupted: bool
) -> None:
    monkeypatch.setattr(builder_module, "ENCODE_BATCH", 3)
    images, db = drive(tmp_path), tmp_path / "map"
    options = BuildOptions(poses=tmp_path / "poses.csv", **asked)

    def interrupt(done: int, total: int | None) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            add_pictures(images, db, model, options, create=True, progress=interrupt)
        assert names(db) == [f"{name}.png" for name in kept if name < "06"]
    report = add_pictures(images, db, model, options, create=True)
    assert names(db) == [f"{name}.png" for name in kept]
    assert report.added + report.already == len(kept)
    assert report.left_out == 11 - len(kept)
    again = add_pictures(images, db, model, options, create=True)
    assert (again.added, again.already) == (0, len(kept))


def test_min_distance_needs_places(tmp_path: Path, model: Model) -> None:
    images, db = drive(tmp_path), tmp_path / "map"
    with pytest.raises(SourceError, match="none of its 11 pictures has a place, which --min-distance needs; give --po"):
        add_pictures(images, db, model, BuildOptions(min_distance=1), create=True)
    assert not db.exists()


def test_the_command_says_what_it_left_out(tmp_path: Path) -> None:
    images = drive(tmp_path)
    arguments = ["map", "build", str(images), "--db", str(tmp_path / "map"), "--poses", str(tmp_path / "poses.csv")]
    result = CliRunner().invoke(pairvpr, [*arguments, "--min-distance", "5", "--min-change", "0"])
    assert result.exit_code == 0, result.stderr
    assert (
        "3 pictures added, 3 with a place, 0 already there, 1 could not be read, 8 left out by --min" in result.stdout
    )
