"""A map from a stranger, whose checksums hold: it is read correctly or refused, and nothing beside it is touched."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pairvpr.errors import MapError
from pairvpr.files import check_member, open_member, read_member
from pairvpr.runtime.features import Features
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Map, MapWriter, merge_maps, repair_map, verify_map
from pairvpr.runtime.map.blocks import Block
from pairvpr.runtime.map.records import COLUMNS
from tests.runtime.map.forging import (
    SEGMENT_COLUMNS,
    edit_blocks,
    edit_meta,
    edit_records,
    edit_segments,
    make_map,
    set_row,
    to_rows,
)

META = ("format", "identity", "settings", "descriptor_dim", "token_shape", "created_by", "segments", "records", "extra")
SEGMENT = "segments/000001.safetensors"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_map(tmp_path / "map")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc/passwd", "../a", "a\n", "a\x1b[2J", "a\udcff", "x" * 256, None]
)
def test_the_name_of_a_member_is_one_part_of_a_path(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a file"):
        check_member(name)


@pytest.mark.parametrize("kind", ["link", "pipe", "device", "folder"])
def test_only_a_regular_file_is_opened(tmp_path: Path, kind: str) -> None:
    member = tmp_path / "member"
    (tmp_path / "secret").write_text("secret")
    if kind == "link":
        member.symlink_to("secret")
    elif kind == "device":
        member.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(member)
    else:
        member.mkdir()
    with pytest.raises(ValueError, match="not a regular file"):
        open_member(tmp_path, "member")


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_member(tmp_path, "a", 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_member(tmp_path, "a", 4)


@pytest.mark.parametrize("file", ["../../outside", "/dev/zero", "000002.safetensors", "..", ""])
def test_a_segment_is_a_file_of_the_map(path: Path, file: str) -> None:
    shutil.copy(path / SEGMENT, path.parent.parent / "outside")
    edit_segments(path, lambda entry: {**entry, "file": file} if entry["number"] == 1 else entry)
    for use in (Map.open, verify_map, MapWriter.edit, lambda other: merge_maps([other], path)):
        with pytest.raises(MapError, match="is damaged"):
            use(path)


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("file", ["map.sqlite", "map.sqlite-journal", SEGMENT, "segments"])
def test_a_link_or_pipe_in_place_of_a_file_is_refused(path: Path, kind: str, file: str) -> None:
    outside = path.parent / "outside"
    if (path / file).exists():
        (path / file).rename(outside)
    else:
        outside.touch()
    if kind == "link":
        (path / file).symlink_to(outside)
    else:
        os.mkfifo(path / file)
    for use in (Map.open, MapWriter.edit):
        with pytest.raises(MapError, match="is damaged"):
            use(path)


def test_repair_links_nothing_from_outside(path: Path) -> None:
    victim = path.parent / "victim.txt"
    victim.write_text("private")
    edit_segments(path, lambda entry: {**entry, "file": "../../victim.txt"} if entry["number"] == 1 else entry)
    assert repair_map(path).kept == 20
    assert victim.stat().st_nlink == 1
    assert verify_map(path) == []


@pytest.mark.parametrize("name", ["damaged", "segments"])
def test_repair_writes_to_no_linked_folder(path: Path, name: str) -> None:
    outside = path.parent / "outside"
    outside.mkdir()
    (outside / "000009.safetensors").write_text("private")
    (path / SEGMENT).write_bytes(b"")
    if name == "segments":
        shutil.rmtree(path / "segments")
    (path / name).symlink_to(outside)
    with pytest.raises(MapError, match="not a folder"):
        repair_map(path)
    assert [file.name for file in outside.iterdir()] == ["000009.safetensors"]


def test_the_lock_is_no_link(path: Path) -> None:
    victim = path.parent / "victim.txt"
    victim.write_text("private")
    (path / "lock").unlink()
    (path / "lock").symlink_to(victim)
    with pytest.raises(MapError, match="lock cannot be written"):
        MapWriter.edit(path)
    assert victim.read_text() == "private"


def test_a_journal_that_names_another_is_refused(path: Path) -> None:
    victim = path.parent / "victim.txt"
    victim.write_text("private")
    name = str(victim).encode()
    total = sum(name) & 0xFFFFFFFF
    tail = name + len(name).to_bytes(4, "big") + total.to_bytes(4, "big") + bytes.fromhex("d9d505f920a163d7")
    (path / "map.sqlite-journal").write_bytes(bytes.fromhex("d9d505f920a163d7") + bytes(504) + tail)
    with pytest.raises(MapError, match="journal is not of a map"):
        Map.open(path)
    assert victim.exists()


@pytest.mark.parametrize(
    "change",
    [
        "CREATE VIEW extra AS SELECT 1",
        "CREATE TRIGGER extra AFTER INSERT ON records BEGIN DELETE FROM records; END",
        "CREATE TABLE extra (a)",
        "CREATE INDEX extra ON records (name)",
        "ALTER TABLE records ADD COLUMN extra AS (name || name)",
        "ALTER TABLE meta RENAME TO real; CREATE VIEW meta AS SELECT * FROM real",
        "ALTER TABLE records RENAME TO real; CREATE VIEW records AS WITH RECURSIVE r AS (SELECT 1 AS id UNION ALL"
        " SELECT id + 1 FROM r) SELECT * FROM r JOIN real",
        "CREATE TRIGGER extra AFTER INSERT ON blocks BEGIN DELETE FROM blocks; END",
        "ALTER TABLE blocks ADD COLUMN extra AS (content || content)",
        "CREATE TABLE records (id)",
        "ALTER TABLE blocks RENAME TO real; CREATE VIEW blocks AS SELECT * FROM real",
    ],
)
def test_a_catalog_has_three_plain_tables(path: Path, change: str) -> None:
    if "records" in change and "CREATE TABLE" not in change:
        to_rows(path)
    with closing(sqlite3.connect(path / "map.sqlite")) as connection:
        connection.executescript(change)
    for use in (Map.open, MapWriter.edit, verify_map, repair_map):
        with pytest.raises(MapError, match="its tables are not those of a map"):
            use(path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("id", 0), ("name", 7), ("name", "x" * 5000), ("name", "0.jpg"), ("timestamp", float("inf")),
        ("x", 1.0), ("frame", "map"), ("qw", 1.0), ("latitude", 1.0), ("altitude", 1.0), ("segment", 9),
        ("row", -1), ("row", 10**9), ("deleted", 2), ("descriptor_crc", -1), ("tokens_crc", 2**40),
        ("timestamp", 1.1e19), ("timestamp", "0"),
    ],
)  # fmt: skip
def test_fields_of_records_have_types_and_ranges(path: Path, column: str, value: object) -> None:
    edit_records(path, lambda record: {**record, column: value} if record["id"] == 3 else record)
    with pytest.raises(MapError, match="is damaged"):
        Map.open(path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("number", -1),
        ("count", 0),
        ("count", 10**12),
        ("count", 2.5),
        ("bytes", 10**15),
        ("bytes", "x"),
        ("header_crc", -1),
    ],
)
def test_entries_of_segments_have_types_and_ranges(path: Path, column: str, value: object) -> None:
    edit_segments(path, lambda entry: {**entry, column: value} if entry["number"] == 1 else entry)
    with pytest.raises(MapError, match="is damaged"):
        Map.open(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "1"), ("format", True), ("identity", 5), ("settings", []), ("settings", {"tokens": []}),
        ("settings", {"tokens": {"type": []}}), ("settings", {"tokens": {"keep": "1"}}), ("descriptor_dim", 0),
        ("descriptor_dim", 10**9), ("descriptor_dim", 7), ("token_shape", 5), ("token_shape", [5, 4, 3]),
        ("token_shape", [10**12, 4]), ("created_by", None), ("records", 10**12), ("segments", -1), ("extra", 1),
        ("created_by", float("nan")),
    ],
)  # fmt: skip
def test_properties_of_a_map_have_types_and_ranges(path: Path, key: str, value: object) -> None:
    edit_meta(path, lambda meta: {**meta, key: value})
    with pytest.raises(MapError, match="is damaged"):
        Map.open(path)


def test_a_deeply_nested_setting_is_damage(path: Path) -> None:
    nested: list[object] = []
    for _ in range(900):
        nested = [nested]
    edit_meta(path, lambda meta: {**meta, "token_shape": nested})
    with pytest.raises(MapError, match="is damaged"):
        Map.open(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0, 9, 3e38])
def test_descriptors_are_finite_and_of_length_1(path: Path, value: float) -> None:
    set_row(path, 1, "descriptors", 3, np.full(8, value, "<f4").tobytes())
    with pytest.raises(MapError, match=r"descriptor of '3.jpg' does not have length 1"):
        Map.open(path)
    (damage,) = verify_map(path)
    assert "'3.jpg' does not have length 1" in damage
    other = make_map(path.parent / "other", count=2)
    report = merge_maps([path], other)
    assert (report.merged, len(report.damaged)) == (17, 1)
    report = repair_map(path)
    assert (report.kept, len(report.dropped)) == (19, 1)
    assert verify_map(path) == []


@pytest.mark.parametrize("tokens", ["float16", "int8"])
def test_tokens_are_finite(tmp_path: Path, tokens: str) -> None:
    path = make_map(tmp_path / "map", tokens=tokens)
    if tokens == "float16":
        values = np.zeros(20, "<f2")
        values[7] = -np.inf
        set_row(path, 1, "tokens", 3, values.tobytes())
    else:
        with Map.open(path) as opened:
            values = opened._segments[1].read_tokens(opened.records[3]).values.tobytes()
        scales = np.full(5, np.nan, "<f4").tobytes()
        set_row(path, 1, "token_scales", 3, scales)
        crc = zlib.crc32(scales, zlib.crc32(values))
        edit_records(path, lambda record: {**record, "tokens_crc": crc} if record["id"] == 4 else record)
    (damage,) = verify_map(path)
    assert "the tokens of '3.jpg' are not finite" in damage
    with Map.open(path) as opened, pytest.raises(MapError, match="not finite"):
        opened.read_tokens([3])


def test_a_descriptor_of_another_length_is_not_added(path: Path) -> None:
    features = Features(np.ones((1, 8), np.float32), np.ones((1, 5, 4), np.float32))
    with (
        MapWriter.open(path, identity="a" * 64, descriptor_dim=8, token_shape=(5, 4)) as writer,
        pytest.raises(MapError, match="does not have length 1"),
    ):
        writer.add(name="x", source="", features=features)


def place_map(path: Path) -> Path:
    """Make a map of 4 pictures with all that a record can have, and 4 without."""
    with MapWriter.open(make_map(path, count=0), identity="a" * 64, descriptor_dim=8, token_shape=(5, 4)) as writer:
        for number in range(8):
            places = {"pose": Pose(1, 2, 3, (0, 0, 0, 1)), "gps": Gps(1, 2, 3), "timestamp": 1.0} if number < 4 else {}
            descriptor = np.eye(1, 8, number, np.float32)
            features = Features(descriptor, np.ones((1, 5, 4), np.float32))
            writer.add(name=f"ü{number}.jpg", source="/pictures", features=features, **places)
    return path


@pytest.mark.parametrize(
    ("column", "at", "value"),
    [
        ("id", 0, 0), ("id", 3, 3), ("id", 7, -1), ("segment", 2, 9), ("segment", 2, -1), ("row", 2, -1),
        ("row", 2, 3), ("row", 2, 2**40), ("deleted", 2, 2), ("source", 2, 7), ("frame", 2, 9), ("frame", 5, 0),
        ("frame", 2, 0xFFFF), ("timestamp", 2, np.inf), ("position", (2, 1), np.nan), ("position", (5, 1), 1),
        ("position", (2, 1), -np.inf), ("orientation", (2, 3), np.nan), ("orientation", 5, 1), ("gps", (2, 0), np.nan),
        ("gps", (5, 2), 1), ("gps", (2, 1), np.inf),
    ],
)  # fmt: skip
def test_values_of_blocks_have_types_and_ranges(tmp_path: Path, column: str, at: Any, value: float) -> None:
    path = place_map(tmp_path / "map")

    def forge(content: bytes) -> bytes:
        forged = bytearray(content)
        block = Block(1, forged, 0)  # type: ignore[arg-type]
        block._columns[column].flags.writeable = True
        block._columns[column][at] = value
        return bytes(forged)

    Map.open(path).close()
    edit_blocks(path, forge)
    with pytest.raises(MapError, match="is damaged"):
        Map.open(path)


LIMITS = [
    ("timestamp", "timestamp", [0.0, -1e19, 1e19], [1.1e19, -1.1e19]),
    *((axis, ("position", number), [-1e12, 1e12], [1.1e12, -1.1e12]) for number, axis in enumerate("xyz")),
    ("qw", ("orientation", 3), [0.5, -1.0, 2.0], [0.49, 0.0, -2.01, 1e200]),
    ("latitude", ("gps", 0), [-90.0, 90.0], [-90.1, 90.1, 500.0]),
    ("longitude", ("gps", 1), [-180.0, 180.0], [-180.1, 180.1, 1e308]),
    ("altitude", ("gps", 2), [-1e12, 1e12], [1.1e12, -1.1e12]),
]
"""Column, place in a block, and numbers inside and outside its range."""


@pytest.mark.parametrize(("column", "at", "inside", "outside"), LIMITS)
@pytest.mark.parametrize("rows", [True, False])
def test_places_have_ranges(
    tmp_path: Path, column: str, at: Any, inside: list[float], outside: list[float], rows: bool
) -> None:
    """They reach a robot, and the squares of larger ones would overflow."""
    path = place_map(tmp_path / "map")
    original = (path / "map.sqlite").read_bytes()
    name, number = (at, 0) if isinstance(at, str) else at

    def forge(content: bytes, value: float) -> bytes:
        forged = bytearray(content)
        block = Block(1, forged, 0)  # type: ignore[arg-type]
        values = block._columns[name].reshape(block.count, -1)
        values.flags.writeable = True
        values[2, number] = value
        return bytes(forged)

    for value in (*inside, *outside):
        (path / "map.sqlite").write_bytes(original)
        if rows:
            edit_records(path, lambda old, new=value: {**old, column: new} if old["id"] == 3 else old)
        else:
            edit_blocks(path, lambda content, new=value: forge(content, new))
        if value in inside:
            with Map.open(path) as opened:
                record = opened.records[2]
                assert record.pose is not None
                assert record.gps is not None
                pose = (record.pose.x, record.pose.y, record.pose.z)
                gps = (record.gps.latitude, record.gps.longitude, record.gps.altitude)
                found = {"timestamp": (record.timestamp,), "position": pose, "orientation": record.pose.q, "gps": gps}
                assert found[name][number] == value
            continue
        with pytest.raises(MapError, match="is damaged"):
            Map.open(path)
    assert repair_map(path).kept == 7


@pytest.mark.parametrize("flips", [200, pytest.param(20_000, marks=pytest.mark.soak)])
def test_a_forged_block_is_refused_or_read(tmp_path: Path, flips: int) -> None:
    path, chance, refused = place_map(tmp_path / "map"), random.Random(3), []
    original = (path / "map.sqlite").read_bytes()
    for _ in range(flips):
        (path / "map.sqlite").write_bytes(original)

        def forge(content: bytes) -> bytes:
            forged = bytearray(content)
            forged[chance.randrange(len(forged))] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
            return bytes(forged[: chance.choice([len(forged)] * 9 + [chance.randrange(len(forged))])])

        edit_blocks(path, forge)
        try:
            with Map.open(path) as opened:
                assert [record.name for record in opened.records] == opened.records.names()
                opened.read_intact_tokens(range(len(opened)))
        except MapError as error:
            refused.append(str(error))
    assert all(map(str.isprintable, refused))
    assert len(refused) > flips / 4


CELLS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=9)
JSON = st.recursive(CELLS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner), max_leaves=5)
FIELDS = {"records": tuple(COLUMNS)[:-1], "segments": SEGMENT_COLUMNS, "meta": META}
EDITS = {"records": edit_records, "segments": edit_segments}


@pytest.mark.parametrize("examples", [60, pytest.param(2000, marks=pytest.mark.soak)])
def test_a_forged_catalog_is_refused_or_read(path: Path, examples: int) -> None:
    original = (path / "map.sqlite").read_bytes()

    @settings(
        max_examples=examples,
        deadline=5000,
        derandomize=examples < 1000,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        (path / "map.sqlite").write_bytes(original)
        table = data.draw(st.sampled_from(sorted(FIELDS)))
        column = data.draw(st.sampled_from(FIELDS[table]))
        value = data.draw(JSON if table == "meta" else CELLS)
        row = data.draw(st.integers(1, 2 if table == "segments" else 20))
        try:
            if table == "meta":
                edit_meta(path, lambda meta: {**meta, column: value})
            else:
                key = FIELDS[table][0]
                EDITS[table](path, lambda old: {**old, column: value} if old[key] == row else old)
        except (sqlite3.Error, OverflowError, UnicodeEncodeError):
            return  # SQLite itself refuses the value
        before = sorted(path.parent.rglob("*"))
        said = ""
        try:
            with Map.open(path) as opened:
                opened.read_tokens(range(len(opened)))
        except MapError as error:
            said = str(error)
        assert said == "" or said.isprintable()
        assert sorted(path.parent.rglob("*")) == before

    check()
