"""The catalog `map.sqlite`, which lists the map's content. Its transactions are the map's only commit points."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pairvpr.errors import MapError
from pairvpr.files import find_partials, open_member, stat_member, write_atomically
from pairvpr.runtime.map import blocks as blocks_table
from pairvpr.runtime.map import records as records_table
from pairvpr.runtime.map import segments as segments_table
from pairvpr.runtime.map.blocks import Block
from pairvpr.runtime.map.errors import RESTORE, missing_error, reading
from pairvpr.runtime.map.record_list import RecordList
from pairvpr.runtime.map.records import Record, checksum
from pairvpr.runtime.map.segments import SegmentEntry
from pairvpr.runtime.map.tokens import NO_TOKENS, TokenFormat
from pairvpr.validation import check_int, check_keys, check_list, check_mapping, check_text, parse_json

FILE = "map.sqlite"
FORMAT = 3
"""Format number of a map with its records in blocks."""
ROW_FORMATS = {"float16": 1, "int8": 2}
"""Format numbers by token type of maps with a row for each record. The first commit to one makes it FORMAT."""

DIGEST = "model_digest"
"""Key in a map's settings: the digest that its bundle must have."""
INDEX = "index_precision"
"""Key in a map's settings: the precision of the search, one of PRECISIONS. Without it, float32."""
PRECISIONS = ("float32", "float16")
HALF_PRECISION_FROM = 50_000
"""Pictures from which maps of the formats before FORMAT are searched in float16. They have no setting for it."""

_PATIENCE = 30.0  # seconds to wait for another process's transaction
_IN_VAIN = 100_000  # consecutive keys tried before the rest of a damaged table counts as lost
_META_COLUMNS = {"key": "TEXT PRIMARY KEY", "value": "TEXT NOT NULL"}
_COLUMNS: dict[str, Mapping[str, str]] = {
    "meta": _META_COLUMNS,
    "segments": segments_table.COLUMNS,
    "blocks": blocks_table.COLUMNS,
    "records": records_table.COLUMNS,
}
_TABLES, _ROW_TABLES = ("meta", "segments", "blocks"), ("meta", "segments", "records")
_META_ROWS = 100  # the most that are read
_LONGEST_VALUE = 1 << 20  # characters of a value of the meta table
_LARGEST = 1 << 16  # of the sizes of descriptors and tokens
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")  # last bytes of a journal that names another one

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Meta:
    """Properties of the whole map.

    identity: identity of the bundle that made the features.
    settings: the map's JSON values.
    descriptor_dim: G.
    token_shape: (M, D), as stored.
    created_by: version of pairvpr.
    segments, records: number of segments and of records, including deleted ones, so that a lost row is noticed.
    format: FORMAT, or one of ROW_FORMATS for a map as an older version wrote it.
    """

    identity: str
    settings: dict[str, Any]
    descriptor_dim: int
    token_shape: tuple[int, int]
    created_by: str
    segments: int = 0
    records: int = 0
    format: int = FORMAT

    @property
    def token_format(self) -> TokenFormat:
        """The format of stored tokens."""
        return TokenFormat.from_settings(self.settings)

    def upgraded(self, pictures: int) -> Meta:
        """Return the properties of this map in FORMAT. It holds `pictures`, and is searched as it was before."""
        if self.format == FORMAT:
            return self
        halved = {INDEX: "float16"} if pictures >= HALF_PRECISION_FROM else {}
        return dataclasses.replace(self, format=FORMAT, settings={**self.settings, **halved})

    def encode(self) -> list[tuple[str, str]]:
        """Encode as rows of the `meta` table: JSON values and a checksum over all of them."""
        rows = sorted((key, json.dumps(value, sort_keys=True, allow_nan=False)) for key, value in asdict(self).items())
        return [*rows, ("crc", str(checksum(rows)))]

    @staticmethod
    def decode(rows: Sequence[tuple[str, str]], file: Path) -> Meta:
        """Decode the rows. Raises ValueError if they are damaged, MapError for a newer format."""
        for key, value in rows:
            check_text(key, "a key of its settings")
            check_text(value, f"its {key!r:.50}", _LONGEST_VALUE)
        values = sorted((key, value) for key, value in rows if key != "crc")
        if [value for key, value in rows if key == "crc"] != [str(checksum(values))]:
            raise ValueError("its settings fail their checksum")
        fields = {key: parse_json(value) for key, value in values}
        made = check_int(fields.get("format"), "its format", 1, 2**31)
        if made > FORMAT:
            raise MapError(f"{file} was made by a newer pairvpr (format {made}, this one reads {FORMAT}): upgrade")
        check_keys(fields, "its list of settings", {field.name for field in dataclasses.fields(Meta)})
        settings = dict(check_mapping(fields["settings"], "its settings", 1000))
        if DIGEST in settings:
            check_text(settings[DIGEST], "its digest of the model", 64)
        if settings.get(INDEX, PRECISIONS[0]) not in PRECISIONS:
            raise ValueError(f"its {INDEX} is none of {', '.join(PRECISIONS)}")
        tokens, width = check_list(fields["token_shape"], "the shape of tokens", 2, 2)
        least, most = (0, 0) if TokenFormat.from_settings(settings).type == NO_TOKENS else (1, _LARGEST)
        meta = Meta(
            identity=check_text(fields["identity"], "its model", 200),
            settings=settings,
            descriptor_dim=check_int(fields["descriptor_dim"], "the size of descriptors", 1, _LARGEST),
            token_shape=(
                check_int(tokens, "the number of tokens", least, most),
                check_int(width, "the size of tokens", least, most),
            ),
            created_by=check_text(fields["created_by"], "its version", 200),
            segments=check_int(fields["segments"], "its number of segments", 0, 2**40),
            records=check_int(fields["records"], "its number of records", 0, 2**40),
            format=made,
        )
        if made not in (FORMAT, ROW_FORMATS.get(meta.token_format.type)):
            raise ValueError(f"{meta.token_format.type} tokens in format {made}")
        return meta


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
            _check_files(path)
            return
    with reading(path):
        segments = path / segments_table.FOLDER
        if segments.is_dir() and any(segments.iterdir()):
            raise MapError(f"{path / FILE} is missing: {RESTORE}")
    raise missing_error(path)


