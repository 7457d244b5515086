"""Records as rows: each field has a type and a range, and the checksum covers all of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map.records import COLUMNS, Record, checksum, decode, encode

WHOLE = Record(
    7, "a/1.jpg", "/drive", 1.5, Pose(1, -2, 3, (0, 0, 0.6, 0.8), "odom"), Gps(47.5, 8.25, 400.0), 3, 250, 11, 12
)
BARE = Record(1, "1.jpg", "", None, None, None, 1, 0, 0, 2**32 - 1, True)
NAMES = tuple(COLUMNS)
LIMITS: list[tuple[str, list[Any], list[Any]]] = [
    ("id", [1, 2**63 - 1], [0, -1, 2**63, "1", True]),
    ("name", ["", "x" * 4096], ["x" * 4097, None, 7]),
    ("source", ["", "x" * 4096], ["x" * 4097, None]),
    ("timestamp", [None, -1e19, 1e19, 3], [1.1e19, -1.1e19, "1", float("inf"), float("nan"), True]),
    *((name, [-1e12, 1e12, 0], [1.1e12, -1.1e12, None, "0"]) for name in "xyz"),
    ("qw", [0.5, -1.5], [None, "1", float("nan"), 2.0]),
    ("frame", ["", "x" * 4096], [None, "x" * 4097, 1]),
    ("latitude", [-90, 90.0], [90.1, -90.1, None, "0"]),
    ("longitude", [-180, 180.0], [180.1, -180.1, None]),
    ("altitude", [None, -1e12, 1e12], [1.1e12, -1.1e12, "0"]),
    ("segment", [1, 2**53], [0, 2**53 + 1, 1.0]),
    ("row", [0, 2**40], [-1, 2**40 + 1, None]),
    ("deleted", [0, 1], [2, -1, True, None]),
    ("descriptor_crc", [0, 2**32 - 1], [-1, 2**32, 1.0]),
    ("tokens_crc", [0, 2**32 - 1], [-1, 2**32, None]),
]


def sealed(record: Record, **values: Any) -> tuple[Any, ...]:
    """Return the row of a record with other values, and its checksum."""
    fields = tuple(values.get(name, value) for name, value in zip(NAMES[:-1], encode(record)[:-1], strict=True))
    return (*fields, checksum(fields))


@pytest.mark.parametrize("record", [WHOLE, BARE, dataclasses.replace(WHOLE, pose=Pose(1, 2, 3), gps=Gps(1, 2))])
def test_a_record_survives_being_written_and_read(record: Record) -> None:
    row = encode(record)
    assert len(row) == len(COLUMNS)
    assert decode(row) == record
    assert type(decode(row).deleted) is bool


@pytest.mark.parametrize(("name", "inside", "outside"), LIMITS)
def test_fields_have_limits(name: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        row = sealed(WHOLE, **{name: value})
        assert encode(decode(row))[:-1] == row[:-1]
    for value in outside:
        with pytest.raises(ValueError, match=r"of record|a record's number|fails its checksum"):
            decode(sealed(WHOLE, **{name: value}))


@pytest.mark.parametrize("name", NAMES[:-1])
def test_the_checksum_covers_every_field(name: str) -> None:
    row = list(encode(WHOLE))
    place = NAMES.index(name)
    row[place] = row[place] + ("x" if isinstance(row[place], str) else 1)
    with pytest.raises(ValueError, match="fails its checksum"):
        decode(row)


@pytest.mark.parametrize(
    "part", [{"x": 1.0}, {"y": 1.0}, {"z": 1.0}, {"frame": "map"}, {"qx": 0.0}, {"qw": 1.0}, {"x": 1.0, "y": 1.0}]
)
def test_half_a_pose_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="of record 1"):
        decode(sealed(BARE, **part))


@pytest.mark.parametrize("part", [{"latitude": 1.0}, {"longitude": 1.0}, {"altitude": 1.0}])
def test_half_a_position_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="of record 1"):
        decode(sealed(BARE, **part))


@pytest.mark.parametrize("missing", ["qx", "qy", "qz", "qw"])
def test_half_an_orientation_is_refused(missing: str) -> None:
    with pytest.raises(ValueError, match="the orientation of record 7"):
        decode(sealed(WHOLE, **{missing: None}))


@pytest.mark.parametrize(("length", "fine"), [(0.499, False), (0.5, True), (2.0, True), (2.001, False)])
def test_an_orientation_has_about_length_1(length: float, fine: bool) -> None:
    for q in ((length, 0, 0, 0), (0, -length, 0, 0), (length * 0.6, 0, 0, length * 0.8)):
        record = dataclasses.replace(WHOLE, pose=Pose(0, 0, 0, q))
        if fine:
            assert decode(encode(record)).pose == record.pose
            continue
        with pytest.raises(ValueError, match="of the picture is not a unit quaternion"):
            encode(record)
        with pytest.raises(ValueError, match="of record 7 is not a unit quaternion"):
            decode(sealed(WHOLE, **dict(zip(("qx", "qy", "qz", "qw"), map(float, q), strict=True))))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "x" * 4097}, "the name is not a text"),
        ({"source": "x" * 4097}, "the source is not a text"),
        ({"name": "a\udcff"}, "not valid Unicode"),
        ({"source": "\ud800"}, "not valid Unicode"),
        ({"pose": Pose(0, 0, 0, None, "a\udfff")}, "not valid Unicode"),
        ({"pose": Pose(0, -1.1e12, 0)}, "the position of the picture is not from"),
        ({"gps": Gps(-90.1, 0)}, "the latitude of the picture"),
        ({"gps": Gps(0, 180.1)}, "the longitude of the picture"),
        ({"gps": Gps(0, 0, float("nan"))}, "the altitude of the picture"),
        ({"timestamp": float("inf")}, "the timestamp of the picture"),
    ],
)
def test_what_readers_would_refuse_is_not_written(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        encode(dataclasses.replace(WHOLE, **change))


def test_minus_zero_is_written_as_zero() -> None:
    record = dataclasses.replace(WHOLE, timestamp=-0.0, pose=Pose(-0.0, 0, 0, (-0.0, 0, 0, 1)), gps=Gps(-0.0, 1, -0.0))
    assert "-0.0" not in repr(encode(record))


def test_checksums_tell_types_apart() -> None:
    assert checksum((1, "a")) == checksum((1, "a"))
    assert len({checksum((each,)) for each in (1, 1.0, "1", None, True, float("inf"), float("nan"))}) == 7
