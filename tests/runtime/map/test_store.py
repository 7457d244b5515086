"""Pictures written to a map are read back in the requested order, and invalid ones are refused."""

import dataclasses
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pairvpr.errors import MapError
from pairvpr.files import find_partials
from pairvpr.runtime.features import Features
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Map, MapWriter, catalog, compaction, verify_map, writer
from pairvpr.runtime.map.segments import Segment

SHAPE = {"identity": "a" * 64, "descriptor_dim": 8, "token_shape": (5, 4)}


def features_of(number):
    random = np.random.default_rng(number)
    descriptors = random.standard_normal((1, 8), np.float32)
    descriptors /= np.linalg.norm(descriptors)
    return Features(descriptors, random.standard_normal((1, 5, 4), np.float32))


def install_model(folder):
    assert not list(folder.iterdir())
    (folder / "bundle.json").write_text("{}")


def open_writer(path, **changes):
    return MapWriter.open(path, **{**SHAPE, "install_model": install_model, **changes})


def add(store, *numbers, **fields):
    for number in numbers:
        store.add(name=f"{number}.jpg", source="/pictures", features=features_of(number), **fields)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map of the town? 50%"  # characters that a URI must quote


@pytest.fixture
def built(path):
    """A map of pictures 0 to 9 in three segments."""
    with open_writer(path) as store:
        for numbers in (range(4), range(4, 5), range(5, 10)):
            add(store, *numbers)
            store.commit()
    return path


def test_stored_pictures_are_read_back(path):
    places = [
        {},
        {"timestamp": 1.5, "pose": Pose(1, -0.0, 2.5)},
        {
            "timestamp": 0,
            "pose": Pose(0.1, 0.2, 0.3, (0.0, 0.0, 0.6, 0.8), "odom"),
            "gps": Gps(-27.5, 153.0, 12.0),
        },
        {"gps": Gps(0.0, 0.0)},
    ]
    names = ["a.jpg", "sub/ü 漢.png", "quote'\"\n.jpg", "d"]
    with open_writer(path, settings={"size": [224, 322], "none": None}) as store:
        for number, (name, place) in enumerate(zip(names, places, strict=True)):
            store.add(name=name, source=f"/source/{number}", features=features_of(number), **place)

    with Map.open(path) as opened:
        assert [record.name for record in opened.records] == names
        assert [record.id for record in opened.records] == [1, 2, 3, 4]
        assert [record.source for record in opened.records] == [f"/source/{i}" for i in range(4)]
        assert [record.timestamp for record in opened.records] == [None, 1.5, 0.0, None]
        assert [record.pose for record in opened.records] == [place.get("pose") for place in places]
        assert [record.gps for record in opened.records] == [place.get("gps") for place in places]
        assert opened.identity == "a" * 64
        assert opened.settings == {"size": [224, 322], "none": None}
        assert opened.token_shape == (5, 4)
        assert (opened.model_path / "bundle.json").read_text() == "{}"
        expected = Features.concatenate([features_of(number) for number in range(4)])
        assert opened.descriptors.dtype == np.float32
        np.testing.assert_array_equal(opened.descriptors, expected.descriptors)
        tokens = opened.read_tokens(range(4))
        assert tokens.dtype == np.float16
        np.testing.assert_array_equal(tokens, expected.tokens.astype(np.float16))
    assert verify_map(path) == []


def test_an_empty_map_can_be_opened(path):
    with open_writer(path):
        pass
    with Map.open(path) as opened:
        assert len(opened) == 0
        assert opened.descriptors.shape == (0, 8)
        assert opened.read_tokens([]).shape == (0, 5, 4)
        assert opened.info().bytes_per_picture == 0
    assert verify_map(path) == []


def test_tokens_are_read_in_file_order_and_returned_in_the_order_of_rows(built, monkeypatch):
    read = []
    plain = Segment.read_tokens
    monkeypatch.setattr(
        Segment,
        "read_tokens",
        lambda self, record: (read.append((record.segment, record.row)), plain(self, record))[1],
    )
    rows = np.array([7, 2, 9, 0, 2, 4])
    with Map.open(built) as opened:
        tokens = opened.read_tokens(rows)
    expected = np.concatenate([features_of(row).tokens for row in rows]).astype(np.float16)
    np.testing.assert_array_equal(tokens, expected)
    assert len(read) == 6
    assert read == sorted(read)


