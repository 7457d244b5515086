"""Test answers that are restricted to a part of the map, against maps that hold only this part."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy.spatial.transform import Rotation

from pairvpr.cli.prior_options import PriorMaker, PriorOptions
from pairvpr.cli.run import main
from pairvpr.errors import MapError
from pairvpr.runtime import Frame, Gps, PlaceRecognizer, Pose, Prior, build_map
from pairvpr.runtime.geometry.clocks import hours_of_day
from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.geometry.rotations import angles_between
from pairvpr.runtime.map import Map, MapWriter, Record
from pairvpr.runtime.prior import PriorIndex
from tests.scenes import draw_scene

COUNT = 8
PICTURE = Image.fromarray(draw_scene(0, 0))
MIDNIGHT = 1_700_006_400  # 2023-11-15, UTC


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures ten metres apart, four in each of two folders; the last one has no pose."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = ["name,x,y,z,qx,qy,qz,qw"]
    for place in range(COUNT):
        name = f"floor{place // 4}/p{place}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(draw_scene(place, 0, (96, 128))).save(folder / name)
        if place < COUNT - 1:
            lines.append(f"{name},{10 * place},0,0,0,0,0,1")
    (folder / "poses.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def db(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("maps") / "map"
    build_map(pictures, path, poses=pictures / "poses.csv")
    return path


def turned(degrees: float) -> tuple[float, float, float, float]:
    """Return the orientation of a robot that has turned left from the x axis of the map."""
    return 0.0, 0.0, math.sin(math.radians(degrees) / 2), math.cos(math.radians(degrees) / 2)


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a map of two drives, each a source, with a picture every three hours and every 45 degrees.

    The names are Unix times, from midnight UTC on. The last picture of each drive has no pose and no time.
    """
    home = tmp_path_factory.mktemp("drives")
    for drive in range(2):
        folder, lines = home / f"drive{drive}", []
        (folder / f"cam{drive}").mkdir(parents=True)
        for place in range(8):
            stamp = MIDNIGHT + 86400 * drive + 3 * 3600 * place
            name = f"{stamp}.0" if place < 7 else f"none{drive}"
            picture = Image.fromarray(draw_scene(place + 8 * drive, 0, (96, 128)))
            picture.save(folder / f"cam{drive}" / f"{name}.png")
            if place < 7:
                lines.append(f"{stamp}.0 {10 * place} {drive} 0 {' '.join(map(str, turned(45 * place)))}")
        (folder / "poses.txt").write_text("\n".join(lines))
        build_map(folder, home / "map", poses=folder / "poses.txt")
    return home / "map"


@pytest.mark.parametrize(
    ("prior", "allowed"),
    [
        (Prior(Pose(20, 0, 0), radius=10.5), [1, 2, 3, 9, 10, 11]),
        (Prior(Pose(99, 99, 0, turned(-10)), turn=85), [0, 1, 6, 8, 9, 14]),
        (Prior(Pose(0, 0, 0, turned(45)), radius=10.5, turn=46), [0, 1, 8, 9]),
        (Prior(hour=23.5, hours=4), [0, 1, 8, 9]),
        (Prior(hour=9, hours=3), [2, 3, 4, 10, 11, 12]),
        (Prior(names="cam1/*"), range(8, 16)),
        (Prior(sources="*/drive0"), range(8)),
        (Prior(pictures=frozenset({"cam0/none0.png", "cam1/none1.png", "elsewhere"})), [7, 15]),
        (Prior(Pose(30, 0, 0, turned(100)), 20.5, "cam0/*", turn=90, hour=5, hours=5, sources="*/drive?"), [1, 2, 3]),
    ],
    ids=str,
)
def test_answers_are_those_of_a_map_of_the_allowed_pictures(
    prior: Prior, allowed: Sequence[int], drives: Path, tmp_path: Path
) -> None:
    part = tmp_path / "map"
    shutil.copytree(drives, part)
    with Map.open(drives) as map_:
        names = [record.name for record in map_.records]
    with MapWriter.edit(part) as writer:
        writer.remove([name for row, name in enumerate(names) if row not in allowed])
        writer.compact()
    query = Image.fromarray(draw_scene(4, 1, (96, 128)))
    with (
        PlaceRecognizer.open(drives, exact=True, batch_size=1) as whole,
        PlaceRecognizer.open(part, exact=True, batch_size=1) as small,
    ):
        assert whole.find_allowed(prior).tolist() == list(allowed)
        answer, expected = whole.recognize(query, prior), small.recognize(query)
    assert len(expected.matches) == len(allowed)
    assert answer.matches == expected.matches  # names, order and poses, and scores and similarities in every bit
    assert (answer.compared, answer.complete) == (len(allowed), True)


