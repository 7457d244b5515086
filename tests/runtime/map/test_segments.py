"""Segments: entries of the catalog and headers of files have types, ranges, and agree with each other."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pairvpr.errors import MapError
from pairvpr.runtime.map.meta import Meta
from pairvpr.runtime.map.records import Record, checksum
from pairvpr.runtime.map.segments import (
    NORM_TOLERANCE,
    Segment,
    SegmentEntry,
    check_present,
    find_damaged,
    find_segment,
    is_unit,
    list_segments,
    remove_leftovers,
    segment_name,
    write_segment,
)
from pairvpr.runtime.map.tokens import TokenFormat

COUNT, DIM, TOKENS = 3, 8, (5, 4)
ENTRY = SegmentEntry(7, "000007.safetensors", 3, 1000, 42)
Header = dict[str, Any]


def meta_of(kind: str) -> Meta:
    return Meta("a" * 64, {"tokens": {"type": kind}}, DIM, TOKENS, "0.2.0", 1, COUNT)


def made(folder: Path, kind: str = "int8") -> tuple[SegmentEntry, np.ndarray, list[Any], list[Record]]:
    """Write a segment. Return its entry, descriptors, tokens and records."""
    random = np.random.default_rng(0)
    descriptors = random.standard_normal((COUNT, DIM), np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    tokens = [TokenFormat(kind).store(random.standard_normal(TOKENS).astype(np.float32)) for _ in range(COUNT)]
    entry = write_segment(folder, 1, descriptors, tokens)
    records = [
        Record(row + 1, f"{row}.jpg", "", None, None, None, 1, row, zlib.crc32(descriptors[row]), tokens[row].crc())
        for row in range(COUNT)
    ]
    return entry, descriptors, tokens, records


def sealed(**values: Any) -> tuple[Any, ...]:
    fields = tuple(values.get(name, value) for name, value in vars(ENTRY).items())
    return (*fields, checksum(fields))


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("number", [], [0, -1, 2**53 + 1, "7", 8]),
        ("file", [], ["7.safetensors", "../000007.safetensors", "000007.safetensors.tmp", None, 7]),
        ("count", [1, 2**40], [0, 2**40 + 1, 1.0, None]),
        ("bytes", [9, 2**50], [8, 2**50 + 1, "9"]),
        ("header_crc", [0, 2**32 - 1], [-1, 2**32, None]),
    ],
)
def test_fields_of_an_entry_have_limits(name: str, inside: list[Any], outside: list[Any]) -> None:
    assert SegmentEntry.decode(ENTRY.encode()) == ENTRY
    for value in inside:
        assert vars(SegmentEntry.decode(sealed(**{name: value})))[name] == value
    for value in outside:
        with pytest.raises(ValueError, match="segment"):
            SegmentEntry.decode(sealed(**{name: value}))


def test_the_largest_number_and_the_checksum() -> None:
    largest = SegmentEntry(2**53, segment_name(2**53), 1, 9, 0)
    assert SegmentEntry.decode(largest.encode()) == largest
    for place in range(6):
        row = list(ENTRY.encode())
        row[place] = row[place] + ("x" if place == 1 else 1)
        with pytest.raises(ValueError, match="fails its checksum"):
            SegmentEntry.decode(tuple(row))


@pytest.mark.parametrize("kind", ["float16", "int8"])
@pytest.mark.parametrize("salvage", [False, True])
def test_a_segment_gives_what_was_written(tmp_path: Path, kind: str, salvage: bool) -> None:
    entry, descriptors, tokens, records = made(tmp_path, kind)
    assert find_segment(tmp_path, 1) == entry
    segment = Segment(tmp_path, entry, meta_of(kind), salvage=salvage)
    np.testing.assert_array_equal(segment.read_descriptors(), descriptors)
    for row, record in enumerate(records):
        descriptor, stored = segment.read_picture(record)
        np.testing.assert_array_equal(descriptor, descriptors[row])
        np.testing.assert_array_equal(stored.load(), tokens[row].load())
    segment.share()
    segment.close()
    segment.read_descriptors()
    segment.close()
    with pytest.raises(ValueError, match="closed"):
        segment.read_descriptors()


def test_reads_may_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those above 2 GiB, and on some network file systems."""
    entry, descriptors, tokens, records = made(tmp_path)
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: read(file, min(size, 7), offset))
    segment = Segment(tmp_path, entry, meta_of("int8"))
    np.testing.assert_array_equal(segment.read_descriptors(), descriptors)
    np.testing.assert_array_equal(segment.read_tokens(records[2]).values, tokens[2].values)
    for left in (0, 7):  # the file has become shorter since
        limit = segment._descriptors_at + left
        monkeypatch.setattr(os, "pread", lambda file, size, at, end=limit: read(file, max(0, min(7, end - at)), at))
        with pytest.raises(MapError, match="it is cut short"):
            segment.read_descriptors()
    segment.close()


