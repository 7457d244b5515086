"""The catalog `map.sqlite`, which lists the map's content. Its transactions are the map's only commit points."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr.errors import MapError
from pairvpr.files import find_partials, write_atomically
from pairvpr.runtime.map import blocks as blocks_table
from pairvpr.runtime.map import records as records_table
from pairvpr.runtime.map import segments as segments_table
from pairvpr.runtime.map import tables
from pairvpr.runtime.map.blocks import Block
from pairvpr.runtime.map.errors import missing_error, reading, restore_advice
from pairvpr.runtime.map.meta import Meta
from pairvpr.runtime.map.record_list import RecordList
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import SegmentEntry

FILE = tables.FILE
_META_ROWS = 100  # the most that are read


@dataclass(frozen=True)
class Catalog:
    """A consistent state of the map. `records` are in the order of their ids and include deleted ones."""

    meta: Meta
    segments: list[SegmentEntry]
    records: RecordList

    def is_same(self, meta: Meta, segments: list[SegmentEntry], records: RecordList) -> bool:
        """Return whether these are the state's own properties, segments and blocks, by their checksums."""
        return (self.meta, self.segments) == (meta, segments) and self.records.same_blocks(records)


def check_is_map(path: Path) -> None:
    """Raise MapError unless the folder `path` has a catalog that SQLite can be given."""
    with reading(path / FILE):
        if os.path.lexists(path / FILE):
            tables.check_files(path)
            return
    with reading(path):
        segments = path / segments_table.FOLDER
        if segments.is_dir() and any(segments.iterdir()):
            raise MapError(f"{path / FILE} is missing: {restore_advice(path)}")
    raise missing_error(path)


def load(path: Path, *, thorough: bool = False, known: Catalog | None = None) -> Catalog:
    """Read the catalog of the map `path` in one short transaction.

    A transaction that a killed writer left is rolled back, which needs write access.

    thorough: let SQLite check its own structures too.
    known: an earlier state, whose blocks are not read again. It is returned itself if nothing has changed.
    Raises MapError if there is no map, or it is damaged or of a newer format.
    """
    with _reading(path) as connection:
        return read(connection, path / FILE, thorough=thorough, known=known)


