"""Open the SQLite file of a catalog, and read and write rows of its tables, also of damaged ones."""

from __future__ import annotations

import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pairvpr.files import open_member, stat_member
from pairvpr.runtime.map import blocks, meta, records, segments

FILE = "map.sqlite"
COLUMNS: dict[str, Mapping[str, str]] = {
    "meta": meta.COLUMNS,
    "segments": segments.COLUMNS,
    "blocks": blocks.COLUMNS,
    "records": records.COLUMNS,
}
TABLES, ROW_TABLES = ("meta", "segments", "blocks"), ("meta", "segments", "records")
"""The tables of a map of FORMAT, and those of one of ROW_FORMATS."""

IN_VAIN = 100_000  # consecutive keys tried before the rest of a damaged table counts as lost
_PATIENCE = 30.0  # seconds to wait for another process's transaction
_IO_ERROR = 10  # SQLITE_IOERR, in the lowest byte of an extended error code
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")  # last bytes of a journal that names another one

_Row = TypeVar("_Row")


def check_files(path: Path) -> None:
    """Raise ValueError unless the catalog is a file of the map, and its journal is one that a writer left.

    A journal can name another one, which SQLite would delete wherever it is. Raises OSError.
    """
    stat_member(path, FILE)
    for name in (f"{FILE}-wal", f"{FILE}-shm"):
        if os.path.lexists(path / name):
            raise ValueError(f"{name} is not of a map: delete it")
    journal = f"{FILE}-journal"
    try:
        with open_member(path, journal) as stream:
            if os.fstat(stream.fileno()).st_size >= len(_SUPER_JOURNAL):
                stream.seek(-len(_SUPER_JOURNAL), os.SEEK_END)
                if stream.read(len(_SUPER_JOURNAL)) == _SUPER_JOURNAL:
                    raise ValueError(f"{journal} is not of a map: delete it")
    except FileNotFoundError:
        pass  # a writer has committed, or there is none


def connect(file: Path, mode: str) -> sqlite3.Connection:
    """Open a catalog in a mode of SQLite: ro, rw or rwc. The caller begins and ends transactions."""
    connection = sqlite3.connect(
        f"{file.absolute().as_uri()}?mode={mode}", uri=True, timeout=_PATIENCE, isolation_level=None
    )
    try:
        # The settings for files of strangers from https://sqlite.org/security.html.
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")
        connection.execute("PRAGMA mmap_size=0")
    except BaseException:
        connection.close()
        raise
    if sys.version_info >= (3, 11):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 8 * meta.LONGEST_VALUE)
    return connection


def definition(table: str) -> str:
    """Return the SQL that makes a table."""
    columns = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS[table].items())
    return f"CREATE TABLE {table} ({columns})"


def check_schema(connection: sqlite3.Connection) -> tuple[str, ...]:
    """Return the names of the catalog's three tables.

    Raises ValueError unless they are as they were defined, and there is nothing else.
    """
    found = set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 5"))
    found.discard(("index", "sqlite_autoindex_meta_1", "meta", None))  # SQLite makes it for the primary key
    for names in (TABLES, ROW_TABLES):
        if found == {("table", name, name, definition(name)) for name in names}:
            return names
    raise ValueError("its tables are not those of a map")


def check_structures(connection: sqlite3.Connection) -> None:
    """Let SQLite check its own structures.

    Raises ValueError for damage, and sqlite3.OperationalError if the disk cannot be read.
    """
    (finding,) = next(connection.execute("PRAGMA integrity_check(1)"))
    code = re.search(r"error code=(\d+)", finding)
    if code is not None and int(code[1]) & 0xFF == _IO_ERROR:
        raise sqlite3.OperationalError(f"disk I/O error: {finding}")
    if finding != "ok":
        raise ValueError(finding)


def make_durable(connection: sqlite3.Connection) -> None:
    """Let a commit reach the disk before it returns. Raises sqlite3.OperationalError if SQLite refuses."""
    mode = connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
    if mode != "delete":
        raise sqlite3.OperationalError(f"the journal mode stays {mode}")
    connection.execute("PRAGMA synchronous=FULL")


def select(connection: sqlite3.Connection, table: str, clause: str, *values: int) -> Iterator[tuple[Any, ...]]:
    """Select all columns of rows of a table by the rest of the SQL statement."""
    # SQLite reads a quoted name that is not a column as a text, unless the table stands before it.
    names = ", ".join(f'{table}."{name}"' for name in COLUMNS[table])
    return connection.execute(f"SELECT {names} FROM {table} {clause}", values)


def rising(rows: Iterator[tuple[Any, ...]], table: str) -> Iterator[tuple[Any, ...]]:
    """Yield rows whose keys rise. Raises ValueError at one that does not, because pages may lead back to each other."""
    last = -(2**63)
    for row in rows:
        if not isinstance(row[0], int) or row[0] <= last:
            raise ValueError(f"the keys of its {table} do not rise")
        last = row[0]
        yield row


def read_rising(connection: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """Yield all rows of a table in the order of their keys, as `rising` does."""
    return rising(select(connection, table, f"ORDER BY {_key(table)}"), table)


def find_intact(
    connection: sqlite3.Connection, table: str, decode: Callable[[tuple[Any, ...]], _Row]
) -> Iterator[_Row]:
    """Yield the readable rows of a damaged table whose checksums hold, in the order of their keys."""
    key, last, in_vain = _key(table), -1, 0
    while in_vain < IN_VAIN:
        try:
            # If a page is damaged, all keys that may lie on it are tried, up to the next page.
            clause = f"WHERE {key} > {last + in_vain} ORDER BY {key} LIMIT 1"
            rows = list(select(connection, table, clause))
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # a fault of the disk, another process or the table itself, not of a page
            in_vain += 1
            continue
        if not rows:
            return
        try:
            row = decode(rows[0])
        except (ValueError, TypeError):
            in_vain += 1
            continue
        if rows[0][0] <= last:
            in_vain += 1
            continue
        last, in_vain = rows[0][0], 0
        yield row


def insert(connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows of all columns."""
    if not rows:
        return
    marks = ", ".join("?" * len(rows[0]))
    connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


def _key(table: str) -> str:
    return next(iter(COLUMNS[table]))
