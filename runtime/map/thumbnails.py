"""Thumbnails of a map's pictures: a file beside each segment, for pages alone. A map without them is whole.

A file begins with its magic number and the number of pictures. An entry for each picture follows: the checksum of its
tokens, the checksum of its JPEG, and the JPEG's size, 0 for none. Then come the JPEGs. Answers never read them.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from pairvpr.files import open_member, write_atomically
from pairvpr.runtime.map.records import Record

LARGEST = 1 << 18
"""Largest JPEG in bytes. One of 160 pixels has some thousand."""
_MAGIC = b"PVTHUMB1"
_COUNT = struct.Struct("<Q")
_ENTRY = struct.Struct("<III")
_FILE = re.compile(r"(\d{6,})\.thumbnails")


def write_thumbnails(folder: Path, number: int, thumbnails: Sequence[tuple[Record, bytes | None]]) -> None:
    """Write the file beside segment `number`, with the JPEGs of its pictures by row. Without any, write no file.

    Raises OSError if it cannot be written. Nothing is left of it then.
    """
    if all(jpeg is None for _, jpeg in thumbnails):
        return
    jpegs = [jpeg or b"" for _, jpeg in thumbnails]
    entries = [
        _ENTRY.pack(record.tokens_crc, zlib.crc32(jpeg), len(jpeg))
        for (record, _), jpeg in zip(thumbnails, jpegs, strict=True)
    ]
    with write_atomically(folder / thumbnails_name(number)) as partial:
        partial.write_bytes(b"".join([_MAGIC, _COUNT.pack(len(jpegs)), *entries, *jpegs]))


def read_thumbnail(folder: Path, record: Record) -> bytes | None:
    """Return the JPEG of a picture in the segments folder `folder`. Return None if there is none or it is damaged."""
    head = len(_MAGIC) + _COUNT.size
    try:
        with open_member(folder, thumbnails_name(record.segment)) as stream:
            size = os.fstat(stream.fileno()).st_size
            start = os.pread(stream.fileno(), head, 0)
            (count,) = _COUNT.unpack(start[len(_MAGIC) :])
            if not start.startswith(_MAGIC) or not record.row < count <= size // _ENTRY.size:
                return None
            table = os.pread(stream.fileno(), (record.row + 1) * _ENTRY.size, head)
            entries = list(_ENTRY.iter_unpack(table))
            tokens_crc, crc, length = entries[record.row]
            if tokens_crc != record.tokens_crc or not 0 < length <= LARGEST:
                return None
            offset = head + count * _ENTRY.size + sum(entry[2] for entry in entries[:-1])
            jpeg = os.pread(stream.fileno(), length, offset)
    except (OSError, ValueError, IndexError, struct.error):
        return None  # a page shows the place without a picture
    return jpeg if zlib.crc32(jpeg) == crc and jpeg.startswith(b"\xff\xd8") else None


def thumbnail_bytes(folder: Path) -> int:
    """Return the size of all thumbnail files in a segments folder. Raises OSError."""
    return sum(file.stat().st_size for file in folder.iterdir() if _FILE.fullmatch(file.name))


def is_stray(name: str, committed: set[str]) -> bool:
    """Return whether a file of the segments folder has the thumbnails of no committed segment."""
    found = _FILE.fullmatch(name)
    return found is not None and f"{found[1]}.safetensors" not in committed


def thumbnails_name(number: int) -> str:
    """Return the name of the file beside a segment."""
    return f"{number:06d}.thumbnails"
