"""Blocks of records: what is packed is read again, and each column, text and checksum of a forged block is checked."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map.blocks import SIZE, Block, _checksum, decode, encode, open_damaged, pack
from pairvpr.runtime.map.records import Record

HEAD = struct.Struct("<4sIII")
TEXTS = 16  # bytes of the head


def record(number: int, **fields: Any) -> Record:
    """Return a record that has all a record can have if its number is even, and nothing else if it is odd."""
    base = Record(number, f"ü{number}.jpg", "/drive", None, None, None, 1 + number // 4, number % 4, number, number + 1)
    if number % 2 == 0:
        pose = Pose(number, 2, 3, (0, 0, 0, 1) if number % 4 else None, "odom")
        base = dataclasses.replace(base, timestamp=number / 10, pose=pose, gps=Gps(47, 8, 400 if number % 4 else None))
    return dataclasses.replace(base, **fields)


RECORDS = [record(number, deleted=number == 3) for number in range(1, 9)]


def forged(edit: Callable[[Block], object]) -> tuple[int, int, bytes]:
    """Return the row of RECORDS with edited columns, and its checksum made again."""
    content = bytearray(pack(RECORDS)[0].content)
    block = Block(1, content, 0)  # type: ignore[arg-type]
    for column in (*block._columns.values(), block._texts):
        column.flags.writeable = True
    edit(block)
    return sealed(bytes(content))


def sealed(content: bytes, number: int = 1) -> tuple[int, int, bytes]:
    return number, _checksum(number, content), content


def put(name: str, at: Any, value: Any) -> Callable[[Block], None]:
    def edit(block: Block) -> None:
        block._columns[name][at] = value

    return edit


def test_records_survive_being_packed() -> None:
    (block,) = pack(RECORDS)
    again = decode(encode(block))
    assert list(again.records(deleted=True)) == RECORDS
    assert list(again.records(deleted=False)) == [each for each in RECORDS if not each.deleted]
    assert [again.record(position) for position in range(8)] == RECORDS
    assert again.names(range(8)) == [each.name for each in RECORDS]
    assert (len(again), again.number, again.last_id, again.live.tolist()) == (8, 1, 8, [0, 1, 3, 4, 5, 6, 7])
    assert len(again.name_hashes) == 7
    assert again.column("row").tolist() == [each.row for each in RECORDS]
    assert np.isnan(again.column("timestamp")[0])


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        ((), {"timestamp": None, "pose": None, "gps": None}),
        (("timestamp",), {"pose": None, "gps": None}),
        (("position", "frame"), {"timestamp": None, "pose": Pose(1, 2, 3), "gps": None}),
        (("position", "frame", "orientation"), {"timestamp": None, "pose": Pose(1, 2, 3, (0, 0, 0, 1)), "gps": None}),
        (("gps",), {"timestamp": None, "pose": None, "gps": Gps(1, 2)}),
    ],
)
def test_columns_that_no_record_has_take_no_room(names: tuple[str, ...], fields: dict[str, Any]) -> None:
    records = [dataclasses.replace(each, **{"timestamp": 1.0, **fields}) for each in RECORDS]
    (block,) = pack(records)
    held = {name for name in ("timestamp", "position", "frame", "orientation", "gps") if block.column(name) is not None}
    assert held == set(names)
    assert list(decode(encode(block)).records(deleted=True)) == records


@pytest.mark.parametrize("count", [0, 1, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE, 2 * SIZE + 1])
def test_blocks_are_full_but_for_the_last(count: int) -> None:
    blocks = pack(record(number) for number in range(1, count + 1))
    assert [len(block) for block in blocks] == [SIZE] * (count // SIZE) + ([count % SIZE] if count % SIZE else [])
    assert [block.number for block in blocks] == list(range(1, count + 1, SIZE))


@pytest.mark.parametrize(
    "edit",
    [
        put("id", 0, 2),
        put("id", 3, 3),
        put("id", 3, 5),
        put("segment", 5, 0),
        put("segment", 5, 2**53 + 1),
        put("row", 5, -1),
        put("row", 5, 2**40 + 1),
        put("deleted", 5, 2),
        put("source", 5, 2),
        put("frame", 1, 2),
        put("frame", 1, 0xFFFF),
        put("frame", 0, 0),
        put("timestamp", 1, 1.1e19),
        put("timestamp", 1, -np.inf),
        put("position", (1, 2), 1.1e12),
        put("position", (1, 0), np.nan),
        put("position", (1, 2), np.nan),
        put("position", 0, 1),
        put("orientation", (1, 1), 2.1),
        put("orientation", (1, 3), 0.4),
        put("orientation", (1, 0), np.nan),
        put("orientation", 0, 0.5),
        put("gps", (1, 0), 90.1),
        put("gps", (1, 1), -180.1),
        put("gps", (1, 2), 1.1e12),
        put("gps", (1, 0), np.nan),
        put("gps", (1, 1), np.nan),
        put("gps", (0, 2), 1),
    ],
)
def test_a_value_out_of_range_is_refused(edit: Callable[[Block], None]) -> None:
    row = forged(edit)
    open_damaged(row)
    with pytest.raises(ValueError, match="of block 1"):
        decode(row)


@pytest.mark.parametrize(
    "edit",
    [
        put("segment", 5, 1),
        put("segment", 5, 2**53),
        put("row", 5, 0),
        put("row", 5, 2**40),
        put("deleted", 5, 1),
        put("source", 5, 1),
        put("frame", 1, 0),
        put("timestamp", 1, 1e19),
        put("timestamp", 1, np.nan),
        put("position", (1, 2), -1e12),
        put("orientation", 1, (0, 0, 0, 0.5)),
        put("orientation", 1, (2, 0, 0, 0)),
        put("orientation", 1, np.nan),
        put("gps", 1, (-90, 180, -1e12)),
        put("gps", (1, 2), np.nan),
        put("gps", 1, np.nan),
        put("descriptor_crc", 1, 2**32 - 1),
    ],
)
def test_a_value_at_its_limit_is_read(edit: Callable[[Block], None]) -> None:
    assert len(list(decode(forged(edit)).records(deleted=True))) == 8


def test_a_block_has_its_own_number() -> None:
    content = pack(RECORDS)[0].content
    assert decode(sealed(content)).number == 1
    for number in (2, 0, -1):
        with pytest.raises(ValueError, match="number"):
            decode(sealed(content, max(number, 0)) if number >= 0 else (-1, 0, content))


def test_the_checksum_covers_number_and_content() -> None:
    number, crc, content = encode(pack(RECORDS)[0])
    for row in ((number, crc ^ 1, content), (number, crc, content + b"x"), (number + 1, crc, content)):
        with pytest.raises(ValueError, match=r"fails its checksum|do not rise"):
            decode(row)
    for row in ((number, crc, content.decode("latin1")), (number, crc, None), ("1", crc, content)):
        with pytest.raises(ValueError, match=r"not binary|a block's number"):
            open_damaged(row)
    for bad in (-1, 2**32, "1"):
        with pytest.raises(ValueError, match="the checksum of block 1"):
            open_damaged((number, bad, content))


def headed(magic: bytes = b"PVB1", count: int = 8, texts: int = 10, held: int = 31) -> bytes:
    return HEAD.pack(magic, count, texts, held) + pack(RECORDS)[0].content[HEAD.size :]


def test_the_head_is_that_of_a_block() -> None:
    assert headed() == pack(RECORDS)[0].content
    for content in (headed(magic=b"PVB2"), headed(count=0), headed(count=SIZE + 1, texts=SIZE + 2), headed(held=32)):
        with pytest.raises(ValueError, match="is not a block of records"):
            Block(1, content, 0)
    for texts in (8, 25):  # at least one source, and at most a source and a frame for each record
        with pytest.raises(ValueError, match="is not a block of records"):
            Block(1, headed(texts=texts), 0)
    Block(1, headed(texts=9), 0)


def test_a_block_that_is_cut_short_is_refused() -> None:
    content = pack(RECORDS)[0].content
    heap = Block(1, content, 0)._heap
    for size in (0, HEAD.size - 1, HEAD.size, HEAD.size + 1, heap - 1):
        with pytest.raises(ValueError, match="cut short"):
            Block(1, content[:size], 0)
    for size in (heap, len(content) - 1):
        with pytest.raises(ValueError, match=r"do not follow each other|utf-8"):
            decode(sealed(content[:size]))
    with pytest.raises(ValueError, match="do not follow each other"):
        decode(sealed(content + b"x"))


@pytest.mark.parametrize(("at", "value"), [(0, 1), (4, 0), (3, 2**32 - 1), (9, 3)])
def test_texts_follow_each_other(at: int, value: int) -> None:
    def edit(block: Block) -> None:
        block._texts[at] = value

    with pytest.raises(ValueError, match="the texts of block 1 do not follow each other"):
        decode(forged(edit))


def test_a_text_begins_with_a_character() -> None:
    def edit(block: Block) -> None:
        block._texts[1] += 1  # the second name begins with the second byte of its umlaut

    with pytest.raises(ValueError, match="begins inside a character"):
        decode(forged(edit))


def test_texts_may_be_empty() -> None:
    records = [dataclasses.replace(each, source="") for each in RECORDS if each.pose is None]
    records[0] = dataclasses.replace(records[0], name="")
    assert list(decode(encode(pack(records)[0])).records(deleted=True)) == records


def test_texts_are_unicode() -> None:
    content = bytearray(pack(RECORDS)[0].content)
    content[-1] = 0xFF
    with pytest.raises(ValueError, match="utf-8"):
        decode(sealed(bytes(content)))


def test_texts_have_a_longest_length() -> None:
    for length, fine in ((4096, True), (4097, False)):
        content = pack([dataclasses.replace(RECORDS[0], name="a" * 4096)])[0].content
        if length == 4097:
            texts = np.frombuffer(content, "<u4", 3, Block(1, content, 0)._heap - 12).copy()
            head = content[: Block(1, content, 0)._heap - 12]
            texts[1:] += 1
            content = head + texts.tobytes() + b"a" + content[len(head) + 12 :]
        if fine:
            assert len(decode(sealed(content)).names([0])[0]) == length
        else:
            with pytest.raises(ValueError, match="a text of block 1 is not a text of at most"):
                decode(sealed(content))
    assert (
        decode(sealed(pack([dataclasses.replace(RECORDS[0], name="ü" * 4096)])[0].content)).names([0])[0] == "ü" * 4096
    )


@pytest.mark.parametrize(("held", "told"), [(2, "a pose"), (4, "a pose"), (8, "a pose"), (10, "a pose")])
def test_columns_of_a_pose_come_together(held: int, told: str) -> None:
    """A position without a frame, a frame alone, or an orientation without a position."""
    sizes = [8, 24, 2, 32, 24]
    (block,) = pack(RECORDS)
    start = HEAD.size + 8 * (8 * 3 + 4 * 3 + 2 + 1)
    columns, at = [], start
    for size in sizes:
        columns.append(block.content[at : at + 8 * size])
        at += 8 * size
    kept = b"".join(column for bit, column in enumerate(columns) if held >> bit & 1)
    content = HEAD.pack(b"PVB1", 8, 10, held) + block.content[HEAD.size : start] + kept + block.content[at:]
    with pytest.raises(ValueError, match=told):
        decode(sealed(content))


def test_intact_records_of_a_damaged_block_are_found() -> None:
    assert list(pack(RECORDS)[0].find_intact()) == RECORDS
    for edit, lost in ((put("row", 5, 77), [5]), (put("frame", 1, 9), [1]), (put("gps", (1, 0), 91), [1])):
        block = open_damaged(forged(edit))
        assert list(block.find_intact()) == [each for at, each in enumerate(RECORDS) if at not in lost]