def test_a_prior_without_pictures_is_an_error_of_the_answer(db: Path) -> None:
    with PlaceRecognizer.open(db) as recognizer:
        answer = recognizer.recognize(Image.fromarray(draw_scene(0, 0)), Prior(Pose(900, 0, 0), radius=5))
    assert (answer.matches, answer.reason, answer.accepted) == ((), "no candidates", None)
    assert answer.error == "no picture of the map is within 5 m of (900.00, 0.00, 0.00) m in map"


@pytest.mark.parametrize(
    ("near", "kind"), [(Gps(1.0, 2.0), "GPS positions"), (Pose(0, 0, 0, frame="odom"), "poses in odom")]
)
def test_positions_that_the_map_cannot_have_are_refused(db: Path, near: Pose | Gps, kind: str) -> None:
    with PlaceRecognizer.open(db) as recognizer, pytest.raises(MapError, match=f"no picture of the map has {kind}"):
        recognizer.recognize(Image.fromarray(draw_scene(0, 0)), Prior(near, radius=5))


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({}, "needs near"),
        ({"near": Pose(0, 0, 0)}, "above 0"),
        ({"near": Pose(0, 0, 0), "radius": 0.0}, "above 0"),
        ({"near": Pose(0, 0, 0), "turn": 20}, "needs a pose with an orientation"),
        ({"names": "a", "turn": 20}, "needs a pose with an orientation"),
        ({"near": Pose(0, 0, 0, turned(0)), "turn": 0}, "above 0, at most 180"),
        ({"near": Pose(0, 0, 0, turned(0)), "turn": 20, "radius": -1.0}, "above 0"),
        ({"hour": 25, "hours": 1}, "from 0 to 24"),
        ({"hour": 3}, "between 0 and 12"),
        ({"hour": math.nan, "hours": 2}, "from 0 to 24"),
    ],
)
def test_priors_that_restrict_nothing_are_refused(arguments: dict, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Prior(**arguments)


def test_headings_differ_by_the_rotation_between_them() -> None:
    """Whichever way the camera is mounted on the robot, and for quaternions of either sign."""
    mount = Rotation.from_quat([0.5, -0.5, 0.5, -0.5])
    rng = np.random.default_rng(1)
    yaws = rng.uniform(-180, 180, 30)
    robots = Rotation.from_euler("z", yaws[:, None], degrees=True)
    for orientations in (robots.as_quat(), -robots.as_quat(), (robots * mount).as_quat()):
        apart = np.degrees(angles_between(orientations, orientations[0]))
        np.testing.assert_allclose(apart, np.abs((yaws - yaws[0] + 180) % 360 - 180), atol=1e-5)
    assert np.isnan(angles_between(np.full((1, 4), math.nan), (0.0, 0.0, 0.0, 1.0))).all()


def test_times_of_day_need_clocks_that_count_from_1970() -> None:
    hours = hours_of_day([MIDNIGHT, MIDNIGHT + 86399, MIDNIGHT + 5400, None, 12.0, 1e12, math.inf])
    np.testing.assert_allclose(hours, [0, 24, 1.5, *[math.nan] * 4], atol=1e-3)


@pytest.mark.parametrize(
    ("prior", "lack"),
    [
        (Prior(Pose(0, 0, 0, turned(0), "odom"), turn=20), "poses in odom"),
        (Prior(hour=12, hours=2), "a time of day"),
    ],
)
def test_a_map_without_what_a_prior_gives_is_refused(prior: Prior, lack: str, db: Path) -> None:
    with PlaceRecognizer.open(db) as recognizer, pytest.raises(MapError, match=f"no picture of the map has {lack}"):
        recognizer.find_allowed(prior)


def test_a_map_without_orientations_has_no_headings() -> None:
    records = [Record(1, "a", "", None, Pose(0, 0, 0), None, 1, 0, 0, 0)]
    lack = PriorIndex(records).find_lack(Prior(Pose(0, 0, 0, turned(0)), turn=20))
    assert lack is not None
    assert "an orientation in map" in lack


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--only", "flor3/*"], "no picture of the map is named flor3/*; correct --only flor3/*, or leave it out"),
        (
            ["--only", "source:/nowhere"],
            "is of a source /nowhere; correct --only source:/nowhere",
        ),
        (["--only", "floor0/*", "--only", "source:x"], "of a source x; correct --only source:x"),
        (["--only", "hours:1-2"], "no picture of the map has a time of day; build the map from pictures with time"),
        (["--only", "hours:1"], "write hours:FROM-TO with two hours from 0 to 24"),
        (["--only", "hours:2-2"], "write hours:FROM-TO with two hours from 0 to 24"),
        (["--only", "hours:nan-2"], "write hours:FROM-TO with two hours from 0 to 24"),
        (["--only", "a", "--only", "b"], "--only b: another --only is of the same kind; give one of each"),
        (["--only", "hours:1-2", "--hours", "2"], "--hours and --only hours: exclude each other"),
    ],
)
def test_an_only_without_pictures_is_refused_at_the_start(
    options: list[str], fault: str, db: Path, pictures: Path
) -> None:
    result = CliRunner().invoke(main, ["--db", str(db), "--query", str(pictures), *options])
    assert (result.exit_code, result.stdout) == (2, "")
    assert fault in result.stderr
    assert [line.startswith("Error: ") for line in result.stderr.splitlines()].count(True) == 1


def test_conditions_that_hold_nowhere_together_are_refused(drives: Path, pictures: Path) -> None:
    command = ["--db", str(drives), "--query", str(pictures), "--only", "cam0/*", "--only", "source:*/drive1"]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no picture of the map is named cam0/*, of a source */drive1; correct --only" in result.stderr


def test_a_live_source_waits_for_pictures_of_an_only(db: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The map may grow while a robot drives."""
    priors = PriorMaker(PriorOptions(only=("floor7/*",)))
    with PlaceRecognizer.open(db) as recognizer:
        priors.check(recognizer, live=True)
        answer = recognizer.recognize(Image.fromarray(draw_scene(0, 0)), priors.make(Frame("a", None, None, None, 0.0)))
    assert (
        "no picture of the map is named floor7/*, so --only floor7/* has no answers until one is added" in caplog.text
    )
    assert answer.error == "no picture of the map is named floor7/*"


def test_the_command_takes_headings_and_times_of_the_queries(drives: Path, tmp_path: Path) -> None:
    queries = tmp_path / "queries"
    queries.mkdir()
    stamp = MIDNIGHT + 40 * 86400 + 7 * 3600  # at seven o'clock of a later day
    for name, place in ((f"{stamp}.0", 2), ("unknown", 3)):
        Image.fromarray(draw_scene(place, 1, (96, 128))).save(queries / f"{name}.png")
    (tmp_path / "poses.txt").write_text(f"{stamp}.0 20 0 0 {' '.join(map(str, turned(80)))}\n")
    command = [
        "--db",
        str(drives),
        "--query",
        str(queries),
        "--format",
        "jsonl",
        "--poses",
        str(tmp_path / "poses.txt"),
    ]

    def compared(*options: str) -> list[set[str]]:
        result = CliRunner().invoke(main, [*command, *options, "--matches", "99"], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        assert "1 of 2 pictures have no" in result.stderr
        return [{match["name"] for match in json.loads(line)["matches"]} for line in result.stdout.splitlines()]

    def places(*numbers: int) -> set[str]:
        return {f"cam{i // 8}/{MIDNIGHT + 86400 * (i // 8) + 10800 * (i % 8)}.0.png" for i in numbers}

    first, second = compared("--heading", "40")
    assert first == places(1, 2, 9, 10)
    assert len(second) == 16
    assert compared("--hours", "2.5")[0] == places(2, 3, 10, 11)
    assert compared("--hours", "2.5", "--only", "cam1/*")[0] == places(10, 11)
    assert compared("--near", "5", "--heading", "40", "--only", "source:*/drive0")[0] == places(2)
    first, second = compared("--heading", "40", "--only", "hours:20-4")
    assert first == places(1, 9)
    assert second == places(0, 1, 8, 9)


def test_distances_are_those_of_two_positions() -> None:
    rng = np.random.default_rng(0)
    places: list[Pose | Gps | None] = [None]
    for _ in range(40):
        x, y, z = map(float, rng.uniform(-60, 60, 3))
        places += [Pose(x, y, z), Pose(x, y, z, frame="odom"), Gps(x, 3 * y)]
    records = [
        Record(i, f"{i}", "", None, p if isinstance(p, Pose) else None, p if isinstance(p, Gps) else None, 1, i, 0, 0)
        for i, p in enumerate(places)
    ]
    index = PriorIndex(records)
    for near in (Pose(1, 2, 3), Pose(5, 5, 5, frame="odom"), Gps(10.0, 179.9), Gps(-33.0, -20.0)):
        for radius in (30.0, 80.0, 3e6, 1e7):
            expected = [i for i, p in enumerate(places) if p is not None and distance_between(near, p) <= radius]
            assert index.rows(Prior(near, radius)).tolist() == expected
            assert math.isfinite(radius)


def test_the_command_searches_near_each_query(db: Path, pictures: Path, tmp_path: Path) -> None:
    queries = tmp_path / "queries"
    queries.mkdir()
    Image.fromarray(draw_scene(5, 1, (96, 128))).save(queries / "no_position.png")
    command = ["--db", str(db), "--query", str(queries), "--format", "jsonl"]
    result = CliRunner().invoke(main, [*command, "--only", "floor0/*"], catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["compared"] == 4
    assert "floor1/" not in result.stdout
    result = CliRunner().invoke(main, [*command, "--near", "5"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "1 of 1 pictures have no pose or GPS position" in result.stderr
    assert json.loads(result.stdout)["compared"] == 8


def test_queries_with_a_position_are_compared_near_it(db: Path, tmp_path: Path) -> None:
    """UTM names are positions in the frame utm..., which the map of this test has."""
    zone = {"easting": 465_000.0, "northing": 5_247_000.0}
    folders = tmp_path / "map_pictures", tmp_path / "queries"
    for folder, step in zip(folders, (0, 3), strict=True):
        folder.mkdir()
        for place in range(4):
            name = f"@{zone['easting'] + 40 * place + step:.2f}@{zone['northing']:.2f}@32@T@@@@@@@@@@@.png"
            Image.fromarray(draw_scene(place, step, (96, 128))).save(folder / name)
    build_map(folders[0], tmp_path / "utm")
    command = ["--db", str(tmp_path / "utm"), "--query", str(folders[1]), "--format", "jsonl", "--near", "10"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line)["compared"] for line in result.stdout.splitlines()] == [1, 1, 1, 1]


def test_positions_of_queries_come_from_a_pose_file(db: Path, tmp_path: Path) -> None:
    queries = tmp_path / "queries"
    queries.mkdir()
    Image.fromarray(draw_scene(5, 1, (96, 128))).save(queries / "q.png")
    (tmp_path / "poses.csv").write_text("name,x,y,z,qx,qy,qz,qw\nq.png,50,1,0,0,0,0,1\n")
    command = ["--db", str(db), "--query", str(queries), "--format", "jsonl", "--poses", str(tmp_path / "poses.csv")]
    result = CliRunner().invoke(main, [*command, "--near", "5"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    (match,) = json.loads(result.stdout)["matches"]
    assert match["name"] == "floor1/p5.png"
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: --poses needs --near, --heading or --hours (see main --help)\n",
    )
