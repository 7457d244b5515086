"""A newer snapshot of a map equals a fresh opening, and shares with the earlier one what did not change."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pairvpr.errors import MapError
from pairvpr.runtime.features import Features
from pairvpr.runtime.geometry.poses import Pose
from pairvpr.runtime.map import Map, MapWriter, repair_map
from pairvpr.runtime.map.segments import Segment
from pairvpr.runtime.search import FaissIndex
from pairvpr.runtime.view import follow_index
from tests.runtime.map.forging import make_map, to_rows

SHAPE = {"identity": "a" * 64, "descriptor_dim": 8, "token_shape": (5, 4)}


def features_of(number: int) -> Features:
    random = np.random.default_rng(number % 40)  # many pictures look alike
    descriptors = random.standard_normal((1, 8), np.float32)
    return Features(descriptors / np.linalg.norm(descriptors), random.standard_normal((1, 5, 4), np.float32))


def add(path: Path, numbers: range, per_commit: int = 10) -> None:
    with MapWriter.open(path, **SHAPE) as writer:
        for number in numbers:
            writer.add(name=f"n{number}.jpg", source="/n", pose=Pose(number, 0, 0), features=features_of(number))
            if number % per_commit == 0:
                writer.commit()


def remove(path: Path, names: list[str]) -> None:
    with MapWriter.edit(path) as writer:
        writer.remove(names)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_map(tmp_path / "map", count=60)


def assert_as_opened_anew(snapshot: Map, index: FaissIndex) -> None:
    with Map.open(snapshot.path) as fresh:
        assert list(snapshot.records) == list(fresh.records) == [fresh.records[row] for row in range(len(fresh))]
        assert (snapshot.settings, snapshot.info()) == (fresh.settings, fresh.info())
        np.testing.assert_array_equal(snapshot.take_descriptors(np.arange(len(fresh))), fresh.descriptors)
        np.testing.assert_array_equal(snapshot.read_tokens(range(len(fresh))), fresh.read_tokens(range(len(fresh))))
        new = FaissIndex(fresh.descriptors, fresh.index_precision)
        for number in range(0, 40, 7):
            query = features_of(number).descriptors
            for found, wanted in zip(index.search(query, 10), new.search(query, 10), strict=True):
                np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("rows", [False, True])
def test_snapshots_of_a_changing_map(path: Path, rows: bool) -> None:
    if rows:
        to_rows(path)
    chance, snapshot, number = np.random.default_rng(0), Map.open(path), 0
    index = FaissIndex(snapshot.descriptors)
    for step in range(30):
        kind = chance.choice(["add", "remove", "both", "compact"])
        if kind in ("add", "both"):
            count = int(chance.choice([1, 3, 25]))
            add(path, range(number, number + count))
            number += count
        if kind in ("remove", "both"):
            names = snapshot.records.names()
            remove(path, chance.choice(names, min(len(names) - 20, int(chance.choice([1, 8]))), replace=False).tolist())
        if kind == "compact":
            with MapWriter.edit(path) as writer:
                writer.compact()
        newer = snapshot.open_newer()
        if newer is None:
            assert kind == "compact"
            continue
        assert newer.change is not None
        index = follow_index(index, newer)
        if step % 7 == 6:
            assert newer.descriptors.shape == (len(newer), 8)
        snapshot.close()
        snapshot = newer
        assert_as_opened_anew(snapshot, index)
    snapshot.close()


def test_only_what_is_new_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Map.open(path) as opened:
        opened_files, read = [], []
        begin, plain = Segment.__init__, Segment.read_descriptors
        monkeypatch.setattr(
            Segment, "__init__", lambda self, *how: (opened_files.append(how[1].number), begin(self, *how))[1]
        )
        monkeypatch.setattr(Segment, "read_descriptors", lambda self: (read.append(self.entry.number), plain(self))[1])
        remove(path, ["3.jpg"])
        with opened.open_newer() or opened as without:
            assert (len(without), opened_files, read) == (59, [], [])
            assert without.change is not None
            assert (without.change.removed.tolist(), without.change.added) == ([3], 0)
            held = {id(block) for block in opened.records.blocks}
            assert len(held - {id(block) for block in without.records.blocks}) == 1
        add(path, range(1, 5))
        with opened.open_newer() or opened as newer:
            assert (len(newer), opened_files, read) == (63, [3], [3])


def test_each_snapshot_is_closed_on_its_own(path: Path) -> None:
    first = Map.open(path)
    add(path, range(1, 3))
    second = first.open_newer()
    assert second is not None
    first.close()
    first.close()
    with pytest.raises(ValueError, match="closed"):
        first.read_tokens([0])
    assert len(second.read_tokens(range(62))) == 62
    second.close()
    with pytest.raises(ValueError, match="closed"):
        second.read_tokens([0])


def test_another_map_in_its_place_is_opened_anew(path: Path, tmp_path: Path) -> None:
    with Map.open(path) as opened:
        other = make_map(tmp_path / "other", count=0)
        add(other, range(60), per_commit=31)
        shutil.rmtree(path)
        shutil.copytree(other, path)
        with opened.open_newer() or opened as newer:
            assert newer.change is None
            assert_as_opened_anew(newer, FaissIndex(newer.descriptors))
            assert newer.records[0].name == "n0.jpg"


def test_a_repaired_map_is_followed(path: Path) -> None:
    with Map.open(path) as opened:
        file = path / "segments" / "000001.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.unlink()
        file.write_bytes(content)
        assert repair_map(path).kept == 59
        index = FaissIndex(opened.descriptors)
        with opened.open_newer() or opened as newer:
            assert newer.change is not None
            assert newer.change.removed.tolist() == [30]
            assert_as_opened_anew(newer, follow_index(index, newer))


def test_a_damaged_addition_is_refused_and_the_old_snapshot_goes_on(path: Path) -> None:
    with Map.open(path) as opened:
        add(path, range(1, 3))
        file = path / "segments" / "000003.safetensors"
        content = bytearray(file.read_bytes())
        content[-2 * 40 - 1] ^= 1  # a descriptor
        file.write_bytes(content)
        with pytest.raises(MapError, match=r"000003\.safetensors is damaged .*descriptor"):
            opened.open_newer()
        assert len(opened.read_tokens(range(60))) == 60


def test_descriptors_are_read_when_they_are_asked_for(path: Path) -> None:
    with Map.open(path) as whole:
        expected = whole.descriptors
    file = path / "segments" / "000002.safetensors"
    original = file.read_bytes()
    file.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with Map.open(path, descriptors=False) as lazy:
        assert (len(lazy), lazy.info().pictures) == (60, 60)
        np.testing.assert_array_equal(lazy.read_descriptor(5), expected[5])
        np.testing.assert_array_equal(lazy.descriptors, expected)  # tokens are damaged, not descriptors
    content = bytearray(original)
    content[-29 * 40 - 1] ^= 1  # the last descriptor of 29
    file.write_bytes(content)
    with Map.open(path, descriptors=False) as lazy:
        assert len(lazy.records) == 60
        for ask in (lambda: lazy.descriptors, lambda: lazy.read_descriptor(59)):
            with pytest.raises(MapError, match=r"descriptor of '59\.jpg' fails its checksum"):
                ask()