def test_tensors_may_lie_in_any_order(tmp_path: Path) -> None:
    """safetensors sorts them in its own way, and may do so in another one day."""
    entry, descriptors, tokens, records = made(tmp_path)
    shapes = {
        "tokens": ("I8", [COUNT, *TOKENS]),
        "descriptors": ("F32", [COUNT, DIM]),
        "token_scales": ("F32", [COUNT, 5]),
    }
    scales = np.stack([each.scales for each in tokens])
    data = {"tokens": np.stack([each.values for each in tokens]), "descriptors": descriptors, "token_scales": scales}
    header, parts, at = {}, [], 0
    for name, (kind, shape) in shapes.items():
        part = data[name].tobytes()
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    text = json.dumps(header).encode()
    (tmp_path / entry.file).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    segment = Segment(tmp_path, find_segment(tmp_path, 1), meta_of("int8"))
    for row, record in enumerate(records):
        descriptor, stored = segment.read_picture(record)
        np.testing.assert_array_equal(descriptor, descriptors[row])
        np.testing.assert_array_equal(stored.load(), tokens[row].load())
    segment.close()


def test_a_header_may_end_with_the_file(tmp_path: Path) -> None:
    text = b'{"descriptors": {"shape": [3, 8]}}'
    (tmp_path / segment_name(1)).write_bytes(len(text).to_bytes(8, "little") + text)
    assert find_segment(tmp_path, 1).count == 3
    (tmp_path / segment_name(1)).write_bytes((len(text) + 1).to_bytes(8, "little") + text)
    with pytest.raises(MapError, match="its header is longer than the file"):
        find_segment(tmp_path, 1)


