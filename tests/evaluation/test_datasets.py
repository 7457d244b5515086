"""Every layout and protocol on small trees of its own format, against a few plain lines."""

from __future__ import annotations

import csv
import math
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pairvpr.errors import SourceError
from pairvpr.evaluation import DATASETS, Benchmark, load_dataset, load_folders
from pairvpr.evaluation.benchmark import within_frames, within_radius

EAST, NORTH = 585_000.0, 4_477_000.0


def touch(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def utm_name(east: float, north: float, note: object = "", zone: str = "17@T") -> str:
    """A name as VPR-datasets-downloader writes it."""
    return f"@{EAST + east:010.2f}@{NORTH + north:010.2f}@{zone}@40.44@-79.99@{note}@@@@@@@@.jpg"


def right_names(benchmark: Benchmark) -> dict[str, set[str]]:
    return {
        query: {benchmark.database[i][0] for i in right}
        for (query, _), right in zip(benchmark.queries, benchmark.positives, strict=True)
    }


@pytest.mark.parametrize("seed", range(5))
def test_radius_and_frames_are_what_comparing_all_pairs_gives(seed):
    dice = np.random.default_rng(seed)
    database, queries = dice.integers(0, 90, (70, 2)).astype(float), dice.integers(0, 90, (30, 2)).astype(float)
    found = within_radius(database, queries, 25.0)
    for query, right in zip(queries, found, strict=True):
        assert right.tolist() == [i for i, at in enumerate(database) if math.dist(at, query) <= 25.0]
    frames, asked = dice.permutation(200)[:70].tolist(), dice.integers(0, 200, 30).tolist()
    for query, right in zip(asked, within_frames(frames, asked, 3), strict=True):
        assert right.tolist() == [i for i, frame in enumerate(frames) if abs(frame - query) <= 3]


def test_utm_folders_count_25_metres_in_and_queries_without_an_answer_as_misses(tmp_path):
    touch(tmp_path / "db", [utm_name(0, 0, "a"), utm_name(15, 20, "b"), utm_name(25.01, 0, "c")])
    touch(tmp_path / "q", [utm_name(0, 0, "q"), utm_name(500, 0, "far"), utm_name(0, 0, "other zone", "18@T")])
    benchmark = load_folders(tmp_path / "db", tmp_path / "q")
    near = {utm_name(0, 0, "a"), utm_name(15, 20, "b")}
    assert right_names(benchmark) == {
        utm_name(0, 0, "q"): near,
        utm_name(500, 0, "far"): set(),
        utm_name(0, 0, "other zone", "18@T"): near,
    }
    assert "25 m" in benchmark.protocol
    assert "count as misses (here 1)" in benchmark.protocol
    assert benchmark.name == "db <- q"


@pytest.mark.parametrize("name", ["pitts30k", "pitts250k", "tokyo247"])
@pytest.mark.parametrize("folders", [("images/test/database", "images/test/queries"), ("database", "queries")])
def test_pitts_and_tokyo_in_the_downloaders_folders(tmp_path, name, folders):
    touch(tmp_path / folders[0], [utm_name(10 * i, 0, i) for i in range(8)])
    touch(tmp_path / folders[1], [utm_name(0, 24, "q")])
    benchmark = load_dataset(name, tmp_path)
    assert benchmark.name == name
    assert right_names(benchmark) == {utm_name(0, 24, "q"): {utm_name(0, 0, 0)}}
    assert "NOT the published set: 8 database pictures and 1 queries" in benchmark.protocol


def test_gardens_point_by_frame_numbers(tmp_path):
    for side, frames in (("day_left", range(20)), ("night_right", range(5, 25))):
        touch(tmp_path / side, [f"Image{frame:03d}.jpg" for frame in frames])
    benchmark = load_folders(tmp_path / "day_left", tmp_path / "night_right", tolerance=2)
    found = right_names(benchmark)
    assert found["Image010.jpg"] == {f"Image{frame:03d}.jpg" for frame in range(8, 13)}
    assert found["Image021.jpg"] == {"Image019.jpg"}
    assert found["Image022.jpg"] == set()
    assert "at most 2" in benchmark.protocol
    assert "(here 3)" in benchmark.protocol


def warnings(benchmark: Benchmark) -> list[str]:
    return benchmark.protocol.split(" WARNING: ")[1:]


def test_degrees_that_are_read_as_metres_are_a_warning_in_the_figures(tmp_path, caplog):
    touch(tmp_path / "db", [f"@{116.3 + i / 100:.7f}@{40 + i / 100:.7f}@.jpg" for i in range(6)])
    touch(tmp_path / "q", [f"@{116.305 + i / 100:.7f}@{40.005 + i / 100:.7f}@.jpg" for i in range(6)])
    degrees, nothing = warnings(load_folders(tmp_path / "db", tmp_path / "q"))
    assert "look like degrees, but are read as metres" in degrees
    assert "every database picture is right for every query" in nothing
    assert degrees.rstrip(".") in caplog.text


@pytest.mark.parametrize(
    ("database", "queries", "told"),
    [
        ([f"{i}.jpg" for i in range(10)], [f"{i}.jpg" for i in range(5, 9)], None),
        ([f"run1_{i}.jpg" for i in range(10)], [f"run2_{i}.jpg" for i in range(10)], None),
        ([f"{i}.jpg" for i in range(10)], [f"{i}.jpg" for i in range(5, 15)], "other frame numbers (0 to 9 in the"),
        ([f"{9 - i}_{i}.jpg" for i in range(10)], [f"{i}.jpg" for i in range(10)], "several numbers that differ"),
        ([f"12.{i}.jpg" for i in range(10)], [f"12.{i}.jpg" for i in range(10)], "decimal numbers"),
        ([f"{i}.jpg" for i in range(3)], ["1.jpg"], "every database picture is right for every query"),
        ([f"170000000{i}.jpg" for i in range(9)], [f"170000000{i}.jpg" for i in range(9)], "as time stamps have"),
    ],
)
def test_names_that_do_not_look_like_frame_numbers_are_a_warning(tmp_path, database, queries, told):
    touch(tmp_path / "db", database)
    touch(tmp_path / "q", queries)
    found = warnings(load_folders(tmp_path / "db", tmp_path / "q", 1))
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def test_nordland_copies_with_other_frame_numbers_are_a_warning(tmp_path):
    touch(tmp_path / "ref", [f"{i}.jpg" for i in range(20)])
    touch(tmp_path / "query", [f"{i + (i > 7)}.jpg" for i in range(20)])
    assert "have gaps" in warnings(load_dataset("nordland-27592", tmp_path))[0]
    for path in (tmp_path / "query").iterdir():
        path.unlink()
    touch(tmp_path / "query", [f"{i + 5}.jpg" for i in range(20)])
    assert "differ between the sides" in warnings(load_dataset("nordland-27592", tmp_path))[0]


def nordland_tree(root: Path, style: str, count: int, thinned: bool, spacing: float) -> None:
    """The downloader's tree with made-up positions, truncated to a decimal, or VPR-Bench's with plain numbers."""
    asked = range(0, count, 10) if thinned else range(count)
    if style == "downloader":

        def name(i: int) -> str:
            return f"@0@{int(i * spacing * 10) / 10:07.1f}@@@@@{i}@@@@@@@@.jpg"

        touch(root / "images/test/database", [name(i) for i in range(count)])
        touch(root / "images/test/queries", [name(i) for i in asked])
    else:
        touch(root / "ref", [f"{i}.jpg" for i in range(count)])
        touch(root / "query", [f"{i}.jpg" for i in range(len(asked))])


@pytest.mark.parametrize("style", ["downloader", "vpr-bench"])
@pytest.mark.parametrize("thinned", [True, False])
def test_nordland_with_every_tenth_frame_and_one_off(tmp_path, style, thinned):
    nordland_tree(tmp_path, style, 93, thinned, 25 / (1.5 if thinned else 10.5))
    benchmark = load_dataset("nordland-2760", tmp_path)
    assert len(benchmark.queries) == 10
    for query, right in enumerate(benchmark.positives):
        assert right.tolist() == [i for i in range(93) if abs(i - 10 * query) <= 1]
    if style == "downloader":  # its own positions say the same under its own spacing
        numbers = [name.split("@")[7] for name, _ in benchmark.queries]
        assert numbers == [str(10 * i) for i in range(10)]
        if thinned:
            by_position = load_folders(tmp_path / "images/test/database", tmp_path / "images/test/queries")
            assert right_names(by_position) == right_names(benchmark)


@pytest.mark.parametrize("style", ["downloader", "vpr-bench"])
def test_nordland_with_every_frame_and_ten_off(tmp_path, style):
    nordland_tree(tmp_path, style, 60, False, 25 / 10.5)
    benchmark = load_dataset("nordland-27592", tmp_path)
    for query, right in enumerate(benchmark.positives):
        assert right.tolist() == [i for i in range(60) if abs(i - query) <= 10]
    if style == "downloader":
        by_position = load_folders(tmp_path / "images/test/database", tmp_path / "images/test/queries")
        assert right_names(by_position) == right_names(benchmark)


def msls_side(folder: Path, rows: Sequence[tuple[str, float, float, bool, bool]]) -> None:
    """One side of a city; rows: key, easting, northing, pano, all."""
    touch(folder / "images", [f"{row[0]}.jpg" for row in rows])
    tables = {
        "raw.csv": (["", "key", "lon", "lat", "ca", "captured_at", "pano"], lambda k, e, n, p, a: [k, 0, 0, 0, "", p]),
        "postprocessed.csv": (
            ["", "key", "easting", "northing", "unique_cluster", "control_panel", "night", "view_direction"],
            lambda k, e, n, p, a: [k, e, n, 1, False, False, "Forward"],
        ),
        "subtask_index.csv": (["", "all", "s2w", "n2d"], lambda k, e, n, p, a: [a, False, False]),
    }
    for name, (header, fields) in tables.items():
        with (folder / name).open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(header)
            writer.writerows([i, *fields(*row)] for i, row in enumerate(rows))


@pytest.fixture
def msls(tmp_path: Path) -> Path:
    base = tmp_path / "train_val"
    for city in ("cph", "sf"):  # the same coordinates in both: an answer must be of the query's own city
        msls_side(
            base / city / "database",
            [
                (f"{city}-near", 0.0, 0.0, False, True),
                (f"{city}-pano", 1.0, 0.0, True, True),
                (f"{city}-edge", 25.0, 0.0, False, True),
                (f"{city}-far", 400.0, 0.0, False, True),
            ],
        )
        msls_side(
            base / city / "query",
            [
                (f"{city}-q", 0.0, 0.0, False, True),
                (f"{city}-q-not-in-all", 0.0, 0.0, False, False),
                (f"{city}-q-pano", 0.0, 0.0, True, True),
                (f"{city}-q-alone", 900.0, 0.0, False, True),
            ],
        )
    return tmp_path


def test_msls_takes_the_subtask_without_panoramas_and_drops_queries_without_an_answer(msls):
    benchmark = load_dataset("msls-val", msls)
    assert [name for name, _ in benchmark.queries] == ["cph/query/images/cph-q.jpg", "sf/query/images/sf-q.jpg"]
    assert len(benchmark.database) == 6
    for city in ("cph", "sf"):
        found = right_names(benchmark)[f"{city}/query/images/{city}-q.jpg"]
        assert found == {f"{city}/database/images/{city}-{where}.jpg" for where in ("near", "edge")}
    assert "The 2 queries without one are left out" in benchmark.protocol


def test_msls_as_index_files_gives_the_same(msls):
    as_published = load_dataset("msls-val", msls)
    paths = [f"train_val/{name}" for name, _ in as_published.database]
    asked = [f"train_val/{city}/query/images/{city}-q{tail}.jpg" for city in ("cph", "sf") for tail in ("-alone", "")]
    np.save(msls / "msls_val_dbImages.npy", np.array(paths))
    np.save(msls / "msls_val_qImages.npy", np.array(asked))
    np.save(msls / "msls_val_qIdx.npy", np.array([1, 3]))
    np.save(msls / "msls_val_pIdx.npy", ragged([right.tolist() for right in as_published.positives]))
    benchmark = load_dataset("msls-val", msls)
    assert [path for _, path in benchmark.queries] == [path for _, path in as_published.queries]
    assert [r.tolist() for r in benchmark.positives] == [r.tolist() for r in as_published.positives]
    assert "2 queries without one are left out" in benchmark.protocol


def ragged(lists: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    array = np.empty(len(lists), object)
    array[:] = lists
    return array


def write_npy(folder: Path, truth: np.ndarray, prefix: str = "SPED", tail: str = "gt") -> None:
    touch(folder / "ref", [f"{i}.jpg" for i in range(4)])
    touch(folder / "query", [f"{i}.jpg" for i in range(3)])
    np.save(folder / f"{prefix}_dbImages.npy", np.array([f"ref/{i}.jpg" for i in range(4)]))
    np.save(folder / f"{prefix}_qImages.npy", np.array([f"query/{i}.jpg" for i in range(3)]))
    np.save(folder / f"{prefix}_{tail}.npy", truth)


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        (np.array([3, 1, 0]), [[3], [1], [0]]),
        (np.array([[1, 0], [1, 2], [3, 3]]), [[0, 1], [1, 2], [3]]),
        (ragged([[3, 0], [], [2]]), [[0, 3], [], [2]]),
        (ragged([np.array([3, 0]), np.array([], int), np.array([2])]), [[0, 3], [], [2]]),
        (ragged([[np.int64(3), np.int32(0)], [], [2]]), [[0, 3], [], [2]]),
    ],
    ids=["one each", "two each", "lists", "arrays", "numpy numbers"],
)
@pytest.mark.parametrize("tail", ["gt", "gt_25m"])
def test_index_files(tmp_path, truth, expected, tail):
    write_npy(tmp_path, truth, tail=tail)
    benchmark = load_dataset("npy", tmp_path)
    assert [right.tolist() for right in benchmark.positives] == expected
    assert benchmark.name == "SPED"
    write_npy(tmp_path, truth, prefix="ESSEX")
    assert load_dataset("npy", tmp_path / "ESSEX_dbImages.npy").name == "ESSEX"


