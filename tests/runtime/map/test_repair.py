"""A repaired map has every intact picture and verifies. Damaged pictures are named, damaged files put aside."""

import random
import shutil
import sqlite3

import numpy as np
import pytest
from click.testing import CliRunner

from pairvpr.cli.main import main
from pairvpr.errors import MapError
from pairvpr.runtime.features import Features
from pairvpr.runtime.map import Map, MapWriter, catalog, repair, repair_map, verify_map
from tests.runtime.map.forging import to_rows

SHAPE = {"identity": "a" * 64, "descriptor_dim": 8, "token_shape": (5, 4)}
NAMES = [f"{number}.jpg" for number in range(200)]


def features_of(number):
    random = np.random.default_rng(number)
    descriptors = random.standard_normal((1, 8), np.float32)
    descriptors /= np.linalg.norm(descriptors)
    return Features(descriptors, random.standard_normal((1, 5, 4), np.float32))


def install_model(folder):
    (folder / "bundle.json").write_text("{}")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A map of 200 pictures in 4 segments."""
    path = tmp_path_factory.mktemp("built") / "map"
    with MapWriter.open(path, **SHAPE, install_model=install_model) as store:
        for number, name in enumerate(NAMES):
            store.add(name=name, source="/pictures", features=features_of(number))
            if number % 50 == 49:
                store.commit()
    return path


@pytest.fixture
def path(built, tmp_path):
    return shutil.copytree(built, tmp_path / "map")


def check(path):
    """Return the names in a sound map after checking each picture's features."""
    assert verify_map(path) == []
    with Map.open(path) as opened:
        names = [record.name for record in opened.records]
        tokens = opened.read_tokens(range(len(names)))
        for i, name in enumerate(names):
            expected = features_of(int(name.partition(".")[0]))
            np.testing.assert_array_equal(opened.descriptors[i], expected.descriptors[0])
            np.testing.assert_array_equal(tokens[i], expected.tokens[0].astype(np.float16))
    return names


def without(*numbers):
    return [name for number, name in enumerate(NAMES) if number not in numbers]


def flip(file, *places):
    content = bytearray(file.read_bytes())
    for place in places:
        content[place] ^= 1
    file.write_bytes(content)


def execute(path, statement):
    connection = sqlite3.connect(path / "map.sqlite")
    with connection:
        assert connection.execute(statement).rowcount
    connection.close()


def dropped(report):
    return [line.partition(":")[0] for line in report.dropped]


def test_a_sound_map_is_unchanged(path):
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "lock"}
    report = repair_map(path)
    assert (report.kept, report.dropped, report.nameless, report.aside) == (200, (), 0, ())
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "lock"} == before


def test_intact_pictures_of_damaged_segments_are_kept(path):
    segments = path / "segments"
    with MapWriter.edit(path) as store:
        store.remove(["60.jpg"])
    flip(segments / "000001.safetensors", -1, -50 * 40 - 1)  # tokens and descriptor of 49.jpg
    flip(segments / "000002.safetensors", 20)  # the header alone
    with (segments / "000003.safetensors").open("r+b") as stream:
        stream.truncate(stream.seek(0, 2) - 60)  # the tokens of 148.jpg and 149.jpg
    third = (segments / "000003.safetensors").read_bytes()
    (segments / "000004.safetensors").unlink()
    with pytest.raises(MapError):
        Map.open(path)
    steps = []
    report = repair_map(path, lambda *step: steps.append(step))
    assert steps == [(50, 200), (100, 200), (150, 200), (200, 200)]
    gone = [49, 148, 149, *range(150, 200)]
    assert dropped(report) == [NAMES[number] for number in gone]
    assert (report.kept, report.nameless) == (146, 0)
    assert check(path) == without(60, *gone)
    names = ["map.sqlite", "000001.safetensors", "000002.safetensors", "000003.safetensors"]
    assert [file.name for file in report.aside] == names
    assert (path / "damaged" / "000003.safetensors").read_bytes() == third
    assert sorted(file.name for file in segments.iterdir()) == [f"00000{i}.safetensors" for i in (5, 6, 7)]
    assert repair_map(path).aside == ()
    with MapWriter.edit(path) as store:
        store.compact()
    assert check(path) == without(60, *gone)


