"""A damaged map raises an error of one line and never gives a wrong answer."""

import dataclasses
import functools
import random
import re
import sqlite3

import numpy as np
import pytest

from pairvpr.errors import MapError
from pairvpr.runtime.features import Features
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Map, MapWriter, merge_maps, records, repair_map, verify_map
from pairvpr.runtime.map.meta import Meta
from tests.runtime.map.forging import to_rows

SHAPE = {"identity": "a" * 64, "descriptor_dim": 8, "token_shape": (5, 4)}
COUNT = 40


def features_of(number):
    random = np.random.default_rng(number)
    descriptors = random.standard_normal((1, 8), np.float32)
    descriptors /= np.linalg.norm(descriptors)
    return Features(descriptors, random.standard_normal((1, 5, 4), np.float32))


def install_model(folder):
    (folder / "bundle.json").write_text("{}")


@pytest.fixture
def path(tmp_path):
    """A map of 40 pictures in 4 segments."""
    path = tmp_path / "map"
    with MapWriter.open(path, **SHAPE, settings={"size": 224}, install_model=install_model) as store:
        for number in range(COUNT):
            store.add(
                name=f"{number}.jpg",
                source="/pictures",
                timestamp=number / 10,
                pose=Pose(number, 2, 3, (0, 0, 0, 1)) if number % 2 else None,
                gps=Gps(number, 1) if number % 3 else None,
                features=features_of(number),
            )
            if number % 10 == 9:
                store.commit()
    return path


def content(path):
    """Return everything that a reader can read."""
    with Map.open(path) as opened:
        tokens = opened.read_tokens(range(len(opened)))
        return (
            opened.identity, opened.settings, opened.token_shape, opened.records,
            opened.descriptors.tobytes(), tokens.tobytes(),
        )  # fmt: skip


def damaged_or_the_same(path, sound):
    """Return whether reading raises a MapError of one line with a remedy. Otherwise it must read `sound`."""
    try:
        found = content(path)
    except MapError as error:
        message = str(error)
    else:
        assert found == sound
        return False
    assert re.fullmatch(r".*: .*(restore the map|allow|upgrade).*", message), message  # a dot is no newline
    return True


@pytest.mark.parametrize("file", ["map.sqlite", "rows", "segments/000001.safetensors", "segments/000004.safetensors"])
def test_a_flipped_byte_is_never_a_wrong_answer(path, file):
    if file == "rows":
        to_rows(path)
        file = "map.sqlite"
    sound = content(path)
    original = (path / file).read_bytes()
    chance = random.Random(file)
    # Much of the catalog is empty space between its cells: half of the flips go where there is something.
    filled = [place for place, byte in enumerate(original) if byte]
    places = {*chance.sample(filled, 150), *chance.sample(range(len(original)), 150)}
    if file == "map.sqlite":
        places.update(range(0, 100))  # SQLite's own header
    seen = 0
    for place in sorted(places):
        flipped = bytearray(original)
        flipped[place] ^= chance.randrange(1, 256)
        (path / file).write_bytes(flipped)
        seen += damaged_or_the_same(path, sound)
        for extra in path.glob("map.sqlite-*"):
            extra.unlink()
    assert seen > 100
    if file != "map.sqlite":
        assert seen == len(places)  # every byte of a segment counts


def test_every_byte_of_a_header_counts(path):
    file = path / "segments" / "000002.safetensors"
    original = file.read_bytes()
    length = 8 + int.from_bytes(original[:8], "little")
    for place in range(length):
        flipped = bytearray(original)
        flipped[place] ^= 1  # a digit stays a digit
        file.write_bytes(flipped)
        with pytest.raises(MapError, match=r"000002\.safetensors is damaged \(its header"):
            Map.open(path)


def test_every_opening_notices_a_damaged_record(path):
    file = path / "map.sqlite"
    file.write_bytes(file.read_bytes().replace(b"7.jpg", b"8.jpg", 1))
    for call in (
        lambda: Map.open(path),
        lambda: verify_map(path),
        lambda: MapWriter.open(path, **SHAPE),
    ):
        with pytest.raises(MapError, match=r"map\.sqlite is damaged .* fails its checksum\): restore the map"):
            call()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM records WHERE id = 40",
        "DELETE FROM records WHERE segment = 2",
        "DELETE FROM segments WHERE number = 4",
        "DELETE FROM meta WHERE key = 'settings'",
        "UPDATE records SET deleted = 1 WHERE id = 1",
        "UPDATE records SET x = x + 1 WHERE id = 2",
        "UPDATE records SET id = 41 WHERE id = 40",
        "UPDATE records SET row = 3 WHERE id = 1",
        "UPDATE records SET name = x'ff' WHERE id = 1",
        "UPDATE records SET name = CAST(x'ff' AS TEXT) WHERE id = 1",
        "UPDATE segments SET count = 9 WHERE number = 1",
        "UPDATE segments SET file = '000002.safetensors' WHERE number = 1",
        "UPDATE meta SET value = '2' WHERE key = 'format'",
        "UPDATE meta SET value = '[4, 5]' WHERE key = 'token_shape'",
        "DROP TABLE records",
        "DROP TABLE blocks",
        "DELETE FROM blocks WHERE number = 31",
        "UPDATE blocks SET number = 41 WHERE number = 31",
        "UPDATE blocks SET content = substr(content, 1, 500) WHERE number = 1",
        "UPDATE blocks SET content = 'text' WHERE number = 1",
        "UPDATE blocks SET crc = crc + 1 WHERE number = 1",
        "UPDATE blocks SET crc = 'x' WHERE number = 1",
        "ALTER TABLE blocks RENAME COLUMN content TO contents",
        "ALTER TABLE records RENAME COLUMN name TO title",
    ],
)
def test_a_changed_catalog_is_refused(path, statement):
    if "records" in statement:
        to_rows(path)
    connection = sqlite3.connect(path / "map.sqlite")
    with connection:
        assert connection.execute(statement).rowcount
    connection.close()
    with pytest.raises(MapError, match=r"map\.sqlite is damaged"):
        Map.open(path)