def load_meta(path: Path) -> Meta:
    """Read the properties of the map `path` alone. Raises as `load` does."""
    with _reading(path) as connection:
        return _read_meta(connection, path / FILE, tables.check_schema(connection))


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the catalog of the map `path` for reading."""
    check_is_map(path)
    file = path / FILE
    writable = os.access(path, os.W_OK) and os.access(file, os.W_OK)
    with reading(file), closing(tables.connect(file, "rw" if writable else "ro")) as connection:
        try:
            yield connection
        except sqlite3.OperationalError as error:
            journal = file.with_name(f"{FILE}-journal")
            if writable or "locked" in str(error) or not journal.exists():
                raise
            raise MapError(
                f"{file} was left in the middle of a commit and must be written to restore it: "
                "open the map once with write access, for example with `pairvpr map info`"
            ) from error


def connect(path: Path) -> sqlite3.Connection:
    """Open the catalog of the map `path` for writing. Raises sqlite3.Error."""
    connection = tables.connect(path / FILE, "rw")
    try:
        tables.make_durable(connection)
        # SQLite opens a write-protected file for reading and would complain only at the first commit.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except BaseException:
        connection.close()
        raise
    return connection


def read(
    connection: sqlite3.Connection, file: Path, *, thorough: bool = False, known: Catalog | None = None
) -> Catalog:
    """Read and check an open catalog. Raises sqlite3.Error, ValueError, TypeError or MapError.

    thorough, known: see `load`.
    """
    connection.execute("BEGIN")
    try:
        names = tables.check_schema(connection)
        if thorough:
            tables.check_structures(connection)
        meta = _read_meta(connection, file, names)
        segments = [SegmentEntry.decode(row) for row in tables.read_rising(connection, "segments")]
        _check_counts(meta, segments)
        # Rows are decoded as they come, so that no file can make many large ones of a few pages.
        if names == tables.TABLES:
            records = RecordList(_read_blocks(connection, known))
        else:
            rows = map(_checked_row, tables.read_rising(connection, "records"))
            records = RecordList(blocks_table.pack_rows(rows))
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")  # nothing was written
    if known is not None and known.is_same(meta, segments, records):
        return known
    check_whole(meta, segments, records)
    return Catalog(meta, segments, records)


def _read_meta(connection: sqlite3.Connection, file: Path, names: Sequence[str]) -> Meta:
    meta = Meta.decode(list(tables.select(connection, "meta", f"LIMIT {_META_ROWS}")), file)
    if meta.in_blocks != (names == tables.TABLES):
        raise ValueError(f"its tables are not those of format {meta.format}")
    return meta


def _read_blocks(connection: sqlite3.Connection, known: Catalog | None) -> Iterator[Block]:
    """Yield the blocks. Raises ValueError if they are damaged, or their records do not rise."""
    found: Iterator[Block]
    if known is None:
        found = map(blocks_table.decode, tables.read_rising(connection, "blocks"))
    else:
        held = {(block.number, block.crc): block for block in known.records.blocks}
        keys = list(tables.rising(connection.execute("SELECT number, crc FROM blocks ORDER BY number"), "blocks"))
        found = (held.get(key) or _read_block(connection, key[0]) for key in keys)
    last = 0
    for block in found:
        if block.number <= last:
            raise ValueError("the numbers of its records do not rise")
        last = block.last_id
        yield block


def _read_block(connection: sqlite3.Connection, number: int) -> Block:
    return blocks_table.decode(next(tables.select(connection, "blocks", "WHERE number = ?", number)))


def _checked_row(row: tuple[Any, ...]) -> tuple[Any, ...]:
    records_table.decode(row)
    return row


def read_intact(path: Path) -> tuple[Meta, list[SegmentEntry], list[Record]]:
    """Read the settings, segments and records of the map `path` whose checksums hold. Meta has the original counts.

    Raises MapError if the catalog cannot be opened or its settings are damaged.
    """
    file = path / FILE
    with reading(file), closing(tables.connect(file, "rw")) as connection:
        names = tables.check_schema(connection)
        connection.text_factory = lambda text: text.decode("utf-8", "replace")  # the checksum tells
        meta = _read_meta(connection, file, names)
        segments = list(tables.find_intact(connection, "segments", SegmentEntry.decode))
        if names == tables.TABLES:
            opened = tables.find_intact(connection, "blocks", blocks_table.open_damaged)
            found = {record.id: record for block in opened for record in block.find_intact()}
        else:
            found = {record.id: record for record in tables.find_intact(connection, "records", records_table.decode)}
    return meta, segments, [found[number] for number in sorted(found)]


def create(path: Path, meta: Meta, segments: Sequence[SegmentEntry] = (), records: Iterable[Record] = ()) -> None:
    """Write a catalog of these segments and records, which `meta` counts, to the map `path` in one rename.

    The blocks of a `RecordList` stay as they are.

    An existing catalog is replaced without being read. Raises sqlite3.Error or OSError.
    """
    for leftover in find_partials(path, FILE):
        leftover.unlink()
    with write_atomically(path / FILE) as partial, closing(tables.connect(partial, "rwc")) as connection:
        tables.make_durable(connection)
        connection.execute("BEGIN IMMEDIATE")
        for table in tables.TABLES:
            connection.execute(tables.definition(table))
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.encode())
        tables.insert(connection, "segments", [segment.encode() for segment in segments])
        _insert_records(connection, records)
        connection.execute("COMMIT")


def append(connection: sqlite3.Connection, meta: Meta, segment: SegmentEntry, records: Sequence[Record]) -> None:
    """Commit one segment and its records, and `meta` that counts them.

    Raises sqlite3.Error. Close the connection then, which rolls the transaction back.
    """
    _begin(connection)
    tables.insert(connection, "segments", [segment.encode()])
    _insert_records(connection, records)
    _update_meta(connection, meta)
    connection.execute("COMMIT")


def replace(
    connection: sqlite3.Connection, meta: Meta, segments: Sequence[SegmentEntry], records: Iterable[Record]
) -> None:
    """Commit these segments and records in place of all others. Raises as `append` does."""
    _begin(connection)
    connection.execute("DELETE FROM segments")
    connection.execute("DELETE FROM blocks")
    tables.insert(connection, "segments", [segment.encode() for segment in segments])
    _insert_records(connection, records)
    _update_meta(connection, meta)
    connection.execute("COMMIT")


def delete(connection: sqlite3.Connection, records: Sequence[Record]) -> None:
    """Commit these records, marked as deleted, in place of those with the same ids. Raises as `append` does."""
    _begin(connection)
    gone = {record.id: record for record in records}
    while gone:
        first = min(gone)
        row = next(tables.select(connection, "blocks", "WHERE number <= ? ORDER BY number DESC LIMIT 1", first))
        block = blocks_table.decode(row)
        changed = [gone.pop(record.id, record) for record in block.records(deleted=True)]
        if first in gone:
            raise ValueError(f"record {first} is not in its block")
        connection.execute("DELETE FROM blocks WHERE number = ?", (block.number,))
        _insert_records(connection, changed)
    connection.execute("COMMIT")


def update(connection: sqlite3.Connection, meta: Meta) -> None:
    """Commit other properties of the map. Raises as `append` does."""
    _begin(connection)
    _update_meta(connection, meta)
    connection.execute("COMMIT")


def _begin(connection: sqlite3.Connection) -> None:
    """Begin a transaction that writes. It brings a map of an older format to this one, a block at a time."""
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'blocks'").fetchone():
        return
    connection.execute(tables.definition("blocks"))
    live, last = 0, -(2**63)
    while rows := list(
        tables.select(connection, "records", f"WHERE id > ? ORDER BY id LIMIT {blocks_table.SIZE}", last)
    ):
        last = rows[-1][0]
        (block,) = blocks_table.pack_rows(rows)
        live += len(block.live)
        tables.insert(connection, "blocks", [blocks_table.encode(block)])
    connection.execute("DROP TABLE records")
    meta = Meta.decode(list(tables.select(connection, "meta", f"LIMIT {_META_ROWS}")), Path(FILE))
    _update_meta(connection, meta.upgraded(live))


def _update_meta(connection: sqlite3.Connection, meta: Meta) -> None:
    connection.executemany("UPDATE meta SET value = ? WHERE key = ?", [(value, key) for key, value in meta.encode()])


def _insert_records(connection: sqlite3.Connection, records: Iterable[Record]) -> None:
    blocks = records.blocks if isinstance(records, RecordList) else blocks_table.pack(records)
    tables.insert(connection, "blocks", [blocks_table.encode(block) for block in blocks])


def _check_counts(meta: Meta, segments: list[SegmentEntry]) -> None:
    """Raise ValueError if entries of segments are missing or hold another number of pictures than the map."""
    pictures = sum(segment.count for segment in segments)
    if (len(segments), pictures) != (meta.segments, meta.records):
        raise ValueError(
            f"it has {len(segments)} segments and {pictures} records in place of {meta.segments} and {meta.records}"
        )


def check_whole(meta: Meta, segments: list[SegmentEntry], records: RecordList) -> None:
    """Raise ValueError if rows are missing or repeated. Each row is sound, so only their numbers show it."""
    if len(records) != meta.records:
        raise ValueError(f"it has {len(records)} records in place of {meta.records}")
    numbers = np.array([segment.number for segment in segments], np.int64)
    counts = np.array([segment.count for segment in segments], np.int64)
    found, rows = records.column("segment"), records.column("row")
    at = np.searchsorted(numbers, found)
    known = at < len(numbers)
    at[~known] = 0
    if not (known & (numbers[at] == found) & (rows < counts[at])).all() if len(found) else len(numbers):
        raise ValueError("its records do not match its segments")
    places = (np.cumsum(counts) - counts)[at] + rows if len(found) else rows
    if (np.bincount(places.astype(np.int64), minlength=meta.records) != 1).any():
        raise ValueError("its records do not match its segments")
    if records.has_repeated_names():
        raise ValueError("two of its records have the same name")
