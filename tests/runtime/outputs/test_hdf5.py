"""hloc finds the descriptors of a map's pictures under their names."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pairvpr.cli.main import main
from pairvpr.errors import MapError
from pairvpr.runtime import Map, build_map
from pairvpr.runtime.outputs.hdf5 import write_descriptors
from tests.scenes import draw_scene

NAMES = ("floor0/p0.png", "floor0/p1.png", "floor1/night drive/p0.png", "p2.png")


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    for place, name in enumerate(NAMES):
        (home / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_scene(place, 0, (96, 128))).save(home / "pictures" / name)
    build_map(home / "pictures", home / "map")
    return home / "map"


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["map", *map(str, words)])


def list_names(file: h5py.File) -> set[str]:
    """List the pictures of a file in the way of hloc: the groups that hold data sets."""
    names = set()

    def visit(_: str, member: h5py.Group | h5py.Dataset) -> None:
        if isinstance(member, h5py.Dataset):
            names.add(member.parent.name.strip("/"))

    file.visititems(visit)
    return names


def test_every_picture_has_its_descriptor(db: Path, tmp_path: Path) -> None:
    out = tmp_path / "descriptors.h5"
    out.write_text("an earlier file")
    result = run("export", "--db", db, "--out", out)
    assert (result.exit_code, result.stderr) == (0, "")
    with Map.open(db) as map_, h5py.File(out) as file:
        assert result.stdout == f"{out}: 4 descriptors of {map_.descriptors.shape[1]} numbers\n"
        assert list_names(file) == {record.name for record in map_.records} == set(NAMES)
        for record, descriptor in zip(map_.records, map_.descriptors, strict=True):
            stored = file[record.name]["global_descriptor"].__array__()
            assert stored.dtype == np.float32
            np.testing.assert_array_equal(stored, descriptor)
    assert list(tmp_path.iterdir()) == [out]


def test_names_alone_are_an_image_list(db: Path) -> None:
    result = run("list", "--db", db, "--format", "names")
    assert (result.exit_code, result.stdout.splitlines()) == (0, list(NAMES))


def test_a_file_that_cannot_be_written_is_told_in_one_line(db: Path, tmp_path: Path) -> None:
    result = run("export", "--db", db, "--out", tmp_path / "nowhere" / "descriptors.h5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "cannot be written" in result.stderr


def test_h5py_is_named_where_it_is_missing(db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.delitem(sys.modules, "pairvpr.runtime.outputs.hdf5", raising=False)
    result = run("export", "--db", db, "--out", tmp_path / "descriptors.h5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "needs h5py" in result.stderr
    assert 'pip install "pairvpr[hloc]"' in result.stderr


def test_a_name_below_the_data_of_another_is_refused(tmp_path: Path) -> None:
    """HDF5 has one tree of names, as a file system has."""
    records = [SimpleNamespace(name=name) for name in ("a", "a/global_descriptor")]
    clashing: Any = SimpleNamespace(path=tmp_path / "map", records=records, descriptors=np.zeros((2, 4), np.float32))
    with pytest.raises(MapError, match=r"map: the name 'a/global_descriptor' cannot stand in an HDF5 file"):
        write_descriptors(clashing, tmp_path / "descriptors.h5")
    assert not list(tmp_path.iterdir())