def test_index_files_that_older_versions_of_numpy_wrote(tmp_path):
    write_npy(tmp_path, np.array([0, 0, 0]))
    truth = ragged([[3, 0], np.array([1]), np.array([2])])
    with (tmp_path / "SPED_gt.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(truth))
        stream.write(pickle.dumps(truth, protocol=3).replace(b"numpy._core.", b"numpy.core."))
    assert [right.tolist() for right in load_dataset("npy", tmp_path).positives] == [[0, 3], [1], [2]]


def test_published_index_files_are_found_by_the_data_sets_name(tmp_path):
    truth = np.array([3, 1, 0])
    for name, prefix in (("pitts30k", "pitts30k_test"), ("nordland-2760", "Nordland")):
        write_npy(tmp_path, truth, prefix=prefix)
        benchmark = load_dataset(name, tmp_path)
        assert (benchmark.name, [right.tolist() for right in benchmark.positives]) == (name, [[3], [1], [0]])


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_in_an_index_file_builds_nothing_but_arrays(tmp_path, capsys):
    write_npy(tmp_path, ragged([[Evil()], [1], [2]]))
    with pytest.raises(SourceError, match=r"SPED_gt\.npy: no npy file of numbers or paths \(it names builtins\.print"):
        load_dataset("npy", tmp_path)
    assert capsys.readouterr().out == ""


def broken_npy(folder: Path, kind: str) -> None:
    write_npy(folder, np.array([9, 0, 0]) if kind == "range" else np.array([0, 1]) if kind == "count" else np.zeros(3))
    if kind == "picture":
        np.save(folder / "SPED_gt.npy", np.array([0, 1, 2]))
        (folder / "query/1.jpg").unlink()
    if kind == "cut":
        (folder / "SPED_gt.npy").write_bytes((folder / "SPED_gt.npy").read_bytes()[:-9])
    if kind == "text":
        (folder / "SPED_gt.npy").write_bytes(pickle.dumps("no npy"))
    if kind == "none":
        (folder / "SPED_gt.npy").unlink()
    if kind == "numbers":
        np.save(folder / "SPED_dbImages.npy", np.arange(4))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("range", r"SPED_gt\.npy: holds other things than indices from 0 to 3; get both"),
        ("fractions", r"SPED_gt\.npy: holds other things than indices"),
        ("count", r"SPED_gt\.npy: has 2 entries for 3 queries; get both"),
        ("picture", r"query/1\.jpg: is missing, with 0 more of 7 pictures .* unpack the pictures into"),
        ("cut", r"SPED_gt\.npy: no npy file of numbers or paths .*get it again"),
        ("text", r"SPED_gt\.npy: no npy file of numbers or paths .*get it again"),
        ("none", r"no SPED_gt\.npy; one file with the right answers is needed"),
        ("numbers", r"SPED_dbImages\.npy: does not hold paths of pictures; get it again"),
    ],
)
def test_bad_index_files_say_what_to_do(tmp_path, kind, message):
    broken_npy(tmp_path, kind)
    assert_one_line(message, lambda: load_dataset("npy", tmp_path))


