"""Segments: immutable safetensors files, each with the descriptors and tokens of some hundred pictures."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from pairvpr.files import check_folder, find_partials, open_member, stat_member, write_atomically
from pairvpr.runtime.map.errors import damage_error, reading, writing
from pairvpr.runtime.map.meta import Meta
from pairvpr.runtime.map.records import Record, Value, checksum
from pairvpr.runtime.map.thumbnails import is_stray
from pairvpr.runtime.map.tokens import SCALE_TYPE, STORED, StoredTokens
from pairvpr.validation import check_int, check_list, check_mapping, parse_json

FOLDER = "segments"

DESCRIPTOR_TYPE = np.dtype("<f4")
NORM_TOLERANCE = 0.02
"""Largest difference of a descriptor's length from 1. Encoders in bfloat16 and INT8 are off by less."""
_LONGEST_HEADER = 1 << 16  # bytes; a segment's header has some hundred
_LARGEST_FILE = 1 << 50
# Version 0.1 wrote a segment under a name with .tmp at its end.
_SEGMENT_FILE = re.compile(r"\d{6,}\.safetensors(\.tmp)?")
_SAFETENSORS_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I8": np.dtype("i1")}

COLUMNS: dict[str, str] = {
    "number": "INTEGER PRIMARY KEY",
    "file": "TEXT NOT NULL",
    "count": "INTEGER NOT NULL",
    "bytes": "INTEGER NOT NULL",
    "header_crc": "INTEGER NOT NULL",
    "crc": "INTEGER NOT NULL",
}
"""The columns of the `segments` table, in order, with their types. `crc` covers all before it."""


@dataclass(frozen=True)
class SegmentEntry:
    """The catalog's entry of a segment file.

    number: number of the segment.
    file: name in the segments folder.
    count: number of pictures.
    bytes: size of the file.
    header_crc: crc32 of the safetensors header with its length.
    """

    number: int
    file: str
    count: int
    bytes: int
    header_crc: int

    def encode(self) -> tuple[Value, ...]:
        """Encode the entry as a row in the order of COLUMNS."""
        fields = (self.number, self.file, self.count, self.bytes, self.header_crc)
        return (*fields, checksum(fields))

    @staticmethod
    def decode(row: tuple[Any, ...]) -> SegmentEntry:
        """Decode a row of COLUMNS. Raises ValueError or TypeError if it is not as it was written."""
        number, file, count, size, header_crc, crc = row
        if checksum(row[:-1]) != crc:
            raise ValueError(f"segment {number!s:.20} fails its checksum")
        number = check_int(number, "a segment's number", 1, 2**53)
        if file != segment_name(number):
            raise ValueError(f"segment {number} has a file of another name")
        return SegmentEntry(
            number,
            file,
            check_int(count, f"the number of pictures in segment {number}", 1, 2**40),
            check_int(size, f"the size of segment {number}", 9, _LARGEST_FILE),
            check_int(header_crc, f"a checksum of segment {number}", 0, 2**32 - 1),
        )


def find_segment(folder: Path, number: int) -> SegmentEntry:
    """Restore the lost entry of a segment from its file's header. Its rows are not checked.

    Raises MapError if there is no such file or its header is not one of a segment.
    """
    path = folder / segment_name(number)
    with reading(path), open_member(folder, path.name) as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(8)
        header = stream.read(_header_length(start, size))
        descriptors = check_mapping(_parse_header(header).get("descriptors"), "the header of descriptors", 10)
        count, _ = check_list(descriptors.get("shape"), "the shape of descriptors", 2, 2)
        count = check_int(count, "the number of descriptors", 1, size)
        return SegmentEntry(number, path.name, count, size, zlib.crc32(header, zlib.crc32(start)))


def segment_name(number: int) -> str:
    """Return the name of a segment's file in the segments folder."""
    return f"{number:06d}.safetensors"


def write_segment(
    folder: Path, number: int, descriptors: npt.NDArray[np.float32], tokens: Sequence[StoredTokens]
) -> SegmentEntry:
    """Write descriptors (n, G) and the tokens of n pictures to a new segment file, in one step.

    Raises OSError if it cannot be written. Nothing is left of it then.
    """
    tensors = {
        "descriptors": np.ascontiguousarray(descriptors, DESCRIPTOR_TYPE),
        "tokens": np.stack([picture.values for picture in tokens]),
    }
    scales = [picture.scales for picture in tokens if picture.scales is not None]
    if scales:
        tensors["token_scales"] = np.stack(scales)
    content = safetensors.numpy.save(tensors)
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    file = segment_name(number)
    with write_atomically(folder / file) as partial:
        partial.write_bytes(content)
    return SegmentEntry(number, file, len(descriptors), len(content), zlib.crc32(header))


