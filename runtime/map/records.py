"""Records of pictures, and their rows in the `records` table."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pairvpr.runtime.geometry.poses import FARTHEST, Gps, Pose
from pairvpr.validation import check_int, check_real, check_text

Value = str | int | float | None
"""Type of a column's value."""

COLUMNS: dict[str, str] = {
    "id": "INTEGER PRIMARY KEY",
    "name": "TEXT NOT NULL",
    "source": "TEXT NOT NULL",
    "timestamp": "REAL",
    "x": "REAL",
    "y": "REAL",
    "z": "REAL",
    "qx": "REAL",
    "qy": "REAL",
    "qz": "REAL",
    "qw": "REAL",
    "frame": "TEXT",
    "latitude": "REAL",
    "longitude": "REAL",
    "altitude": "REAL",
    "segment": "INTEGER NOT NULL",
    "row": "INTEGER NOT NULL",
    "deleted": "INTEGER NOT NULL",
    "descriptor_crc": "INTEGER NOT NULL",
    "tokens_crc": "INTEGER NOT NULL",
    "crc": "INTEGER NOT NULL",
}
"""The columns of the `records` table, in order, with their types. `crc` covers all before it."""

LIMITS = {"timestamp": 1e19, "position": FARTHEST, "latitude": 90.0, "longitude": 180.0, "altitude": FARTHEST}
"""The largest magnitude of each number of a place. Version 0.1 stored time stamps in nanoseconds, too."""
LENGTHS = (0.5, 2.0)
"""The range of a quaternion's length. Version 0.1 stored quaternions that it had not made unit ones."""


@dataclass(frozen=True)
class Record:
    """One picture of a map: its name, its place, and the position of its features.

    id: counts up from 1 and is never used twice.
    name: path relative to the source's folder, unique among records that are not deleted.
    source: origin of the picture, such as the resolved path of a folder.
    timestamp: seconds, or None.
    segment, row: number of the segment, and row in its tensors.
    descriptor_crc, tokens_crc: crc32 of the row's bytes in each tensor. The scales of int8 tokens are included.
    """

    id: int
    name: str
    source: str
    timestamp: float | None
    pose: Pose | None
    gps: Gps | None
    segment: int
    row: int
    descriptor_crc: int
    tokens_crc: int
    deleted: bool = False


def encode(record: Record) -> tuple[Value, ...]:
    """Encode a record as a row in the order of COLUMNS.

    Raises ValueError if a text is too long or not Unicode, which SQLite would refuse, or a number is not finite, which
    SQLite would store as NULL, or outside its range, which readers would refuse.
    """
    check_text(record.name, "the name")
    check_text(record.source, "the source")
    for text in (record.name, record.source, record.pose.frame if record.pose else ""):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"the text {text!r} is not valid Unicode")
    fields: tuple[Value, ...] = (
        record.id,
        record.name,
        record.source,
        _real(record.timestamp, "timestamp"),
        *_encode_pose(record.pose),
        *_encode_gps(record.gps),
        record.segment,
        record.row,
        int(record.deleted),
        record.descriptor_crc,
        record.tokens_crc,
    )
    return (*fields, checksum(fields))


def decode(row: Sequence[Any]) -> Record:
    """Decode a row of COLUMNS. Raises ValueError or TypeError if it is not as it was written."""
    fields, crc = row[:-1], row[-1]
    if checksum(fields) != crc:
        raise ValueError(f"record {row[0]!s:.20} fails its checksum")
    number, name, source, timestamp, x, y, z, *q, frame = fields[:12]
    latitude, longitude, altitude, segment, place, deleted, descriptor_crc, tokens_crc = fields[12:]
    # Whoever made the file made its checksum.
    number = check_int(number, "a record's number", 1, 2**63 - 1)
    of = f"of record {number}"
    return Record(
        number,
        check_text(name, f"the name {of}"),
        check_text(source, f"the source {of}"),
        None if timestamp is None else _check_number(timestamp, "timestamp", of),
        _decode_pose([x, y, z], q, frame, of),
        _decode_gps(latitude, longitude, altitude, of),
        check_int(segment, f"the segment {of}", 1, 2**53),
        check_int(place, f"the row {of}", 0, 2**40),
        check_int(descriptor_crc, f"a checksum {of}", 0, 2**32 - 1),
        check_int(tokens_crc, f"a checksum {of}", 0, 2**32 - 1),
        bool(check_int(deleted, f"the flag {of}", 0, 1)),
    )


def _decode_pose(position: Sequence[Any], q: Sequence[Any], frame: Any, of: str) -> Pose | None:
    if position == [None] * 3 and q == [None] * 4 and frame is None:
        return None
    x, y, z = (_check_number(value, "position", of) for value in position)
    if q == [None] * 4:
        return Pose(x, y, z, None, check_text(frame, f"the frame {of}"))
    qx, qy, qz, qw = (check_real(value, f"the orientation {of}") for value in q)
    _check_orientation((qx, qy, qz, qw), of)
    return Pose(x, y, z, (qx, qy, qz, qw), check_text(frame, f"the frame {of}"))


def _decode_gps(latitude: Any, longitude: Any, altitude: Any, of: str) -> Gps | None:
    if latitude is None and longitude is None and altitude is None:
        return None
    height = None if altitude is None else _check_number(altitude, "altitude", of)
    return Gps(_check_number(latitude, "latitude", of), _check_number(longitude, "longitude", of), height)


def _check_number(value: object, kind: str, of: str) -> float:
    """Return a number of LIMITS in its range."""
    return check_real(value, f"the {kind} {of}", -LIMITS[kind], LIMITS[kind])


def _check_orientation(q: Sequence[float], of: str) -> None:
    if not LENGTHS[0] <= math.hypot(*q) <= LENGTHS[1]:
        raise ValueError(f"the orientation {of} is not a unit quaternion")


def checksum(fields: Sequence[object]) -> int:
    """Return the crc32 of the fields' values and types. It is the same on every platform."""
    # A forged row may hold infinity. Its range refuses it, not its checksum.
    return zlib.crc32(json.dumps(fields, allow_nan=True).encode("ascii"))


def _encode_pose(pose: Pose | None) -> tuple[Value, ...]:
    if pose is None:
        return (None,) * 8
    q: tuple[Value, ...] = (None,) * 4
    if pose.q is not None:
        _check_orientation(pose.q, "of the picture")
        q = tuple(_real(value) for value in pose.q)
    return (*(_real(value, "position") for value in (pose.x, pose.y, pose.z)), *q, pose.frame)


def _encode_gps(gps: Gps | None) -> tuple[Value, ...]:
    if gps is None:
        return (None,) * 3
    return (_real(gps.latitude, "latitude"), _real(gps.longitude, "longitude"), _real(gps.altitude, "altitude"))


def _real(value: float | None, kind: str | None = None) -> float | None:
    """Return a number as it is stored. Raises ValueError if it is outside the range of its kind, or not finite."""
    if value is None:
        return None
    # SQLite stores -0.0 as 0.0, and the checksum must not see a difference
    return float(value if kind is None else _check_number(value, kind, "of the picture")) + 0.0