@pytest.mark.parametrize("row", [10, -1])
def test_an_invalid_row_is_an_index_error(built, row):
    with Map.open(built) as opened, pytest.raises(IndexError, match="10 pictures"):
        opened.read_tokens([0, row])


def test_a_closed_map_gives_no_tokens(built):
    with Map.open(built) as opened:
        pass
    with pytest.raises(ValueError, match="closed"):
        opened.read_tokens([0])


def test_info(built):
    with open_writer(built) as store:
        add(store, 10, pose=Pose(1, 2, 3))
    with Map.open(built) as opened:
        info = opened.info()
    files = [built / "map.sqlite", *(built / "segments").iterdir()]
    assert info.bytes == sum(file.stat().st_size for file in files)
    assert info.bytes_per_picture == info.bytes / 11
    assert (info.pictures, info.with_pose, info.with_gps, info.deleted, info.segments) == (11, 1, 0, 0, 4)
    assert (info.descriptor_dim, info.token_shape, info.model_bytes) == (8, (5, 4), 2)


def test_removed_pictures_are_not_read(built):
    with Map.open(built) as before, MapWriter.edit(built) as store:
        assert store.remove(["4.jpg", "0.jpg", "4.jpg"]) == 2
        assert "4.jpg" not in store.names()
        assert len(before.records) == 10  # as it was opened
        np.testing.assert_array_equal(before.read_tokens([4]), features_of(4).tokens.astype(np.float16))
    with Map.open(built) as opened:
        assert [record.name for record in opened.records] == [f"{i}.jpg" for i in range(10) if i not in (0, 4)]
        np.testing.assert_array_equal(opened.descriptors[3:4], features_of(5).descriptors)
        np.testing.assert_array_equal(opened.read_tokens([3]), features_of(5).tokens.astype(np.float16))
        assert opened.info().deleted == 2
    with open_writer(built) as store:
        add(store, 4)
    with Map.open(built) as opened:
        assert opened.records[-1].id == 11
    assert verify_map(built) == []


def test_pictures_are_removed_all_or_none(built):
    with MapWriter.edit(built) as store:
        with pytest.raises(MapError, match=r"holds no picture 'x\.jpg': see `pairvpr map list`; nothing was removed"):
            store.remove(["4.jpg", "x.jpg"])
        assert store.remove([]) == 0
        with pytest.raises(ValueError, match="takes no new pictures"):
            add(store, 20)
    with open_writer(built) as store:
        add(store, 20)
        assert store.remove(["20.jpg"]) == 1  # added just now
        add(store, 20)
    with Map.open(built) as opened:
        assert [record.name for record in opened.records] == [f"{i}.jpg" for i in (*range(10), 20)]
        assert opened.info().deleted == 1


def test_an_interrupted_removal_removes_nothing(built, monkeypatch):
    def fail(*_):
        raise sqlite3.OperationalError("disk I/O error")

    store = MapWriter.edit(built)
    monkeypatch.setattr("pairvpr.runtime.map.tables.insert", fail)
    with pytest.raises(MapError, match=r"map\.sqlite"):
        store.remove(["4.jpg"])
    store.close()
    with Map.open(built) as opened:
        assert len(opened.records) == 10
    assert verify_map(built) == []


def test_editing_needs_a_free_map(tmp_path, built):
    with pytest.raises(MapError, match="no map"):
        MapWriter.edit(tmp_path / "nothing")
    with MapWriter.edit(built), pytest.raises(MapError, match="process"):
        MapWriter.edit(built)


def test_a_compacted_map_is_the_same_map(built):
    with MapWriter.edit(built) as store:
        store.remove(["4.jpg", "0.jpg"])
    with Map.open(built) as before:
        size = before.info().bytes
        with MapWriter.edit(built) as store:
            freed = store.compact()
            assert store.compact() == 0
        assert [file.name for file in (built / "segments").iterdir()] == ["000004.safetensors"]
        with Map.open(built) as after:
            assert [dataclasses.replace(r, segment=0, row=0) for r in after.records] == [
                dataclasses.replace(r, segment=0, row=0) for r in before.records
            ]
            np.testing.assert_array_equal(after.descriptors, before.descriptors)
            np.testing.assert_array_equal(
                after.read_tokens(range(8)), before.read_tokens(range(8))
            )  # of files now gone
            assert (after.info().deleted, after.info().segments) == (0, 1)
            assert 0 < freed < size - after.info().bytes + 4096  # the catalog has pages
    assert verify_map(built) == []
    with open_writer(built) as store:
        add(store, 0, 20)
    with Map.open(built) as opened:
        assert [record.name for record in opened.records[-2:]] == ["0.jpg", "20.jpg"]
        assert opened.records[-1].id == 12