class Segment:
    """An open segment file, read with positioned reads. Safe to use from several threads."""

    def __init__(self, folder: Path, entry: SegmentEntry, meta: Meta, *, salvage: bool = False):
        """Open the file of `entry`.

        meta: properties of the map, among them the sizes of its features.
        salvage: do not check size and header. The position of the rows then follows from the entry. Use only
        `read_picture` then, which checks each row against its record.
        Raises MapError if the file is missing, has another size, or its header is not as it was written.
        """
        self.entry = entry
        self.path = folder / entry.file
        self._descriptor_dim, self._token_shape = meta.descriptor_dim, meta.token_shape
        self._token_type = STORED[meta.token_format.type]
        self._scaled = meta.token_format.type == "int8"
        self._users, self._lock = 1, Lock()
        with reading(self.path):
            check_folder(folder)
            self._stream: FileIO = open_member(folder, entry.file)
        try:
            with reading(self.path):
                self._descriptors_at, self._tokens_at, self._scales_at = (
                    self._derive_offsets() if salvage else self._read_header()
                )
        except BaseException:
            self._stream.close()
            raise

    def share(self) -> Segment:
        """Return the segment for one more user, who closes it, too."""
        with self._lock:
            self._users += 1
        return self

    def close(self) -> None:
        """Close the file if there is no other user."""
        with self._lock:
            self._users -= 1
            if self._users <= 0:
                self._stream.close()

    def read_descriptors(self) -> npt.NDArray[np.float32]:
        """Read all descriptors, (count, G) float32, without checking them; see `check_descriptor`."""
        count, dim = self.entry.count, self._descriptor_dim
        content = self._read(self._descriptors_at, count * dim * DESCRIPTOR_TYPE.itemsize)
        return np.frombuffer(content, DESCRIPTOR_TYPE).reshape(count, dim)

    def check_descriptor(self, descriptors: npt.NDArray[np.float32], record: Record) -> None:
        """Raise MapError unless the record's row of `descriptors` is as it was written, and of length 1."""
        descriptor = descriptors[record.row]
        if zlib.crc32(descriptor) != record.descriptor_crc:
            raise damage_error(self.path, f"the descriptor of {record.name!r} fails its checksum")
        if not is_unit(descriptor):
            raise damage_error(self.path, f"the descriptor of {record.name!r} does not have length 1")

    def read_picture(self, record: Record) -> tuple[npt.NDArray[np.float32], StoredTokens]:
        """Read the record's descriptor (G,) and tokens. Raises MapError unless they are as they were written."""
        return self.read_descriptor(record), self.read_tokens(record)

    def read_descriptor(self, record: Record) -> npt.NDArray[np.float32]:
        """Read the record's descriptor (G,). Raises MapError unless it is as it was written."""
        descriptor = self._read_row(self._descriptors_at, record.row, self._descriptor_dim, DESCRIPTOR_TYPE)
        self.check_descriptor(descriptor[None], dataclasses.replace(record, row=0))
        return descriptor

    def read_tokens(self, record: Record) -> StoredTokens:
        """Read the record's tokens. Raises MapError unless they are as they were written."""
        count, width = self._token_shape
        values = self._read_row(self._tokens_at, record.row, count * width, self._token_type)
        scales = self._read_row(self._scales_at, record.row, count, SCALE_TYPE) if self._scaled else None
        tokens = StoredTokens(values.reshape(count, width), scales)
        if tokens.crc() != record.tokens_crc:
            raise damage_error(self.path, f"the tokens of {record.name!r} fail their checksum")
        if not tokens.is_finite():
            raise damage_error(self.path, f"the tokens of {record.name!r} are not finite")
        return tokens

    def _read_row(self, start: int, row: int, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Read a row of `count` numbers from the tensor that begins at `start`."""
        size = count * dtype.itemsize
        return np.frombuffer(self._read(start + row * size, size), dtype)

    def _read(self, offset: int, size: int) -> bytes:
        descriptor = self._stream.fileno()  # raises ValueError after `close`, which is not damage
        with reading(self.path):
            if offset + size > os.fstat(descriptor).st_size:
                raise ValueError("it is cut short")
            content = os.pread(descriptor, size, offset)
            while len(content) < size:  # reads above 2 GiB, or on some network file systems, return parts
                part = os.pread(descriptor, size - len(content), offset + len(content))
                if not part:
                    raise ValueError("it is cut short")
                content += part
        return content

    def _read_header(self) -> tuple[int, int, int]:
        """Return the file offsets of descriptors, tokens and the tokens' scales (0 without scales)."""
        size = os.fstat(self._stream.fileno()).st_size
        if size != self.entry.bytes:
            raise ValueError(f"it has {size} bytes in place of {self.entry.bytes}")
        start = self._read(0, 8)
        header = self._read(8, _header_length(start, size))
        if zlib.crc32(header, zlib.crc32(start)) != self.entry.header_crc:
            raise ValueError("its header fails its checksum")
        tensors = _parse_header(header)
        count, base = self.entry.count, 8 + len(header)
        room = size - base
        descriptors = _offset(tensors, "descriptors", DESCRIPTOR_TYPE, (count, self._descriptor_dim), room)
        tokens = _offset(tensors, "tokens", self._token_type, (count, *self._token_shape), room)
        if not self._scaled:
            return base + descriptors, base + tokens, 0
        scales = _offset(tensors, "token_scales", SCALE_TYPE, (count, self._token_shape[0]), room)
        return base + descriptors, base + tokens, base + scales

    def _derive_offsets(self) -> tuple[int, int, int]:
        """Return the offsets of `_read_header` from the entry. safetensors sorts tensors by width, then by name."""
        count = self.entry.count
        descriptors = count * self._descriptor_dim * DESCRIPTOR_TYPE.itemsize
        scales = count * self._token_shape[0] * SCALE_TYPE.itemsize if self._scaled else 0
        tokens = count * math.prod(self._token_shape) * self._token_type.itemsize
        base = self.entry.bytes - (descriptors + scales + tokens)
        if base < 0:
            raise ValueError(f"it has too few bytes for {count} pictures")
        return base, base + descriptors + scales, base + descriptors if self._scaled else 0


def _header_length(start: bytes, size: int) -> int:
    """Return the length of a header from the first 8 bytes of a file of `size` bytes. Raises ValueError."""
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise ValueError("its header is longer than the file")
    if length > _LONGEST_HEADER:
        raise ValueError("its header is not one of a segment")
    return length


def _parse_header(header: bytes) -> Mapping[str, Any]:
    return check_mapping(parse_json(header), "its header", 10)


def _offset(tensors: Mapping[str, Any], name: str, dtype: np.dtype[Any], shape: tuple[int, ...], room: int) -> int:
    """Return the offset of a tensor after the header, which `room` bytes follow. Raises ValueError."""
    tensor = check_mapping(tensors.get(name), f"the header of {name}", 10)
    stored = _SAFETENSORS_TYPES.get(str(tensor.get("dtype")))
    if stored != dtype or tensor.get("shape") != list(shape):
        raise ValueError(f"{name} are not {dtype.name} {list(shape)}")
    begin, end = check_list(tensor.get("data_offsets"), f"the offsets of {name}", 2, 2)
    begin, end = (check_int(offset, f"an offset of {name}", 0, room) for offset in (begin, end))
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"the offsets of {name} do not match their shape")
    return begin


