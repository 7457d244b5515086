"""Blocks of the catalog: the records of up to 256 pictures as columns. A record is made only when it is asked for.

A block begins with its magic number, the number of records, the number of texts, and a bit for each optional column
that it has. The columns follow, then the offsets of the texts, then the texts in UTF-8. These are the names, and each
source and frame once. NaN stands for a missing number.
"""

from __future__ import annotations

import functools
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import records as records_table
from pairvpr.runtime.map.records import LENGTHS, LIMITS, Record, Value
from pairvpr.validation import check_int, check_text

COLUMNS: dict[str, str] = {
    "number": "INTEGER PRIMARY KEY",
    "crc": "INTEGER NOT NULL",
    "content": "BLOB NOT NULL",
}
"""The columns of the `blocks` table. `number` is the first record's id, and `crc` covers number and content.

SQLite reads a row up to the last column that is asked for, so that numbers and checksums are read without the content.
"""

SIZE = 256
"""Most records of a block. It bounds the cost of a removal, and the names that a damaged page can take."""

_MAGIC = b"PVB1"
_HEAD = struct.Struct("<4sIII")
_TEXT_OFFSET = np.dtype("<u4")
_NO_FRAME = 0xFFFF
_NOWHERE = (math.nan, math.nan, math.nan)
_FIXED: dict[str, tuple[np.dtype[Any], int]] = {
    "id": (np.dtype("<i8"), 1),
    "segment": (np.dtype("<i8"), 1),
    "row": (np.dtype("<i8"), 1),
    "descriptor_crc": (np.dtype("<u4"), 1),
    "tokens_crc": (np.dtype("<u4"), 1),
    "crc": (np.dtype("<u4"), 1),
    "source": (np.dtype("<u2"), 1),
    "deleted": (np.dtype("u1"), 1),
}
_OPTIONAL: dict[str, tuple[np.dtype[Any], int]] = {
    "timestamp": (np.dtype("<f8"), 1),
    "position": (np.dtype("<f8"), 3),
    "frame": (np.dtype("<u2"), 1),
    "orientation": (np.dtype("<f8"), 4),
    "gps": (np.dtype("<f8"), 3),
}
_LIMITS: dict[str, float | tuple[float, ...]] = {
    "timestamp": LIMITS["timestamp"],
    "position": LIMITS["position"],
    "orientation": LENGTHS[1],
    "gps": (LIMITS["latitude"], LIMITS["longitude"], LIMITS["altitude"]),
}
_AT = {name: place for place, name in enumerate(records_table.COLUMNS)}

_Array = npt.NDArray[Any]


