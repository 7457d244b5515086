"""Test the index on disk: it is kept, rebuilt, and never half written."""

from __future__ import annotations

import os
import pickle
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pairvpr.data import GsvCities, SfXl
from pairvpr.data.index import Row, open_index
from pairvpr.errors import SourceError
from tests.data import trees

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/pairvpr"


@pytest.fixture
def root(tmp_path):
    return trees.gsv_cities(tmp_path / "data", pictures=False)


def unread():
    raise AssertionError("the rows were read")
    yield


def index_of(root, rows, file="", **more):
    more = {"min_pictures": 1, **more}
    return open_index("x", root, sources=[root / "Dataframes/London.csv"], rows=rows, file=str(file), **more)


def test_rows_come_back_by_place(root):
    rows = [Row("b", 10, "q"), Row("a", "t", "z", 1.0, 2.0, 3.0, 4.0), Row("b", 9, "r"), Row("a", "t", "y")]
    index = index_of(root, iter(rows))
    assert index.groups == (1, 2)
    assert index.place(0) == ("a/t", [rows[3], rows[1]])
    assert [index.place(i)[0] for i in (1, 2)] == ["b/9", "b/10"]


def test_small_places_are_left_out(root):
    spots = [(1, 0, 0), (2, 0, 0), (2, 0.5, 0.9), (3, 0, 0), (3, 0.1, 1.5), (4, 7, 0), (4, 9, 0), (5, None, None)]
    rows = [Row("", place, str(i), east, north) for i, (place, east, north) in enumerate([*spots, spots[-1]])]
    assert index_of(root, rows, min_pictures=2).groups == (4,)
    index = index_of(root, rows, min_pictures=2, min_extent=1.0)
    assert [index.place(i)[0] for i in range(2)] == ["3", "4"]
    assert index.groups == (2,)
    assert index_of(root, rows, min_pictures=3).groups == ()


def test_an_index_is_kept(root, tmp_path, cache):
    index = index_of(root, [Row("", 1, "a")])
    assert index.file.parent == cache
    assert index_of(root, unread()) == index
    named = index_of(root, [Row("", 1, "a")], tmp_path / "deep/er/x.sqlite")
    assert index_of(root, unread(), tmp_path / "deep/er/x.sqlite") == named
    with pytest.raises(AssertionError, match="were read"):
        index_of(root, unread(), min_pictures=2)


@pytest.mark.parametrize("named", [False, True])
def test_a_stale_index_is_rebuilt(named, root, tmp_path):
    file = str(tmp_path / "x.sqlite") if named else ""
    before = GsvCities(str(root), index=file)
    table = root / "Dataframes/London.csv"
    text = table.read_text()
    table.write_text(text + text.split("\n", 1)[1].replace("_", "a").replace("130,", "131,"))
    after = GsvCities(str(root), index=file)
    assert (before.groups, after.groups) == ((1, 2), (1, 3))
    # The same size, but another time.
    table.write_text(table.read_text().replace("131,", "130,"))
    os.utime(table, (1, 1))
    assert GsvCities(str(root), index=file).groups == (1, 2)
    if named:
        with pytest.raises(SourceError, match="another run rebuilt this index for other data"):
            after.place(0, RNG)
    else:
        assert after.place(2, RNG).name == "London/131"


def test_a_panorama_more_makes_an_index_stale(tmp_path):
    root = trees.sf_xl(tmp_path / "data", [(1, 1, 0), (4, 4, 0)])
    assert len(SfXl(str(root))) == 1
    trees.sf_xl(root, [(16, 1, 0), (19, 4, 0)])
    assert len(SfXl(str(root))) == 2


def test_an_interruption_leaves_nothing(root, tmp_path, cache):
    def rows():
        for number in range(5000):
            yield Row("", number, "a" * 100)
        assert [file.suffix for file in cache.iterdir()] == [".partial"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_of(root, rows())
    assert list(cache.iterdir()) == []
    assert index_of(root, [Row("", 1, "a")]).groups == (1,)


def test_a_kill_leaves_no_index(root, cache):
    """What is left of it is not taken for an index, nor in the way of one."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom pairvpr.data.index import Row, open_index\n"
        "def rows():\n    yield from (Row('', n, 'a' * 100) for n in range(50000))\n    os.kill(os.getpid(), 9)\n"
        "root = Path(sys.argv[1])\n"
        "open_index('x', root, sources=[root / 'Dataframes/London.csv'], rows=rows(), min_pictures=1)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(root)], cwd=ROOT, timeout=60).returncode == -9
    assert [file.suffix for file in cache.iterdir()] == [".partial"]
    assert index_of(root, [Row("", 1, "a")]).groups == (1,)


def test_several_at_once_are_harmless(root, cache):
    with ThreadPoolExecutor(4) as pool:
        groups = list(pool.map(lambda _: GsvCities(str(root)).groups, range(8)))
    assert groups == [(1, 2)] * 8
    assert len(list(cache.iterdir())) == 1


def test_copies_open_the_file_themselves(root):
    places = GsvCities(str(root))
    places.place(0, RNG)
    copied = pickle.loads(pickle.dumps(places))
    assert copied.place(0, RNG).name == "Boston/130"
    places.index.file.unlink()
    with pytest.raises(SourceError, match=r"sqlite: missing, damaged or not an index of pictures"):
        copied.place(0, RNG)


def test_other_files_are_not_overwritten(root, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine, and long enough that SQLite looks at its first page\n" * 20)
    with sqlite3.connect(tmp_path / "mine.sqlite") as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    for file in (notes, tmp_path / "mine.sqlite", root):
        with pytest.raises(SourceError, match="not an index of pictures") as caught:
            GsvCities(str(root), index=str(file))
        assert "\n" not in str(caught.value)
    assert notes.read_text().startswith("mine")


def test_a_folder_that_cannot_be_written_is_told(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match=r"x\.sqlite: cannot be written .*argument index"):
        GsvCities(str(root), index=str(tmp_path / "file/x.sqlite"))