def test_bad_folders_say_what_to_do(tmp_path):
    touch(tmp_path / "plain", ["a.jpg", "b.jpg"])
    touch(tmp_path / "utm", [utm_name(0, 0)])
    touch(tmp_path / "far", [utm_name(9000, 0)])
    touch(tmp_path / "twice", ["left_7.jpg", "right_7.jpg"])
    touch(tmp_path / "images/test/database", ["1.jpg", "2.jpg", "3.jpg"])
    touch(tmp_path / "images/test/queries", ["1.jpg", "2.jpg"])
    for message, call in (
        (r"plain/a\.jpg: no position in its name; name .* or give --tolerance", ("plain", "utm", None)),
        (r"utm/.*: its name holds a UTM position and no frame number; leave out --tolerance", ("utm", "utm", 1)),
        (r"plain/a\.jpg: no frame number in its name; name pictures as", ("plain", "plain", 1)),
        (r"right_7\.jpg: has frame number 7, as left_7\.jpg; a traverse has one", ("twice", "twice", 1)),
        (r"utm <- far: none of its 1 queries has a right answer .*; check", ("utm", "far", None)),
        (r"nothing is not a folder: name a folder of pictures", ("nothing", "utm", None)),
    ):
        assert_one_line(message, lambda c=call: load_folders(tmp_path / c[0], tmp_path / c[1], c[2]))
    for message, name, root in (
        (r"kitti: no known data set; give one of msls-val, pitts30k", "kitti", "."),
        (r"nothing: no such folder; give the folder of tokyo247", "tokyo247", "nothing"),
        (r"plain: holds none of images/test/database and .*; give the folder above them", "tokyo247", "plain"),
        (r"plain: holds no \*_dbImages\.npy; copy the index files", "npy", "plain"),
        (r"train_val: is missing; give the folder into which the MSLS archives", "msls-val", "plain"),
        (r"queries: 2 pictures and a database of 3; nordland-2760 needs", "nordland-2760", "."),
    ):
        assert_one_line(message, lambda n=name, r=root: load_dataset(n, tmp_path / r))
    assert set(DATASETS) >= {"msls-val", "pitts30k", "pitts250k", "tokyo247", "nordland-2760", "nordland-27592"}


def test_bad_msls_tables_say_what_to_do(msls):
    side = msls / "train_val/cph/database"
    good = (side / "postprocessed.csv").read_text()
    lines = good.splitlines()
    for text, message in (
        (good.replace("easting", "east"), r"postprocessed\.csv: has no column 'easting' in every row; unpack"),
        (good.replace("25.0", "here"), r"postprocessed\.csv: 'here' is no coordinate; unpack the metadata again"),
        ("\n".join(lines[:-1]), r"database: its tables have different numbers of rows \(.*postprocessed\.csv 3"),
    ):
        (side / "postprocessed.csv").write_text(text)
        assert_one_line(message, lambda: load_dataset("msls-val", msls))
    (side / "postprocessed.csv").write_text(good)
    (side / "images/cph-far.jpg").unlink()
    assert_one_line(
        r"cph-far\.jpg: is missing, with 0 more of 3 pictures; unpack", lambda: load_dataset("msls-val", msls)
    )
    (side / "raw.csv").unlink()
    assert_one_line(r"raw\.csv: is missing; unpack the MSLS metadata archive", lambda: load_dataset("msls-val", msls))


def assert_one_line(message: str, call) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