class Block:
    """The records of one row of the `blocks` table.

    number: id of the first record.
    count: number of records, including deleted ones.
    live: (m,) int64, positions of the records that are not deleted.
    """

    def __init__(self, number: int, content: bytes, crc: int) -> None:
        """Take over the content of a block. Raises ValueError if it does not have the layout of a block."""
        self.number, self.content, self.crc = number, content, crc
        if len(content) < _HEAD.size:
            raise ValueError(f"block {number} is cut short")
        count: int
        magic, count, texts, held = _HEAD.unpack_from(content)
        if magic != _MAGIC or not 1 <= count <= SIZE or not count < texts <= 3 * count or held >> len(_OPTIONAL):
            raise ValueError(f"block {number} is not a block of records")
        self.count, at = count, _HEAD.size
        self._columns: dict[str, _Array] = {}
        optional = {name: kind for bit, (name, kind) in enumerate(_OPTIONAL.items()) if held >> bit & 1}
        for name, (dtype, width) in {**_FIXED, **optional}.items():
            end = at + count * width * dtype.itemsize
            if end > len(content):
                raise ValueError(f"block {number} is cut short")
            column = np.frombuffer(content, dtype, count * width, at)
            self._columns[name], at = column if width == 1 else column.reshape(count, width), end
        self._heap = at + (texts + 1) * _TEXT_OFFSET.itemsize
        if self._heap > len(content):
            raise ValueError(f"block {number} is cut short")
        self._texts = np.frombuffer(content, _TEXT_OFFSET, texts + 1, at)
        self.live: npt.NDArray[np.int64] = np.flatnonzero(self._columns["deleted"] == 0)

    def __len__(self) -> int:
        return self.count

    @property
    def last_id(self) -> int:
        """Return the id of the last record."""
        return int(self._columns["id"][-1])

    def column(self, name: str) -> _Array | None:
        """Return a column (n,), (n, 3) or (n, 4), None if no record has it.

        The columns are id, segment, row, descriptor_crc, tokens_crc, deleted, timestamp in seconds, position in metres,
        orientation as x, y, z, w, and gps as latitude and longitude in degrees and altitude in metres.
        """
        return self._columns.get(name)

    def record(self, position: int) -> Record:
        """Return the record at a position. Raises ValueError for a damaged text."""
        return self._record(position, {name: column[position].tolist() for name, column in self._columns.items()})

    def records(self, *, deleted: bool) -> Iterator[Record]:
        """Yield the records in order, several times as fast as one by one.

        deleted: include deleted records.
        """
        names, columns = list(self._columns), [column.tolist() for column in self._columns.values()]
        for position, values in enumerate(zip(*columns, strict=True)):
            at = dict(zip(names, values, strict=True))
            if deleted or not at["deleted"]:
                yield self._record(position, at)

    def _record(self, position: int, at: dict[str, Any]) -> Record:
        """Make a record of its values in the columns."""
        pose, gps, timestamp = None, None, at.get("timestamp", math.nan)
        x, y, z = at.get("position", _NOWHERE)
        if not math.isnan(x):
            q = at.get("orientation", [math.nan])
            frame = self._text(self.count + at["frame"])
            pose = Pose(x, y, z, None if math.isnan(q[0]) else tuple(q), frame)
        latitude, longitude, altitude = at.get("gps", _NOWHERE)
        if not math.isnan(latitude):
            gps = Gps(latitude, longitude, None if math.isnan(altitude) else altitude)
        return Record(
            at["id"],
            self._text(position),
            self._text(self.count + at["source"]),
            None if math.isnan(timestamp) else timestamp,
            pose,
            gps,
            at["segment"],
            at["row"],
            at["descriptor_crc"],
            at["tokens_crc"],
            bool(at["deleted"]),
        )

    def names(self, positions: Iterable[int]) -> list[str]:
        """Return the names of the records at some positions, several times as fast as one by one."""
        offsets, content = (self._texts.astype(np.int64) + self._heap).tolist(), self.content
        return [content[offsets[i] : offsets[i + 1]].decode("utf-8") for i in positions]

    @functools.cached_property
    def name_hashes(self) -> npt.NDArray[np.int64]:
        """Return hashes (m,) of the names of the records that are not deleted. They hold for this process."""
        offsets, content = (self._texts.astype(np.int64) + self._heap).tolist(), self.content
        return np.array([hash(content[offsets[i] : offsets[i + 1]]) for i in self.live.tolist()], np.int64)

    def find_intact(self) -> Iterator[Record]:
        """Yield the records of a damaged block whose own checksums hold."""
        for position in range(self.count):
            try:
                record = self.record(position)
                row = records_table.encode(record)
                if row[-1] == int(self._columns["crc"][position]):
                    yield records_table.decode(row)
            except (ValueError, TypeError, IndexError, OverflowError):
                continue  # the caller counts the records that are missing

    def _text(self, position: int) -> str:
        start, end = self._heap + int(self._texts[position]), self._heap + int(self._texts[position + 1])
        return self.content[start:end].decode("utf-8")

    def check(self) -> None:
        """Raise ValueError unless every value has its type and range. Whoever made the file made its checksum."""
        of = f"of block {self.number}"
        ids = self._columns["id"]
        check_int(int(ids[0]), f"the first number {of}", 1, 2**63 - 1)
        if int(ids[0]) != self.number or (np.diff(ids) <= 0).any():
            raise ValueError(f"the numbers {of} do not rise from its own")
        _check_range(self._columns["segment"], 1, 2**53, f"a segment {of}")
        _check_range(self._columns["row"], 0, 2**40, f"a row {of}")
        _check_range(self._columns["deleted"], 0, 1, f"a flag {of}")
        self._check_texts(of)
        self._check_places(of)

    def _check_texts(self, of: str) -> None:
        offsets, heap = self._texts.astype(np.int64), self.content[self._heap :]
        sizes = np.diff(offsets)
        if offsets[0] != 0 or offsets[-1] != len(heap) or (sizes < 0).any():
            raise ValueError(f"the texts {of} do not follow each other")
        text = heap.decode("utf-8")  # valid as a whole, and cut between characters, it is valid in its parts
        starts = offsets[:-1][sizes > 0]
        if len(text) != len(heap) and ((np.frombuffer(heap, np.uint8)[starts] & 0xC0) == 0x80).any():
            raise ValueError(f"a text {of} begins inside a character")
        for position in np.flatnonzero(sizes > 4096).tolist():
            check_text(self._text(position), f"a text {of}")
        others = len(sizes) - self.count
        _check_range(self._columns["source"], 0, others - 1, f"a source {of}")
        frames = self._columns.get("frame")
        if frames is not None:
            _check_range(frames[frames != _NO_FRAME], 0, others - 1, f"a frame {of}")

    def _check_places(self, of: str) -> None:
        columns = self._columns
        for name, limit in _LIMITS.items():
            if name in columns and (np.abs(columns[name]) > limit).any():  # false for NaN, which is no number here
                raise ValueError(f"a number {of} is not finite or too large")
        if ("position" in columns) != ("frame" in columns) or ("orientation" in columns and "position" not in columns):
            raise ValueError(f"a pose {of} is not whole")
        if "position" in columns:
            missing = np.isnan(columns["position"])
            placed = ~missing[:, 0]
            if (missing != missing[:, :1]).any() or (placed != (columns["frame"] != _NO_FRAME)).any():
                raise ValueError(f"a pose {of} is not whole")
            if "orientation" in columns:
                turned = np.isfinite(columns["orientation"])
                if (turned != turned[:, :1]).any() or (turned[:, 0] & ~placed).any():
                    raise ValueError(f"an orientation {of} is not whole")
                lengths = np.linalg.norm(columns["orientation"][turned[:, 0]], axis=1)
                if ((lengths < LENGTHS[0]) | (lengths > LENGTHS[1])).any():
                    raise ValueError(f"an orientation {of} is not a unit quaternion")
        if "gps" in columns:
            known = np.isfinite(columns["gps"])
            if (known[:, 0] != known[:, 1]).any() or (known[:, 2] & ~known[:, 0]).any():
                raise ValueError(f"a GPS position {of} is not whole")


