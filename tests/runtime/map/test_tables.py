"""The tables of a catalog: their definition is compared, keys rise, and intact rows of damaged tables are found."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pairvpr.runtime.map import tables


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(tables.connect(tmp_path / tables.FILE, "rwc")) as opened:
        for table in tables.TABLES:
            opened.execute(tables.definition(table))
        yield opened


def test_the_two_sets_of_tables_are_told_apart(connection: sqlite3.Connection) -> None:
    assert tables.check_schema(connection) == tables.TABLES
    connection.execute("DROP TABLE blocks")
    with pytest.raises(ValueError, match="its tables are not those of a map"):
        tables.check_schema(connection)
    connection.execute(tables.definition("records"))
    assert tables.check_schema(connection) == tables.ROW_TABLES
    connection.execute("CREATE VIEW more AS SELECT 1")
    with pytest.raises(ValueError, match="its tables are not those of a map"):
        tables.check_schema(connection)


def test_the_catalog_is_opened_as_a_file_of_a_stranger(connection: sqlite3.Connection) -> None:
    def setting(name: str) -> Any:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    assert (setting("trusted_schema"), setting("cell_size_check"), setting("mmap_size")) == (0, 1, 0)
    if hasattr(connection, "getlimit"):
        assert connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) == 8 << 20
    tables.make_durable(connection)
    assert (setting("journal_mode"), setting("synchronous")) == ("delete", 2)


@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_no_catalog_is_made_but_by_rwc(tmp_path: Path, mode: str) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        tables.connect(tmp_path / "other" / tables.FILE, mode).execute("SELECT 1 FROM sqlite_master")
    with pytest.raises(sqlite3.OperationalError):
        tables.connect(tmp_path / tables.FILE, mode)
    assert not (tmp_path / tables.FILE).exists()


@pytest.mark.parametrize(
    ("keys", "fine"), [([], True), ([-5, 0, 7], True), ([1, 1], False), ([2, 1], False), (["1"], False)]
)
def test_keys_rise(keys: list[Any], fine: bool) -> None:
    rows = [(key, "x") for key in keys]
    if fine:
        assert list(tables.rising(iter(rows), "segments")) == rows
        return
    with pytest.raises(ValueError, match="the keys of its segments do not rise"):
        list(tables.rising(iter(rows), "segments"))


def test_intact_rows_are_found_around_others(connection: sqlite3.Connection) -> None:
    rows = [(number, f"{number:06d}.safetensors", 1, 9, 0, 0) for number in (1, 2, 5, 9, 300)]
    tables.insert(connection, "segments", rows)
    tables.insert(connection, "segments", [])

    def decode(row: tuple[Any, ...]) -> int:
        if row[0] in (2, 9):
            raise ValueError("damaged")
        return row[0]

    assert list(tables.find_intact(connection, "segments", decode)) == [1, 5, 300]
    assert [row[0] for row in tables.read_rising(connection, "segments")] == [1, 2, 5, 9, 300]


@pytest.mark.parametrize(("in_vain", "found"), [(4, [1]), (5, [1, 6])])
def test_a_search_for_intact_rows_ends(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, in_vain: int, found: list[int]
) -> None:
    """Between two intact rows are four damaged ones."""
    monkeypatch.setattr(tables, "IN_VAIN", in_vain)
    tables.insert(connection, "segments", [(number, "a", 1, 9, 0, 0) for number in range(1, 7)])

    def decode(row: tuple[Any, ...]) -> int:
        if row[0] not in (1, 6):
            raise ValueError("damaged")
        return row[0]

    assert list(tables.find_intact(connection, "segments", decode)) == found


@pytest.mark.parametrize(
    ("finding", "fault"),
    [
        ("ok", None),
        ("row 3 missing from index", ValueError),
        ("Page 5: unable to get the page. error code=11", ValueError),
        ("Page 5: unable to get the page. error code=10", sqlite3.OperationalError),
        ("Page 5: unable to get the page. error code=8458", sqlite3.OperationalError),
    ],
)
def test_damage_and_a_disk_that_cannot_be_read_are_told_apart(finding: str, fault: type[Exception] | None) -> None:
    class Answering:
        def execute(self, statement: str) -> Iterator[tuple[str]]:
            assert statement == "PRAGMA integrity_check(1)"
            return iter([(finding,)])

    if fault is None:
        tables.check_structures(Answering())  # type: ignore[arg-type]
        return
    with pytest.raises(fault, match=finding[:8]):
        tables.check_structures(Answering())  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "refused"), [(0, False), (7, False), (8, True), (600, True)])
def test_a_journal_that_ends_with_the_mark_of_another_is_refused(tmp_path: Path, size: int, refused: bool) -> None:
    (tmp_path / tables.FILE).touch()
    mark = bytes.fromhex("d9d505f920a163d7")
    (tmp_path / f"{tables.FILE}-journal").write_bytes((bytes(600) + mark)[-size:] if size else b"")
    if not refused:
        tables.check_files(tmp_path)
        return
    with pytest.raises(ValueError, match="journal is not of a map: delete it"):
        tables.check_files(tmp_path)


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_files_of_other_journals_are_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / tables.FILE).touch()
    tables.check_files(tmp_path)
    (tmp_path / f"{tables.FILE}{suffix}").touch()
    with pytest.raises(ValueError, match=f"{suffix} is not of a map: delete it"):
        tables.check_files(tmp_path)


DEFINITIONS = {
    "meta": 'CREATE TABLE meta ("key" TEXT PRIMARY KEY, "value" TEXT NOT NULL)',
    "segments": 'CREATE TABLE segments ("number" INTEGER PRIMARY KEY, "file" TEXT NOT NULL, "count" INTEGER NOT NULL, '
    '"bytes" INTEGER NOT NULL, "header_crc" INTEGER NOT NULL, "crc" INTEGER NOT NULL)',
    "blocks": 'CREATE TABLE blocks ("number" INTEGER PRIMARY KEY, "crc" INTEGER NOT NULL, "content" BLOB NOT NULL)',
    "records": 'CREATE TABLE records ("id" INTEGER PRIMARY KEY, "name" TEXT NOT NULL, "source" TEXT NOT NULL, '
    '"timestamp" REAL, "x" REAL, "y" REAL, "z" REAL, "qx" REAL, "qy" REAL, "qz" REAL, "qw" REAL, "frame" TEXT, '
    '"latitude" REAL, "longitude" REAL, "altitude" REAL, "segment" INTEGER NOT NULL, "row" INTEGER NOT NULL, '
    '"deleted" INTEGER NOT NULL, "descriptor_crc" INTEGER NOT NULL, "tokens_crc" INTEGER NOT NULL, '
    '"crc" INTEGER NOT NULL)',
}
"""As maps on disks have them. Another text would turn every map away that was made before."""


@pytest.mark.parametrize("table", tables.COLUMNS)
def test_definitions_of_tables_never_change(table: str) -> None:
    assert tables.definition(table) == DEFINITIONS[table]