def load(path: Path, *, thorough: bool = False) -> Catalog:
    """Read the catalog of the map `path` in one short transaction.

    A transaction that a killed writer left is rolled back, which needs write access.

    thorough: let SQLite check its own structures too.
    Raises MapError if there is no map, or it is damaged or of a newer format.
    """
    return _load(path, thorough, None)


def load_newer(path: Path, known: Catalog) -> Catalog:
    """Read the catalog as `load` does, without the blocks that are the same in the earlier state `known`.

    Return `known` itself if nothing has changed.
    """
    return _load(path, False, known)


def _load(path: Path, thorough: bool, known: Catalog | None) -> Catalog:
    check_is_map(path)
    file = path / FILE
    writable = os.access(path, os.W_OK) and os.access(file, os.W_OK)
    with reading(file), closing(_connect(file, "rw" if writable else "ro")) as connection:
        try:
            return read(connection, file, thorough=thorough, known=known)
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
    connection = _connect(path / FILE, "rw")
    try:
        _make_durable(connection)
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

    thorough, known: see `load` and `load_newer`.
    """
    connection.execute("BEGIN")
    try:
        tables = _check_schema(connection)
        if thorough:
            findings = [row[0] for row in connection.execute("PRAGMA integrity_check(1)")]
            if findings != ["ok"]:
                raise ValueError(findings[0])
        meta = _read_meta(connection, file, tables)
        segments = [
            SegmentEntry.decode(row) for row in _rising(_select(connection, "segments", "ORDER BY number"), "segments")
        ]
        _check_counts(meta, segments)
        # Rows are decoded as they come, so that no file can make many large ones of a few pages.
        if tables == _TABLES:
            records = RecordList(_read_blocks(connection, known))
        else:
            rows = _rising(_select(connection, "records", "ORDER BY id"), "records")
            records = RecordList(blocks_table.pack_rows(map(_checked_row, rows)))
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")  # nothing was written
    if known is not None and known.is_same(meta, segments, records):
        return known
    check_whole(meta, segments, records)
    return Catalog(meta, segments, records)


def _read_meta(connection: sqlite3.Connection, file: Path, tables: Sequence[str]) -> Meta:
    meta = Meta.decode(list(_select(connection, "meta", f"LIMIT {_META_ROWS}")), file)
    if (meta.format == FORMAT) != (tables == _TABLES):
        raise ValueError(f"its tables are not those of format {meta.format}")
    return meta


def _read_blocks(connection: sqlite3.Connection, known: Catalog | None) -> Iterator[Block]:
    """Yield the blocks. Raises ValueError if they are damaged, or their records do not rise."""
    found: Iterator[Block]
    if known is None:
        found = map(blocks_table.decode, _rising(_select(connection, "blocks", "ORDER BY number"), "blocks"))
    else:
        held = {(block.number, block.crc): block for block in known.records.blocks}
        keys = list(_rising(connection.execute("SELECT number, crc FROM blocks ORDER BY number"), "blocks"))
        found = (held.get(key) or _read_block(connection, key[0]) for key in keys)
    last = 0
    for block in found:
        if block.number <= last:
            raise ValueError("the numbers of its records do not rise")
        last = block.last_id
        yield block


def _read_block(connection: sqlite3.Connection, number: int) -> Block:
    return blocks_table.decode(next(_select(connection, "blocks", "WHERE number = ?", number)))


def _checked_row(row: tuple[Any, ...]) -> tuple[Any, ...]:
    records_table.decode(row)
    return row


def read_intact(path: Path) -> tuple[Meta, list[SegmentEntry], list[Record]]:
    """Read the settings, segments and records of the map `path` whose checksums hold. Meta has the original counts.

    Raises MapError if the catalog cannot be opened or its settings are damaged.
    """
    file = path / FILE
    with reading(file), closing(_connect(file, "rw")) as connection:
        tables = _check_schema(connection)
        connection.text_factory = lambda text: text.decode("utf-8", "replace")  # the checksum tells
        meta = _read_meta(connection, file, tables)
        segments = list(_intact(connection, "segments", "number", SegmentEntry.decode))
        if tables == _TABLES:
            opened = _intact(connection, "blocks", "number", blocks_table.open_damaged)
            found = {record.id: record for block in opened for record in block.find_intact()}
        else:
            found = {record.id: record for record in _intact(connection, "records", "id", records_table.decode)}
    return meta, segments, [found[number] for number in sorted(found)]


def create(path: Path, meta: Meta, segments: Sequence[SegmentEntry] = (), records: Iterable[Record] = ()) -> None:
    """Write a catalog of these segments and records, which `meta` counts, to the map `path` in one rename.

    The blocks of a `RecordList` stay as they are.

    An existing catalog is replaced without being read. Raises sqlite3.Error or OSError.
    """
    for leftover in find_partials(path, FILE):
        leftover.unlink()
    with write_atomically(path / FILE) as partial, closing(_connect(partial, "rwc")) as connection:
        _make_durable(connection)
        connection.execute("BEGIN IMMEDIATE")
        for table in _TABLES:
            connection.execute(_definition(table))
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.encode())
        _insert(connection, "segments", [segment.encode() for segment in segments])
        _insert_records(connection, records)
        connection.execute("COMMIT")


def append(connection: sqlite3.Connection, meta: Meta, segment: SegmentEntry, records: Sequence[Record]) -> None:
    """Commit one segment and its records, and `meta` that counts them.

    Raises sqlite3.Error. Close the connection then, which rolls the transaction back.
    """
    _begin(connection)
    _insert(connection, "segments", [segment.encode()])
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
    _insert(connection, "segments", [segment.encode() for segment in segments])
    _insert_records(connection, records)
    _update_meta(connection, meta)
    connection.execute("COMMIT")


def delete(connection: sqlite3.Connection, records: Sequence[Record]) -> None:
    """Commit these records, marked as deleted, in place of those with the same ids. Raises as `append` does."""
    _begin(connection)
    gone = {record.id: record for record in records}
    while gone:
        first = min(gone)
        row = next(_select(connection, "blocks", "WHERE number <= ? ORDER BY number DESC LIMIT 1", first))
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
    connection.execute(_definition("blocks"))
    live, last = 0, -(2**63)
    while rows := list(_select(connection, "records", f"WHERE id > ? ORDER BY id LIMIT {blocks_table.SIZE}", last)):
        last = rows[-1][0]
        (block,) = blocks_table.pack_rows(rows)
        live += len(block.live)
        _insert(connection, "blocks", [blocks_table.encode(block)])
    connection.execute("DROP TABLE records")
    meta = Meta.decode(list(_select(connection, "meta", f"LIMIT {_META_ROWS}")), Path(FILE))
    _update_meta(connection, meta.upgraded(live))


def _update_meta(connection: sqlite3.Connection, meta: Meta) -> None:
    connection.executemany("UPDATE meta SET value = ? WHERE key = ?", [(value, key) for key, value in meta.encode()])


def _insert_records(connection: sqlite3.Connection, records: Iterable[Record]) -> None:
    blocks = records.blocks if isinstance(records, RecordList) else blocks_table.pack(records)
    _insert(connection, "blocks", [blocks_table.encode(block) for block in blocks])


def _check_files(path: Path) -> None:
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


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    # isolation_level None: this module begins and ends transactions itself.
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
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 8 * _LONGEST_VALUE)
    return connection


def _definition(table: str) -> str:
    columns = ", ".join(f'"{name}" {kind}' for name, kind in _COLUMNS[table].items())
    return f"CREATE TABLE {table} ({columns})"


def _check_schema(connection: sqlite3.Connection) -> tuple[str, ...]:
    """Return the names of the catalog's three tables.

    Raises ValueError unless they are as they were defined, and there is nothing else.
    """
    found = set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 5"))
    found.discard(("index", "sqlite_autoindex_meta_1", "meta", None))  # SQLite makes it for the primary key
    for tables in (_TABLES, _ROW_TABLES):
        if found == {("table", table, table, _definition(table)) for table in tables}:
            return tables
    raise ValueError("its tables are not those of a map")


def _make_durable(connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
    if mode != "delete":
        raise sqlite3.OperationalError(f"the journal mode stays {mode}")
    connection.execute("PRAGMA synchronous=FULL")


def _select(connection: sqlite3.Connection, table: str, clause: str, *values: int) -> Iterator[tuple[Any, ...]]:
    # SQLite reads a quoted name that is not a column as a text, unless the table stands before it.
    names = ", ".join(f'{table}."{name}"' for name in _COLUMNS[table])
    return connection.execute(f"SELECT {names} FROM {table} {clause}", values)


def _rising(rows: Iterator[tuple[Any, ...]], table: str) -> Iterator[tuple[Any, ...]]:
    """Yield rows whose keys rise. Raises ValueError at one that does not, because pages may lead back to each other."""
    last = -(2**63)
    for row in rows:
        if not isinstance(row[0], int) or row[0] <= last:
            raise ValueError(f"the keys of its {table} do not rise")
        last = row[0]
        yield row


def _intact(
    connection: sqlite3.Connection,
    table: str,
    key: str,
    decode: Callable[[tuple[Any, ...]], _Row],
) -> Iterator[_Row]:
    """Yield the readable rows of a damaged table whose checksums hold, in the order of their keys."""
    last, in_vain = -1, 0
    while in_vain < _IN_VAIN:
        try:
            # If a page is damaged, all keys that may lie on it are tried, up to the next page.
            clause = f"WHERE {key} > {last + in_vain} ORDER BY {key} LIMIT 1"
            rows = list(_select(connection, table, clause))
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


def _insert(connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if not rows:
        return
    marks = ", ".join("?" * len(rows[0]))
    connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


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