def decode(row: Sequence[Any]) -> Block:
    """Decode a row of COLUMNS. Raises ValueError or TypeError if it is not as it was written."""
    block = open_damaged(row)
    if _checksum(block.number, block.content) != block.crc:
        raise ValueError(f"block {block.number} fails its checksum")
    block.check()
    return block


def open_damaged(row: Sequence[Any]) -> Block:
    """Take a row of COLUMNS without its checksum, for `Block.find_intact`. Raises ValueError for another layout."""
    number, crc, content = row
    number = check_int(number, "a block's number", 1, 2**63 - 1)
    if not isinstance(content, bytes):
        raise ValueError(f"the content of block {number} is not binary")
    return Block(number, content, check_int(crc, f"the checksum of block {number}", 0, 2**32 - 1))


def encode(block: Block) -> tuple[int, int, bytes]:
    """Encode a block as a row of COLUMNS."""
    return block.number, block.crc, block.content


def pack(records: Iterable[Record]) -> list[Block]:
    """Make blocks of records, whose ids rise. Raises ValueError if a record cannot be stored."""
    return pack_rows(records_table.encode(record) for record in records)


def pack_rows(rows: Iterable[Sequence[Value]]) -> list[Block]:
    """Make blocks of records as rows of `records.COLUMNS`, whose ids rise."""
    blocks: list[Block] = []
    waiting: list[Sequence[Value]] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == SIZE:
            blocks.append(_pack(waiting))
            waiting = []
    return [*blocks, _pack(waiting)] if waiting else blocks


def _pack(rows: Sequence[Sequence[Any]]) -> Block:
    values = dict(zip(records_table.COLUMNS, zip(*rows, strict=True), strict=True))
    others = {text: place for place, text in enumerate(dict.fromkeys([*values["source"], *values["frame"]]))}
    others = {text: place for place, text in enumerate(text for text in others if text is not None)}
    columns: dict[str, Any] = {
        **{name: values[name] for name in _FIXED},
        "source": [others[text] for text in values["source"]],
        "timestamp": values["timestamp"],
        "position": list(zip(values["x"], values["y"], values["z"], strict=True)),
        "frame": [_NO_FRAME if text is None else others[text] for text in values["frame"]],
        "orientation": list(zip(values["qx"], values["qy"], values["qz"], values["qw"], strict=True)),
        "gps": list(zip(values["latitude"], values["longitude"], values["altitude"], strict=True)),
    }
    parts, held = [], 0
    for name, (dtype, _) in _FIXED.items():
        parts.append(np.array(columns[name], dtype).tobytes())
    for bit, (name, (dtype, _)) in enumerate(_OPTIONAL.items()):
        column = np.array(columns[name], dtype)  # None becomes NaN
        if (column != _NO_FRAME).any() if name == "frame" else np.isfinite(column).any():
            held |= 1 << bit
            parts.append(column.tobytes())
    texts = [text.encode("utf-8") for text in (*values["name"], *others)]
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64).astype(_TEXT_OFFSET)
    head = _HEAD.pack(_MAGIC, len(rows), len(texts), held)
    content = b"".join([head, *parts, offsets.tobytes(), *texts])
    number = rows[0][_AT["id"]]
    return Block(number, content, _checksum(number, content))


def _checksum(number: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(number.to_bytes(8, "little")))


def _check_range(column: _Array, low: int, high: int, name: str) -> None:
    if len(column) and (int(column.min()) < low or int(column.max()) > high):
        raise ValueError(f"{name} is not a whole number from {low} to {high}")