def test_compacted_segments_have_a_limited_size(built, monkeypatch):
    size = sum(file.stat().st_size for file in (built / "segments").iterdir())
    monkeypatch.setattr(compaction, "SEGMENT_BYTES", 0.4 * size + 1)  # four pictures
    with MapWriter.edit(built) as store:
        store.remove(["9.jpg"])
        store.compact()
    with Map.open(built) as opened:
        assert opened.info().segments == 3
        np.testing.assert_array_equal(opened.read_tokens([8]), features_of(8).tokens.astype(np.float16))


def test_a_map_without_pictures_can_be_compacted(built):
    with MapWriter.edit(built) as store:
        store.remove([f"{i}.jpg" for i in range(10)])
        assert store.compact() > 0
    assert not list((built / "segments").iterdir())
    with open_writer(built) as store:
        add(store, 3)
    with Map.open(built) as opened:
        assert [record.name for record in opened.records] == ["3.jpg"]


def test_damage_is_not_compacted_away(built):
    file = built / "segments" / "000003.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 4
    file.write_bytes(content)
    store = MapWriter.edit(built)
    store.remove(["0.jpg"])
    with pytest.raises(MapError, match=r"000003\.safetensors.*tokens of '.\.jpg' fail"):
        store.compact()
    store.close()
    with MapWriter.edit(built):
        assert len(list((built / "segments").iterdir())) == 3  # and what was written by then is gone
    with Map.open(built) as opened:
        assert len(opened.records) == 9


def test_a_map_may_be_compacted_while_it_is_opened(built, monkeypatch):
    load, compacted = catalog.load, []

    def load_and_compact(path, **known):
        state = load(path, **known)
        if not compacted:
            with MapWriter.edit(path) as store:
                compacted.append(store.compact())
        return state

    monkeypatch.setattr(catalog, "load", load_and_compact)
    with Map.open(built) as opened:
        assert len(opened.read_tokens(range(10))) == 10
        assert opened.info().segments == 1


def test_commits_happen_at_intervals(path, monkeypatch):
    monkeypatch.setattr(writer, "COMMIT_PICTURES", 3)
    with open_writer(path) as store:
        add(store, 0, 1, 2, 3)
        with Map.open(path) as opened:
            assert len(opened) == 3
    monkeypatch.setattr(writer, "COMMIT_BYTES", 2 * 5 * 4 * 2)
    with open_writer(path) as store:
        add(store, 4, 5, 6)
        assert set(store.names()) == {f"{i}.jpg" for i in range(7)}
        with Map.open(path) as opened:
            assert len(opened) == 6


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ValueError])
def test_complete_pictures_are_kept_when_the_build_is_interrupted(path, reason):
    with pytest.raises(reason), open_writer(path) as store:  # noqa: PT012
        add(store, 0, 1)
        raise reason
    with Map.open(path) as opened:
        assert len(opened) == 2


def test_the_writer_copies_features(path):
    features = features_of(0)
    with open_writer(path) as store:
        store.add(name="a", source="", features=features)
        features.descriptors[:] = features.tokens[:] = 7
    with Map.open(path) as opened:
        np.testing.assert_array_equal(opened.descriptors, features_of(0).descriptors)
        np.testing.assert_array_equal(opened.read_tokens([0]), features_of(0).tokens.astype(np.float16))


