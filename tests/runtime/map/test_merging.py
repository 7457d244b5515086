"""A merge copies the pictures of other maps unchanged, and refuses conflicts."""

import dataclasses
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from click.testing import CliRunner

from pairvpr.cli.main import main
from pairvpr.errors import MapError
from pairvpr.runtime.features import Features
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Map, MapWriter, catalog, merge_maps, merging, verify_map, writer
from pairvpr.runtime.map.segments import Segment

SHAPE = {"identity": "a" * 64, "descriptor_dim": 8, "token_shape": (5, 4)}
INT8 = {"tokens": {"type": "int8", "keep": 0.5}}


def features_of(number):
    random = np.random.default_rng(number)
    descriptors = random.standard_normal((1, 8), np.float32)
    descriptors /= np.linalg.norm(descriptors)
    return Features(descriptors, random.standard_normal((1, 5, 4), np.float32))


def install_model(folder):
    (folder / "bundle.json").write_text("{}")


def build(path, numbers, *, per_commit=4, settings=None, shape=SHAPE, source="/pictures", offset=0):
    with MapWriter.open(path, **shape, settings=settings, install_model=install_model) as store:
        for number in numbers:
            store.add(
                name=f"{number}.jpg",
                source=source,
                timestamp=number / 10,
                pose=Pose(number, 2, 3, (0, 0, 0, 1), "odom") if number % 2 else None,
                gps=Gps(number, 1) if number % 3 else None,
                features=features_of(number + offset),
            )
            if number % per_commit == per_commit - 1:
                store.commit()
    return path


def content(path):
    """Return everything readable of each picture, by name, except its position in the map."""
    with Map.open(path) as opened:
        tokens = opened.read_tokens(range(len(opened)))
        return {
            record.name: (
                dataclasses.replace(record, id=0, segment=0, row=0),
                opened.descriptors[i].tobytes(),
                tokens[i].tobytes(),
            )
            for i, record in enumerate(opened.records)
        }


def bytes_of(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "lock"}


@pytest.fixture
def path(tmp_path):
    return build(tmp_path / "map", range(3))


@pytest.fixture
def other(tmp_path):
    return build(tmp_path / "other", range(10, 30))


@pytest.mark.parametrize("settings", [None, INT8])
def test_pictures_are_copied_unchanged(tmp_path, settings):
    path = build(tmp_path / "map", range(3), settings=settings)
    others = [
        build(tmp_path / "b", range(10, 30), settings=settings, source="/b"),
        build(tmp_path / "c", [3], settings=settings),
    ]
    with MapWriter.edit(others[0]) as store:
        store.remove(["12.jpg"])
    expected = content(path) | content(others[0]) | content(others[1])
    before = bytes_of(others[0])
    steps = []
    report = merge_maps(others, path, lambda *step: steps.append(step))
    assert (report.merged, report.already, report.damaged) == (20, 0, ())
    assert steps == [(i, 20) for i in range(1, 21)]
    assert content(path) == expected
    assert len(expected) == 23
    assert verify_map(path) == []
    assert bytes_of(others[0]) == before
    with Map.open(path) as opened:
        assert [record.id for record in opened.records] == list(range(1, 24))


def test_pictures_already_in_the_map_are_skipped(path, other):
    build(other, range(3), source="/elsewhere")
    assert merge_maps([other], path).merged == 20
    before = bytes_of(path)
    for others in ([other], [other, other], [path]):
        report = merge_maps(others, path)
        assert (report.merged, report.already) == (0, 23 * len(others))
    assert bytes_of(path) == before


def test_an_interrupted_merge_goes_on(path, other, monkeypatch):
    expected = content(path) | content(other)
    append, calls = catalog.append, []

    def fail(*arguments):
        calls.append(None)
        if len(calls) == 3:
            raise sqlite3.OperationalError("database or disk is full")
        append(*arguments)

    monkeypatch.setattr(writer, "COMMIT_PICTURES", 5)
    with monkeypatch.context() as patched:
        patched.setattr(catalog, "append", fail)
        with pytest.raises(MapError, match=r"map\.sqlite cannot be written .* make room and run the command again"):
            merge_maps([other], path)
    assert len(content(path)) == 13
    assert verify_map(path) == []
    report = merge_maps([other], path)
    assert (report.merged, report.already) == (10, 10)
    assert content(path) == expected