def is_unit(descriptor: npt.NDArray[np.float32]) -> bool:
    """Return whether a descriptor (G,) is finite and has length 1, within NORM_TOLERANCE."""
    with np.errstate(all="ignore"):  # of numbers that are not finite or too large, whose length is neither
        length = math.sqrt(float(np.dot(descriptor, descriptor)))
    return abs(length - 1) <= NORM_TOLERANCE  # false for NaN


def find_damaged(
    descriptors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], crcs: npt.NDArray[np.uint32]
) -> int | None:
    """Return the place in `rows` (m,) of the first descriptor that is not as it was written, or not of length 1.

    descriptors: (n, G), as the segment stores them.
    crcs: (m,), the checksum of each row.
    """
    if not len(rows):
        return None
    content, size = memoryview(descriptors.data).cast("B"), descriptors.shape[1] * descriptors.itemsize
    places = zip((rows * size).tolist(), crcs.tolist(), strict=True)
    sound = np.array([zlib.crc32(content[at : at + size]) == crc for at, crc in places])
    with np.errstate(all="ignore"):  # of numbers that are not finite
        lengths = np.sqrt(np.einsum("ij,ij->i", descriptors, descriptors))[rows]
    wrong = np.flatnonzero(~(sound & (np.abs(lengths - 1) <= NORM_TOLERANCE / 2)))
    return next((int(place) for place in wrong if not sound[place] or not is_unit(descriptors[rows[place]])), None)


def check_present(folder: Path, entry: SegmentEntry) -> None:
    """Raise MapError unless the segment's file exists with its size. Its content is not read."""
    path = folder / entry.file
    with reading(path):
        check_folder(folder)
        size = stat_member(folder, entry.file).st_size
    if size != entry.bytes:
        raise damage_error(path, f"it has {size} bytes in place of {entry.bytes}")


def list_segments(folder: Path) -> dict[str, int]:
    """Return names and numbers of the segment files in the folder, committed or not."""
    with reading(folder):
        files = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    found = filter(None, map(_SEGMENT_FILE.fullmatch, files))
    return {match[0]: int(match[0].partition(".")[0]) for match in found if not match[1]}


def remove_leftovers(folder: Path, committed: set[str]) -> None:
    """Create the segments folder if it is missing, and delete the files of interrupted commits."""
    with writing(folder):
        folder.mkdir(exist_ok=True)
    with reading(folder):
        check_folder(folder)
    with writing(folder):
        uncommitted = [
            file
            for file in folder.iterdir()
            if (_SEGMENT_FILE.fullmatch(file.name) and file.name not in committed) or is_stray(file.name, committed)
        ]
        for file in (*uncommitted, *find_partials(folder)):
            file.unlink()