@pytest.mark.parametrize(
    "change",
    [
        {"row": 8},  # twice, and row 9 is gone
        {"row": 10},
        {"segment": 5},
        {"id": 41, "row": 8},
    ],
)
def test_records_without_their_segment_rows_are_refused(path, change):
    with Map.open(path) as opened:
        changed = dataclasses.replace(opened.records[39], **change)
    to_rows(path)
    connection = sqlite3.connect(path / "map.sqlite")
    with connection:
        connection.execute("DELETE FROM records WHERE id = 40")
        connection.execute(f"INSERT INTO records VALUES ({', '.join('?' * 21)})", records.encode(changed))
    connection.close()
    with pytest.raises(MapError, match="its records do not match its segments"):
        Map.open(path)


def test_a_lost_commit_is_noticed(path):
    connection = sqlite3.connect(path / "map.sqlite")
    with connection:
        connection.execute("DELETE FROM blocks WHERE number = 31")
        connection.execute("DELETE FROM segments WHERE number = 4")
    connection.close()
    with pytest.raises(MapError, match="it has 3 segments and 30 records in place of 4 and 40"):
        Map.open(path)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
@pytest.mark.parametrize("file", ["map.sqlite", "segments/000002.safetensors"])
def test_a_truncated_file_is_refused(path, file, size):
    with (path / file).open("r+b") as stream:
        stream.truncate(size if size >= 0 else stream.seek(0, 2) - 1)
    for call in (Map.open, lambda path: MapWriter.open(path, **SHAPE)):
        with pytest.raises(MapError, match=f"{(path / file).name} is damaged"):
            call(path)


def test_a_missing_file_is_refused(path):
    (path / "segments" / "000002.safetensors").unlink()
    for call in (Map.open, lambda path: MapWriter.open(path, **SHAPE)):
        with pytest.raises(MapError, match=r"000002\.safetensors is missing: restore the map"):
            call(path)
    (path / "map.sqlite").unlink()
    with pytest.raises(MapError, match=r"map\.sqlite is missing: restore the map"):
        Map.open(path)


def test_a_segment_that_changes_under_an_open_map(path):
    with Map.open(path) as opened:
        with (path / "segments" / "000001.safetensors").open("r+b") as stream:
            stream.seek(-1, 2)
            last = stream.read(1)[0]
            stream.seek(-1, 2)
            stream.write(bytes([last ^ 1]))
        opened.read_tokens([0, 8, 10, 39])
        with pytest.raises(MapError, match=r"000001\.safetensors is damaged .*tokens of '9\.jpg'"):
            opened.read_tokens([0, 9])
        (path / "segments" / "000001.safetensors").write_bytes(b"")
        with pytest.raises(MapError, match=r"000001\.safetensors is damaged .*cut short"):
            opened.read_tokens([0])


def test_verify_finds_all_damages(path):
    assert verify_map(path) == []
    segments = path / "segments"
    with (segments / "000001.safetensors").open("r+b") as stream:
        content = bytearray(stream.read())
        for place in (-1, -40 * 10 - 1):  # the last picture's tokens, of 40 bytes, and its descriptor
            content[place] ^= 1
        stream.seek(0)
        stream.write(content)
    (segments / "000003.safetensors").unlink()
    (path / "model" / "bundle.json").unlink()
    (path / "model").rmdir()
    steps = []
    damages = verify_map(path, lambda done, total: steps.append((done, total)))
    assert steps == [(10, 40), (20, 40), (30, 40), (40, 40)]
    expected = [
        "model is missing",
        "descriptor of '9.jpg'",
        "tokens of '9.jpg'",
        "000003.safetensors is missing",
    ]
    assert len(damages) == len(expected)
    for message, part in zip(damages, expected, strict=True):
        assert part in message
        assert "\n" not in message


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "map"
    with monkeypatch.context() as patched:
        patched.setattr("pairvpr.runtime.map.meta.FORMAT", 7)
        patched.setattr(Meta, "__init__", functools.partialmethod(Meta.__init__, format=7))
        MapWriter.open(path, **SHAPE, install_model=install_model).close()
    before = (path / "map.sqlite").read_bytes()
    for call in (
        Map.open,
        verify_map,
        MapWriter.edit,
        lambda path: MapWriter.open(path, **SHAPE),
        lambda path: merge_maps([path], path),
        repair_map,
    ):
        with pytest.raises(MapError, match=r"made by a newer pairvpr \(format 7, this one reads 3\): upgrade"):
            call(path)
    assert (path / "map.sqlite").read_bytes() == before