def test_different_pictures_of_one_name_are_refused(tmp_path, path, other):
    third = build(tmp_path / "third", [40, 12], offset=1)
    before = bytes_of(path)
    message = r"third and .*/other each hold a picture '12\.jpg', and they differ: remove one .*; nothing was merged"
    with pytest.raises(MapError, match=message):
        merge_maps([other, third], path)
    with pytest.raises(MapError, match=r"map each hold a picture '1\.jpg'"):
        merge_maps([other, build(tmp_path / "fourth", [1], offset=1)], path)
    assert bytes_of(path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"shape": {**SHAPE, "identity": "b" * 64}},
            "other was made with model b{12}, .*map with a{12}: ",
        ),
        ({"settings": INT8}, "other stores 50% of the tokens as int8, .*map 100% of the tokens as float16: build"),
        ({"shape": {**SHAPE, "descriptor_dim": 9}}, "of other sizes"),
    ],
)
def test_incompatible_maps_are_refused(tmp_path, path, changes, message):
    shape = changes.get("shape", SHAPE)
    with MapWriter.open(
        tmp_path / "other", **shape, settings=changes.get("settings"), install_model=install_model
    ) as store:
        features = Features(np.eye(1, shape["descriptor_dim"], dtype=np.float32), np.ones((1, 5, 4), np.float32))
        store.add(name="x.jpg", source="", features=features)
    before = bytes_of(path)
    with pytest.raises(MapError, match=message):
        merge_maps([tmp_path / "other"], path)
    assert bytes_of(path) == before


def test_a_missing_map_is_refused(tmp_path, path, other):
    for others, db in (([tmp_path / "none"], path), ([other], tmp_path / "none")):
        with pytest.raises(MapError, match="holds no map"):
            merge_maps(others, db)
    assert not (tmp_path / "none").exists()
    with MapWriter.edit(path), pytest.raises(MapError, match="being written by process"):
        merge_maps([other], path)


def test_intact_pictures_of_a_damaged_map_are_merged(path, other):
    segments = other / "segments"
    files = sorted(segments.iterdir())
    assert [file.name for file in files] == [f"00000{i}.safetensors" for i in range(1, 7)]  # 2, 4, 4, 4, 4, 2 pictures
    for file, place in ((files[0], -1), (files[1], 20)):  # the tokens of 11.jpg; a header
        content_of = bytearray(file.read_bytes())
        content_of[place] ^= 1
        file.write_bytes(content_of)
    files[2].write_bytes(files[2].read_bytes()[:-1])  # the tokens of 19.jpg
    files[3].unlink()
    report = merge_maps([other], path)
    gone = [11, 19, 20, 21, 22, 23]
    assert [line.partition(":")[0] for line in report.damaged] == [f"{i}.jpg" for i in gone]
    assert report.merged == 14
    found = content(path)
    assert set(found) == {f"{i}.jpg" for i in [*range(3), *range(10, 30)] if i not in gone}
    np.testing.assert_array_equal(
        np.frombuffer(found["13.jpg"][2], np.float16).reshape(5, 4), features_of(13).tokens[0].astype(np.float16)
    )
    assert verify_map(path) == []


def test_a_map_may_be_compacted_during_a_merge(path, other, monkeypatch):
    expected = content(path) | content(other)
    load, compacted = catalog.load, []

    def load_and_compact(path, **known):
        state = load(path, **known)
        if not compacted:
            with MapWriter.edit(path) as store:
                compacted.append(store.compact())
        return state

    monkeypatch.setattr(merging.catalog, "load", load_and_compact)
    assert merge_maps([other], path).damaged == ()
    assert content(path) == expected


@pytest.mark.parametrize("settings", [None, INT8, {"tokens": {"type": "int8"}}])
def test_salvage_finds_rows_at_the_offsets_of_the_header(tmp_path, settings):
    path = build(tmp_path / "map", range(3), settings=settings)
    state = catalog.load(path)
    with closing(Segment(path / "segments", state.segments[0], state.meta)) as segment:
        assert segment._read_header() == segment._derive_offsets()


def test_the_merge_command(path, other):
    result = CliRunner().invoke(main, ["map", "merge", str(other), "--db", str(path)])
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{path}: 20 pictures merged, 0 already there, 0 damaged\n"
    third = build(other.parent / "third", [50, 51])
    file = third / "segments" / "000001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    result = CliRunner().invoke(main, ["map", "merge", str(other), str(third), "--db", str(path)])
    assert result.exit_code == 2
    assert result.stdout == f"{path}: 1 pictures merged, 20 already there, 1 damaged\n"
    assert "left out: 51.jpg: " in result.stderr
    assert result.stderr.endswith("1 damaged pictures, listed above, were left out; the others are in\n")