def edit_header(path: Path, entry: SegmentEntry, edit: Callable[[Header], object]) -> SegmentEntry:
    """Edit the header in place of as many bytes. Return the entry with its checksum."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header = edit(header) or header
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(text) == length, "longer than it was"
    path.write_bytes(content[:8] + text + content[8 + length :])
    return SegmentEntry(entry.number, entry.file, entry.count, entry.bytes, zlib.crc32(content[:8] + text))


def shift(name: str, by: tuple[int, int]) -> Callable[[Header], None]:
    def edit(header: Header) -> None:
        begin, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = [begin + by[0], end + by[1]]

    return edit


@pytest.mark.parametrize("name", ["descriptors", "tokens", "token_scales"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda tensor: tensor.update(dtype="F64"),
        lambda tensor: tensor.pop("dtype"),
        lambda tensor: tensor["shape"].__setitem__(0, 2),
        lambda tensor: tensor["shape"].__setitem__(1, 3),
        lambda tensor: tensor.pop("shape"),
        lambda tensor: tensor["data_offsets"].pop(),
        lambda tensor: tensor.pop("data_offsets"),
        lambda tensor: tensor["data_offsets"].reverse(),
        lambda tensor: tensor["data_offsets"].__setitem__(0, -1),
        lambda tensor: tensor["data_offsets"].__setitem__(1, 9999),
        lambda tensor: tensor["data_offsets"].__setitem__(0, "0"),
    ],
)
def test_a_header_that_contradicts_the_map_is_refused(tmp_path: Path, name: str, edit: Callable[[Header], Any]) -> None:
    entry, *_ = made(tmp_path)
    forged = edit_header(tmp_path / entry.file, entry, lambda header: edit(header[name]) and None)
    with pytest.raises(MapError, match="is damaged"):
        Segment(tmp_path, forged, meta_of("int8"))


@pytest.mark.parametrize("name", ["descriptors", "tokens", "token_scales"])
def test_a_tensor_has_its_size_and_lies_in_the_file(tmp_path: Path, name: str) -> None:
    entry, *_ = made(tmp_path)
    size = int(entry.bytes)
    original = (tmp_path / entry.file).read_bytes()
    for by in ((0, 1), (1, 0), (-1, 0)):
        (tmp_path / entry.file).write_bytes(original)
        with pytest.raises(MapError, match="is damaged"):
            Segment(tmp_path, edit_header(tmp_path / entry.file, entry, shift(name, by)), meta_of("int8"))
    (tmp_path / entry.file).write_bytes(original)
    last = max(json.loads(original[8 : 8 + int.from_bytes(original[:8], "little")])[name]["data_offsets"])
    room = size - 8 - int.from_bytes(original[:8], "little")
    beyond = room - last + 1
    with pytest.raises(MapError, match=r"an offset of|do not match"):
        Segment(tmp_path, edit_header(tmp_path / entry.file, entry, shift(name, (beyond, beyond))), meta_of("int8"))


def test_size_and_header_are_those_of_the_entry(tmp_path: Path) -> None:
    entry, *_ = made(tmp_path)
    file = tmp_path / entry.file
    content = file.read_bytes()
    for spoilt in (content + b"\0", content[:-1]):
        file.write_bytes(spoilt)
        with pytest.raises(MapError, match=rf"it has {len(spoilt)} bytes in place of {entry.bytes}"):
            Segment(tmp_path, entry, meta_of("int8"))
        with pytest.raises(MapError, match="bytes in place of"):
            check_present(tmp_path, entry)
    file.write_bytes(content)
    check_present(tmp_path, entry)
    for place in (0, 8, 20):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(MapError, match=r"header (fails its checksum|is longer|is not)|is damaged"):
            Segment(tmp_path, entry, meta_of("int8"))


@pytest.mark.parametrize(
    ("length", "told"), [(1 << 16, "header"), ((1 << 16) + 1, "its header is not one of a segment")]
)
def test_a_header_has_a_longest_length(tmp_path: Path, length: int, told: str) -> None:
    file = tmp_path / segment_name(1)
    file.write_bytes(length.to_bytes(8, "little") + b"x" * length + b"xx")
    with pytest.raises(MapError, match=told) as error:
        find_segment(tmp_path, 1)
    assert ("not one of a segment" in str(error.value)) == (length > 1 << 16)


@pytest.mark.parametrize("content", [b"", b"1234567", bytes(8), (3).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_shorter_than_its_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / segment_name(1)).write_bytes(content)
    with pytest.raises(MapError, match="is damaged"):
        find_segment(tmp_path, 1)


def test_too_few_bytes_for_the_rows_of_an_entry(tmp_path: Path) -> None:
    entry, *_ = made(tmp_path)
    more = SegmentEntry(1, entry.file, 10**6, entry.bytes, entry.header_crc)
    with pytest.raises(MapError, match="too few bytes for 1000000 pictures"):
        Segment(tmp_path, more, meta_of("int8"), salvage=True)


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    entry, _, _, records = made(tmp_path)
    content = bytearray((tmp_path / entry.file).read_bytes())
    segment = Segment(tmp_path, entry, meta_of("int8"))
    for at, told in (
        (segment._descriptors_at, "descriptor"),
        (segment._tokens_at, "tokens"),
        (segment._scales_at, "tokens"),
    ):
        spoilt = bytearray(content)
        spoilt[at] ^= 1
        (tmp_path / entry.file).write_bytes(spoilt)
        for record in records:
            if record.row:
                segment.read_picture(record)
                continue
            with pytest.raises(MapError, match=rf"the {told} of '0.jpg' fails? (its|their) checksum"):
                segment.read_picture(record)
    segment.close()


@pytest.mark.parametrize(
    ("length", "fine"),
    [(1 - NORM_TOLERANCE + 1e-4, True), (1 - NORM_TOLERANCE - 1e-4, False), (1 + NORM_TOLERANCE - 1e-4, True),
     (1 + NORM_TOLERANCE + 1e-4, False), (0, False), (np.nan, False), (np.inf, False), (3e38, False)],
)  # fmt: skip
def test_descriptors_have_length_1(length: float, fine: bool) -> None:
    with np.errstate(all="ignore"):
        descriptor = np.array([0.6, 0.8], np.float32) * np.float32(length)
    assert is_unit(descriptor) == fine
    many = np.stack([np.array([1, 0], np.float32), descriptor])
    crcs = np.array([zlib.crc32(row) for row in many], np.uint32)
    found = find_damaged(many, np.array([0, 1]), crcs)
    assert found == (None if fine else 1)


def test_the_first_damaged_descriptor_is_found() -> None:
    many = np.eye(4, dtype=np.float32)
    crcs = np.array([zlib.crc32(row) for row in many], np.uint32)
    rows = np.array([3, 1, 0])
    assert find_damaged(many, rows, crcs[rows]) is None
    assert find_damaged(many, rows[:0], crcs[:0]) is None
    for wrong in range(3):
        spoilt = crcs[rows].copy()
        spoilt[wrong:] ^= 1
        assert find_damaged(many, rows, spoilt) == wrong


def test_only_segments_of_interrupted_commits_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "segments"
    remove_leftovers(folder, set())
    names = ["000001.safetensors", "000002.safetensors", "000003.safetensors.tmp", "00004.safetensors", "notes.txt"]
    for name in [*names, "1000000.safetensors", ".000005.safetensors.ab.partial"]:
        (folder / name).touch()
    assert list_segments(folder) == {"000001.safetensors": 1, "000002.safetensors": 2, "1000000.safetensors": 1000000}
    remove_leftovers(folder, {"000001.safetensors", "1000000.safetensors"})
    left = {"000001.safetensors", "00004.safetensors", "notes.txt", "1000000.safetensors"}
    assert {file.name for file in folder.iterdir()} == left
    assert list_segments(tmp_path / "nowhere") == {}