@pytest.mark.parametrize(
    ("which", "value"),
    [
        ("descriptors", np.nan),
        ("descriptors", np.inf),
        ("tokens", np.nan),
        ("tokens", -np.inf),
        ("tokens", 1e5),  # infinite in float16
    ],
)
def test_features_that_are_not_finite_are_refused(path, which, value):
    features = features_of(0)
    getattr(features, which).flat[3] = value
    with open_writer(path) as store:
        with pytest.raises(MapError, match=r"'bad\.jpg' are not finite"):
            store.add(name="bad.jpg", source="", features=features)
        add(store, 1)
    with Map.open(path) as opened:
        assert [record.name for record in opened.records] == ["1.jpg"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "0.jpg"}, "already holds '0.jpg'"),
        ({"name": "\udcff.jpg"}, "not valid Unicode"),
        (
            {"timestamp": float("nan")},
            "'new.jpg' cannot be added .* the timestamp of the picture is not a finite number",
        ),
        ({"timestamp": 1.1e19}, r"the timestamp of the picture is not from -1e\+19 to 1e\+19"),
        ({"pose": Pose(0, float("inf"), 0)}, "the position of the picture is not a finite number"),
        ({"pose": Pose(0, 0, -1.1e12)}, r"the position of the picture is not from -1e\+12 to 1e\+12"),
        ({"pose": Pose(0, 0, 0, (0, 0, 0, 0.4))}, "the orientation of the picture is not a unit quaternion"),
        ({"pose": Pose(0, 0, 0, (float("nan"), 0, 0, 1))}, "the orientation of the picture is not a unit quaternion"),
        ({"gps": Gps(90.5, 0)}, "the latitude of the picture is not from -90 to 90"),
        ({"gps": Gps(0, -180.5)}, "the longitude of the picture is not from -180 to 180"),
        ({"gps": Gps(0, 1, float("inf"))}, "the altitude of the picture is not a finite number"),
        ({"features": Features(np.zeros((1, 9), np.float32), np.zeros((1, 5, 4), np.float32))}, "own model"),
        ({"features": Features(np.zeros((2, 8), np.float32), np.zeros((2, 5, 4), np.float32))}, "shapes"),
    ],
)
def test_invalid_records_are_refused(built, changes, message):
    with open_writer(built) as store:
        with pytest.raises(MapError, match=message):
            store.add(**{"name": "new.jpg", "source": "", "features": features_of(0), **changes})
        assert len(store.names()) == 10
    with Map.open(built) as opened:
        assert len(opened) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": "b" * 64}, "made with model aaaaaaaaaaaa, not bbbbbbbbbbbb: use its own model"),
        ({"descriptor_dim": 9}, "sizes"),
        ({"token_shape": (4, 5)}, "sizes"),
        ({"settings": {"size": 1}}, "made with settings"),
    ],
)
def test_a_map_of_another_model_is_refused(built, changes, message):
    with pytest.raises(MapError, match=message):
        open_writer(built, **changes)
    with open_writer(built) as store:  # the refused one has let go of the lock
        assert len(store.names()) == 10


def test_the_model_is_installed_once(built):
    def refuse(folder):
        raise AssertionError("the map has its model")

    open_writer(built, install_model=refuse).close()
    open_writer(built, install_model=None).close()
    assert (built / "model" / "bundle.json").exists()
    assert find_partials(built) == []


def test_a_missing_map_is_refused(path):
    for call in (
        lambda: Map.open(path),
        lambda: verify_map(path),
        lambda: open_writer(path, install_model=None),
    ):
        with pytest.raises(MapError, match="holds no map: build it with `pairvpr map build IMAGES --db"):
            call()
    assert not path.exists()


def foreign_text(folder):
    (folder / "notes.txt").write_text("mine")


def foreign_model(folder):
    (folder / "model").mkdir()
    (folder / "model" / "mine.onnx").write_text("mine")


def foreign_lock(folder):
    foreign_model(folder)
    (folder / "lock").write_text("")


def lost_catalog(folder):
    with open_writer(folder) as store:
        add(store, 0)
    (folder / "map.sqlite").unlink()


@pytest.mark.parametrize("fill", [foreign_text, foreign_model, foreign_lock, lost_catalog])
def test_a_folder_with_other_things_is_left_untouched(path, fill):
    path.mkdir()
    fill(path)
    before = {file: file.read_bytes() if file.is_file() else None for file in path.rglob("*")}
    with pytest.raises(MapError, match="not empty and holds no map"):
        open_writer(path)
    assert {file: file.read_bytes() if file.is_file() else None for file in path.rglob("*")} == before


def test_a_file_in_place_of_the_folder_is_refused(path):
    path.write_text("")
    with pytest.raises(MapError, match="is a file"):
        open_writer(path)


def test_the_store_needs_no_torch():
    code = "import sys, pairvpr.runtime.map; print({'torch', 'timm', 'onnx', 'onnxruntime'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path("/"))
    assert result.stdout == "set()\n"
