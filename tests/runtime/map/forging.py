"""Forge maps whose checksums hold, as whoever makes a file can."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr.runtime.features import Features
from pairvpr.runtime.map import MapWriter, catalog, tables
from pairvpr.runtime.map.meta import ROW_FORMATS
from pairvpr.runtime.map.records import COLUMNS, checksum, encode

SEGMENT_COLUMNS = ("number", "file", "count", "bytes", "header_crc")
Row = dict[str, Any]


def make_map(path: Path, count: int = 20, tokens: str = "float16") -> Path:
    """Make a map of random features in two segments, with a file in place of the model."""
    with MapWriter.open(
        path,
        identity="a" * 64,
        descriptor_dim=8,
        token_shape=(5, 4),
        settings={"tokens": {"type": tokens}},
        install_model=lambda folder: (folder / "bundle.json").touch(),
    ) as writer:
        for number in range(count):
            random = np.random.default_rng(number)
            descriptor = random.standard_normal((1, 8), np.float32)
            features = Features(descriptor / np.linalg.norm(descriptor), random.standard_normal((1, 5, 4), np.float32))
            writer.add(name=f"{number}.jpg", source="/pictures", timestamp=number / 10, features=features)
            if number == count // 2:
                writer.commit()
    return path


def to_rows(path: Path) -> Path:
    """Rewrite a map in the format before blocks: a row for each record."""
    state = catalog.load(path)
    with closing(sqlite3.connect(path / "map.sqlite", isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("DROP TABLE blocks")
        connection.execute(tables.definition("records"))
        marks = ", ".join("?" * len(COLUMNS))
        connection.executemany(f"INSERT INTO records VALUES ({marks})", map(encode, state.records))
        connection.execute("COMMIT")
        connection.execute("VACUUM")
    edit_meta(path, lambda meta: {**meta, "format": ROW_FORMATS[state.meta.token_format.type]})
    return path


def has_rows(path: Path) -> bool:
    """Return whether the map is in the format before blocks."""
    with closing(sqlite3.connect(path / "map.sqlite")) as connection:
        return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'records'").fetchone() is not None


def edit_records(path: Path, edit: Callable[[Row], Row]) -> None:
    """Replace each record by the edited one. The map gets the format before blocks, which holds any value."""
    if not has_rows(path):
        to_rows(path)
    _edit(path, "records", tuple(COLUMNS)[:-1], edit)


def edit_segments(path: Path, edit: Callable[[Row], Row]) -> None:
    """Replace each segment's entry by the edited one."""
    _edit(path, "segments", SEGMENT_COLUMNS, edit)


def edit_blocks(path: Path, edit: Callable[[bytes], bytes]) -> None:
    """Replace the content of each block by the edited one, and its checksum."""
    with closing(sqlite3.connect(path / "map.sqlite")) as connection, connection:
        for number, content in connection.execute("SELECT number, content FROM blocks").fetchall():
            edited = edit(content)
            crc = zlib.crc32(edited, zlib.crc32(number.to_bytes(8, "little")))
            connection.execute("UPDATE blocks SET content = ?, crc = ? WHERE number = ?", (edited, crc, number))


def edit_meta(path: Path, edit: Callable[[Row], Row]) -> None:
    """Replace the settings by the edited ones."""
    with closing(sqlite3.connect(path / "map.sqlite")) as connection, connection:
        stored = dict(connection.execute("SELECT key, value FROM meta WHERE key != 'crc'"))
        edited = edit({key: json.loads(value) for key, value in stored.items()})
        rows = sorted((key, json.dumps(value, sort_keys=True)) for key, value in edited.items())
        connection.execute("DELETE FROM meta")
        connection.executemany("INSERT INTO meta VALUES (?, ?)", [*rows, ("crc", str(checksum(rows)))])


def set_row(path: Path, number: int, tensor: str, row: int, content: bytes) -> None:
    """Replace a row of a segment's tensor, and the checksum in its record."""
    file = path / "segments" / f"{number:06d}.safetensors"
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start = 8 + length + json.loads(data[8 : 8 + length])[tensor]["data_offsets"][0] + row * len(content)
    data[start : start + len(content)] = content
    file.write_bytes(data)
    column = "descriptor_crc" if tensor == "descriptors" else "tokens_crc"

    def reseal(record: Row) -> Row:
        here = (record["segment"], record["row"]) == (number, row)
        return {**record, column: zlib.crc32(content)} if here else record

    edit_records(path, reseal)


def _edit(path: Path, table: str, columns: tuple[str, ...], edit: Callable[[Row], Row]) -> None:
    names = ", ".join(f'"{column}"' for column in columns)
    with closing(sqlite3.connect(path / "map.sqlite")) as connection, connection:
        rows = [dict(zip(columns, row, strict=True)) for row in connection.execute(f"SELECT {names} FROM {table}")]
        connection.execute(f"DELETE FROM {table}")
        for row in map(edit, rows):
            values = tuple(row[column] for column in columns)
            marks = ", ".join("?" * (len(values) + 1))
            connection.execute(f"INSERT INTO {table} VALUES ({marks})", (*values, checksum(values)))
