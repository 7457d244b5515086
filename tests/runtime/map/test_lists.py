"""A map keeps its inverted lists through every change, or says that they cannot be used."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pairvpr.cli.main import main
from pairvpr.errors import MapError
from pairvpr.runtime import load_model
from pairvpr.runtime.inverted_lists import ListRecall
from pairvpr.runtime.map import Map, MapWriter, merge_maps, repair_map, verify_map
from pairvpr.runtime.map.list_file import FOLDER, ListEntry, StoredLists, write_lists
from pairvpr.runtime.map.meta import LISTS
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.tokens import StoredTokens
from pairvpr.runtime.mapping.builder import BuildOptions, open_writer
from pairvpr.runtime.mapping.map_index import make_lists
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.search import FaissIndex
from pairvpr.runtime.view import follow_index, open_index

PICTURES = 1200


def descriptors_of(numbers: range, dim: int) -> np.ndarray:
    """Descriptors of a drive past a place every 40 pictures."""
    found = []
    for number in numbers:
        place = np.random.default_rng(number // 40).standard_normal(dim)
        found.append(place + 0.3 * np.random.default_rng(10**6 + number).standard_normal(dim))
    array = np.array(found, np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def add(path: Path, numbers: range) -> None:
    with MapWriter.edit(path) as writer:
        count, width = writer.meta.token_shape
        tokens = StoredTokens(np.zeros((count, width), np.int8), np.ones(count, np.float32))
        for number, descriptor in zip(numbers, descriptors_of(numbers, writer.meta.descriptor_dim), strict=True):
            crcs = zlib.crc32(descriptor), tokens.crc()
            writer.adopt(Record(0, f"n{number}.jpg", "/n", None, None, None, 0, 0, *crcs), descriptor, tokens)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "map"
    with open_writer(path, load_model(None, "cpu"), True, BuildOptions(token_type="int8", keep_tokens=1e-6)):
        pass
    add(path, range(PICTURES))
    make_lists(path)
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(made, tmp_path / "map"))


def run(*command: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["map", *map(str, command)])
    return result.exit_code, result.output


def entry_of(path: Path) -> ListEntry | None:
    with Map.open(path, descriptors=False) as map_:
        return map_.lists


def test_searches_use_the_lists_and_find_nearly_all(path: Path) -> None:
    with Map.open(path) as map_:
        index, exact = open_index(map_), FaissIndex(map_.descriptors, "float16")
        assert map_.index_precision == "float16"
        shares = []
        for query in descriptors_of(range(5000, 5040), map_.descriptors.shape[1])[:, None]:
            shares.append(len(np.intersect1d(index.search(query, 5)[1], exact.search(query, 5)[1])) / 5)
        own = [index.search(query, 1)[1][0] for query in map_.descriptors[:, None]]
        assert own == list(range(PICTURES))
    assert np.mean(shares) > 0.5  # of places that the map does not hold


def test_info_and_index_print_the_recall(path: Path) -> None:
    code, output = run("index", "--ivf", "--db", path)
    assert code == 0
    entry = entry_of(path)
    assert entry is not None
    assert f"{entry.lists} lists of {PICTURES} pictures, float16; a search compares {entry.probes} lists" in output
    assert f"finds {entry.at_100:.1%} of the nearest 100" in output
    assert "held out of training" in output
    for line in output.splitlines()[1:]:
        assert line.strip() in run("info", "--db", path)[1]
    shown = json.loads(run("info", "--db", path, "--format", "jsonl")[1])
    assert shown["lists"] == {**entry.to_json(), "unlisted": 0}
    assert run("index", "--precision", "float32", "--db", path) == (0, f"{path}: searched in float32\n")
    assert "none: all descriptors are compared" in run("info", "--db", path)[1]
    with Map.open(path) as map_:
        assert (map_.lists, map_.index_precision, map_.read_lists()) == (None, "float32", None)
    for options in ([], ["--ivf", "--precision", "float16"]):
        code, output = run("index", *options, "--db", path)
        assert (code, "give --precision or --ivf, one of them" in output) == (2, True)


def test_too_few_or_too_even_pictures_give_one_line(path: Path) -> None:
    run("remove", *(f"n{number}.jpg" for number in range(300)), "--db", path)
    code, output = run("index", "--ivf", "--db", path)
    assert (code, len(output.splitlines())) == (2, 1)
    assert "has 900 pictures, and lists pay from 1000 on; leave --ivf out" in output


def test_changes_beside_a_reader(path: Path) -> None:
    snapshot = Map.open(path)
    index = open_index(snapshot)
    for step in (
        lambda: add(path, range(PICTURES, PICTURES + 70)),
        lambda: run("remove", "n7.jpg", f"n{PICTURES + 3}.jpg", "--db", path),
        lambda: run("compact", "--db", path),
        lambda: add(path, range(2000, 2010)),
    ):
        step()
        newer = snapshot.open_newer()
        assert newer is not None
        assert newer.lists == snapshot.lists
        index = follow_index(index, newer)
        snapshot.close()
        snapshot = newer
        with Map.open(path) as fresh:
            anew = open_index(fresh)
            assert [part.probes > 0 for part in anew._parts] == [True, False]
            for query in fresh.descriptors[::100][:, None]:
                for found, wanted in zip(index.search(query, 40), anew.search(query, 40), strict=True):
                    np.testing.assert_array_equal(found, wanted)
    make_lists(path)
    newer = snapshot.open_newer()
    assert newer is not None
    assert newer.change is None
    assert [part.probes > 0 for part in follow_index(index, newer)._parts] == [True]
    snapshot.close()
    newer.close()
    assert len(list((path / FOLDER).iterdir())) == 2  # a reader may be about to open the one before
    run("remove", "n9.jpg", "--db", path)
    assert len(list((path / FOLDER).iterdir())) == 1


def test_a_map_that_has_grown_asks_for_new_lists(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(path, range(PICTURES, PICTURES + 600))
    with PlaceRecognizer.open(path, device="cpu"):
        assert "in no list" not in caplog.text
    add(path, range(3000, 3001))
    with PlaceRecognizer.open(path, device="cpu"):
        assert "601 of its pictures are in no list" in caplog.text
    assert "601 pictures were added later" in run("info", "--db", path)[1]


def test_merged_pictures_are_compared(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with open_writer(other, load_model(None, "cpu"), True, BuildOptions(token_type="int8", keep_tokens=1e-6)):
        pass
    add(other, range(4000, 4010))
    merge_maps([other], path)
    with Map.open(path) as map_:
        assert (len(map_), map_.unlisted) == (PICTURES + 10, 10)
        assert open_index(map_).search(map_.descriptors[-1:], 1)[1] == [PICTURES + 9]


def test_lists_of_other_pictures_are_dropped(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Map.open(path, descriptors=False) as map_:
        state = map_._state
    records = [replace(record, id=record.id + 5) for record in state.records]
    with MapWriter.edit(path) as writer:
        writer.replace(state.meta, state.segments, state.records.of(records))
    assert "its lists are void" in caplog.text
    assert entry_of(path) is None


@pytest.mark.parametrize("fault", ["cut", "flipped", "missing", "link", "longer"])
def test_damaged_lists_are_named(path: Path, fault: str) -> None:
    entry = entry_of(path)
    assert entry is not None
    file = path / FOLDER / entry.file
    content = bytearray(file.read_bytes())
    file.unlink()
    if fault == "link":
        (path / "elsewhere").write_bytes(content)
        file.symlink_to(path / "elsewhere")
    elif fault != "missing":
        content[len(content) // 2] ^= fault == "flipped"
        file.write_bytes(content[:-9] if fault == "cut" else content + b"0" * (fault == "longer"))
    with pytest.raises(MapError, match=r"cannot be used .*make the lists again with `pairvpr map index --ivf --db"):
        Map.open(path)
    assert len(verify_map(path)) == 1
    assert run("info", "--db", path)[0] == 0
    repair_map(path)
    with Map.open(path) as map_:
        assert (len(map_), map_.lists, map_.index_precision) == (PICTURES, None, "float16")
    make_lists(path)
    assert verify_map(path) == []


@pytest.mark.parametrize(
    "change",
    [
        {"assigned": np.full(PICTURES, 10**6)},
        {"assigned": np.full(PICTURES, -1)},
        {"centroids": np.full((3, 1024), np.nan, np.float32)},
        {"centroids": np.ones((3, 8), np.float32)},
        {"ids": np.arange(PICTURES)},
        {"ids": np.arange(PICTURES, 0, -1)},
        {"ids": np.arange(2, PICTURES + 2)},
    ],
    ids=str,
)
def test_lists_of_strangers_are_checked(path: Path, change: dict[str, np.ndarray]) -> None:
    with Map.open(path) as map_:
        stored, entry = map_._stored_lists, map_.lists
    assert stored is not None
    assert entry is not None
    ids = change.pop("ids", stored.ids)
    forged = write_lists(path, 99, StoredLists(ids, replace(stored.lists, **change)), ListRecall(1, 1, 0.1, 1))
    with MapWriter.edit(path) as writer:
        writer._set_search("float16", forged)
    with pytest.raises(MapError, match="make the lists again"):
        Map.open(path)
    assert verify_map(path)


@pytest.mark.parametrize("value", [None, 3, {}, {"number": 1}, {"at_100": float("nan")}, {"probes": 0}, {"file": "/"}])
def test_forged_entries_are_damage(path: Path, value: object) -> None:
    entry = entry_of(path)
    assert entry is not None
    if isinstance(value, dict) and value and set(value) != {"number"}:
        value = {**entry.to_json(), **value}
    with pytest.raises(ValueError, match="lists"):
        ListEntry.from_json(value)


def test_a_failed_commit_leaves_the_map_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pairvpr.runtime.map import catalog

    before = entry_of(path)

    def fail(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(catalog, "update", fail)
    with pytest.raises(MapError, match="no room"):
        make_lists(path)
    monkeypatch.undo()
    assert entry_of(path) == before
    run("remove", "n9.jpg", "--db", path)
    assert len(list((path / FOLDER).iterdir())) == 1


def test_settings_of_other_uses_do_not_see_the_lists(path: Path) -> None:
    with Map.open(path, descriptors=False) as map_:
        assert LISTS not in map_.settings