@pytest.mark.parametrize(
    ("statement", "gone"),
    [
        ("DELETE FROM records WHERE id = 40", [39]),
        ("UPDATE records SET name = 'other.jpg' WHERE id = 200", [199]),
        ("UPDATE records SET name = CAST(x'ff' AS TEXT) WHERE id = 1", [0]),
        ("UPDATE records SET id = 1000 WHERE id = 40", [39]),
        ("DELETE FROM segments WHERE number = 4", []),
        ("UPDATE segments SET count = 9 WHERE number = 2", []),
    ],
)
def test_damaged_rows_of_the_catalog_are_dropped(path, statement, gone):
    if "records" in statement:
        to_rows(path)
    execute(path, statement)
    report = repair_map(path)
    assert (report.dropped, report.nameless, report.kept) == ((), len(gone), 200 - len(gone))
    assert check(path) == without(*gone)
    assert (path / "damaged" / "map.sqlite").exists()


@pytest.mark.parametrize("which", [0, 1, -1])
def test_damaged_pages_of_the_catalog_are_dropped(path, which):
    to_rows(path)
    file = path / "map.sqlite"
    content = bytearray(file.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    leaf = 13  # the first byte of a page of rows
    leaves = [
        at for at in range(size, len(content), size) if content[at] == leaf and b".jpg" in content[at : at + size]
    ]
    assert len(leaves) >= 3
    at = leaves[which]
    content[at : at + size] = random.Random(3).randbytes(size)
    file.write_bytes(content)
    report = repair_map(path)
    assert 0 < report.nameless < 120
    assert len(check(path)) == report.kept == 200 - report.nameless


def test_a_catalog_without_settings_cannot_be_repaired(path):
    execute(path, "UPDATE meta SET value = '[4, 5]' WHERE key = 'token_shape'")
    before = (path / "map.sqlite").read_bytes()
    with pytest.raises(MapError, match=r"map\.sqlite is damaged \(its settings fail their checksum\): restore the map"):
        repair_map(path)
    assert (path / "map.sqlite").read_bytes() == before
    (path / "map.sqlite").unlink()
    with pytest.raises(MapError, match=r"map\.sqlite is missing: restore the map"):
        repair_map(path)


def test_a_locked_map_is_not_repaired(path):
    flip(path / "segments" / "000001.safetensors", -1)
    with MapWriter.edit(path), pytest.raises(MapError, match="being written by process"):
        repair_map(path)


def test_an_interrupted_repair_can_be_repeated(path, monkeypatch):
    flip(path / "segments" / "000001.safetensors", -1)
    flip(path / "segments" / "000002.safetensors", -1)
    for name, room, pictures in (
        ("write_segment", repair, None),
        ("create", catalog, None),
        ("remove_leftovers", repair, 198),
    ):
        calls, plain = [], getattr(room, name)

        def fail(*arguments, name=name, plain=plain, calls=calls):
            calls.append(None)
            if name == "remove_leftovers" and len(calls) == 1:
                return plain(*arguments)
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(room, name, fail)
            with pytest.raises(OSError if pictures else MapError, match="No space left"):
                repair_map(path)
        with Map.open(path) as opened:
            if pictures is None:
                with pytest.raises(MapError, match=r"tokens of '49\.jpg'"):
                    opened.read_tokens(range(200))
            else:
                assert len(opened.read_tokens(range(pictures))) == pictures
    assert repair_map(path).kept == 198
    assert check(path) == without(49, 99)
    assert sorted(file.name for file in (path / "damaged").iterdir()) == [
        "000001.safetensors",
        "000002.safetensors",
        "map.sqlite",
    ]
    assert len(list((path / "segments").iterdir())) == 4


def test_the_repair_command(path):
    flip(path / "segments" / "000001.safetensors", -1)
    result = CliRunner().invoke(main, ["map", "verify", "--repair", "--db", str(path)])
    assert result.exit_code == 2  # this map has no model worth the name, which no repair brings back
    lines = result.stdout.splitlines()
    assert lines[0].startswith("dropped: 49.jpg: ")
    assert lines[1].startswith(f"{path}: 199 pictures kept, 1 dropped; {path / 'damaged'} has the damaged files")
    assert len(check(path)) == 199
