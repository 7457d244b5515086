"""Thumbnails stay with their pictures when a map is rewritten. A map without them, or with damaged ones, is whole."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pairvpr.runtime.features import Features
from pairvpr.runtime.map import Map, MapWriter, merge_maps, repair_map, verify_map
from pairvpr.runtime.map.thumbnails import LARGEST

HEAD = 16  # magic number and count


def features_of(number: int) -> Features:
    random = np.random.default_rng(number)
    descriptors = random.standard_normal((1, 8), np.float32)
    descriptors /= np.linalg.norm(descriptors)
    return Features(descriptors, random.standard_normal((1, 5, 4), np.float32))


def jpeg_of(number: int) -> bytes | None:
    """What stands for the JPEG of a picture; every fifth picture has none."""
    return b"\xff\xd8" + bytes([number]) * (10 + number) if number % 5 else None


def build(path: Path, numbers: range, per_commit: int = 4, jpeg: Callable[[int], bytes | None] = jpeg_of) -> Path:
    def install(folder: Path) -> None:
        (folder / "bundle.json").write_text("{}")

    with MapWriter.open(path, identity="a" * 64, descriptor_dim=8, token_shape=(5, 4), install_model=install) as writer:
        for number in numbers:
            writer.add(name=str(number), source="/drive.bag", features=features_of(number), thumbnail=jpeg(number))
            if number % per_commit == per_commit - 1:
                writer.commit()
    return path


def thumbnails(path: Path) -> dict[int, bytes | None]:
    with Map.open(path) as map_:
        return {int(record.name): map_.read_thumbnail(record) for record in map_.records}


def files(path: Path) -> list[str]:
    return sorted(file.name for file in (path / "segments").glob("*.thumbnails"))


def test_a_map_keeps_thumbnails(tmp_path: Path) -> None:
    path = build(tmp_path / "map", range(10))
    assert thumbnails(path) == {number: jpeg_of(number) for number in range(10)}
    with Map.open(path) as map_:
        assert map_.info().thumbnail_bytes == sum(file.stat().st_size for file in path.rglob("*.thumbnails"))
    assert files(path) == ["000001.thumbnails", "000002.thumbnails", "000003.thumbnails"]
    with MapWriter.edit(path) as writer:
        writer.remove(["1", "5"])
        writer.compact()
    assert thumbnails(path) == {number: jpeg_of(number) for number in range(10) if number not in (1, 5)}
    assert files(path) == ["000004.thumbnails"]  # those of the old segments are gone
    with Map.open(path) as map_:
        assert map_.info().thumbnail_bytes == (path / "segments/000004.thumbnails").stat().st_size


def test_a_merge_copies_thumbnails(tmp_path: Path) -> None:
    path, other = build(tmp_path / "map", range(3)), build(tmp_path / "other", range(3, 20))
    merge_maps([other], path)
    assert thumbnails(path) == {number: jpeg_of(number) for number in range(20)}


def test_a_repair_keeps_the_thumbnails_of_intact_pictures(tmp_path: Path) -> None:
    path = build(tmp_path / "map", range(8))
    segment = path / "segments/000001.safetensors"
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1  # tokens of picture 3
    segment.write_bytes(content)
    assert repair_map(path).kept == 7
    assert thumbnails(path) == {number: jpeg_of(number) for number in range(8) if number != 3}
    assert verify_map(path) == []


def test_maps_without_thumbnails_are_whole(tmp_path: Path) -> None:
    path = build(tmp_path / "map", range(6), jpeg=lambda number: None)
    assert files(path) == []
    assert set(thumbnails(path).values()) == {None}
    with_some = build(tmp_path / "other", range(6, 12))
    merge_maps([path], with_some)
    assert thumbnails(with_some) == {number: jpeg_of(number) if number >= 6 else None for number in range(12)}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: HEAD + 5],
        lambda content: content[:3],
        lambda content: b"",
        lambda content: b"X" + content[1:],
        lambda content: content[:-1],
        lambda content: content[:-1] + b"?",
        lambda content: content[:8] + struct.pack("<Q", 2**63) + content[HEAD:],
        lambda content: content[:8] + struct.pack("<Q", 3) + content[HEAD:],
        lambda content: content[: HEAD + 36 + 8] + struct.pack("<I", LARGEST + 1) + content[HEAD + 48 :],
        lambda content: content[: HEAD + 36 + 8] + struct.pack("<I", 2**32 - 1) + content[HEAD + 48 :],
    ],
)
def test_a_damaged_thumbnail_is_none(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = build(tmp_path / "map", range(4))
    file = path / "segments/000001.thumbnails"
    file.write_bytes(damage(file.read_bytes()))
    assert thumbnails(path)[3] is None
    assert verify_map(path) == []


def test_thumbnails_of_other_pictures_are_not_shown(tmp_path: Path) -> None:
    """As after a writer of an older version, which leaves the file when it makes the segment again."""
    path, other = build(tmp_path / "map", range(1, 4)), build(tmp_path / "other", range(11, 14))
    shutil.copy(other / "segments/000001.thumbnails", path / "segments/000001.thumbnails")
    assert set(thumbnails(path).values()) == {None}


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    path = build(tmp_path / "map", range(4))
    file = path / "segments/000001.thumbnails"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert set(thumbnails(path).values()) == {None}


def test_thumbnails_of_an_interrupted_commit_are_deleted(tmp_path: Path) -> None:
    path = build(tmp_path / "map", range(4))
    shutil.copy(path / "segments/000001.thumbnails", path / "segments/000002.thumbnails")
    with MapWriter.edit(path):
        assert files(path) == ["000001.thumbnails"]
    assert thumbnails(path) == {number: jpeg_of(number) for number in range(4)}


def test_too_large_a_thumbnail_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a thumbnail of 262145 bytes"):
        build(tmp_path / "map", range(1), jpeg=lambda number: b"\xff\xd8" + bytes(LARGEST - 1))
