"""Test answers that are restricted to a part of the map, against maps that hold only this part."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr.cli.run import main
from pairvpr.errors import MapError
from pairvpr.runtime import Gps, PlaceRecognizer, Pose, Prior, build_map
from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.map import Record
from pairvpr.runtime.prior import PriorIndex
from tests.scenes import draw_scene

COUNT = 8


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


@pytest.mark.parametrize(
    ("prior", "allowed"),
    [
        (Prior(Pose(20, 0, 0), radius=10.5), [1, 2, 3]),
        (Prior(names="floor1/*"), [4, 5, 6, 7]),
        (Prior(Pose(30, 0, 0), radius=20.5, names="floor1/*"), [4, 5]),
    ],
)
def test_answers_are_those_of_a_map_of_the_allowed_pictures(
    prior: Prior, allowed: list[int], pictures: Path, db: Path, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    for place in allowed:
        name = f"floor{place // 4}/p{place}.png"
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_bytes((pictures / name).read_bytes())
    build_map(part, tmp_path / "map")
    query = Image.fromarray(draw_scene(4, 1, (96, 128)))
    with PlaceRecognizer.open(db, exact=True) as whole, PlaceRecognizer.open(tmp_path / "map", exact=True) as small:
        answer, expected = whole.recognize(query, prior), small.recognize(query)
    assert [match.name for match in answer.matches] == [match.name for match in expected.matches]
    for got, wanted in zip(answer.matches, expected.matches, strict=True):
        assert (got.score, got.similarity) == pytest.approx((wanted.score, wanted.similarity), abs=1e-4)
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


@pytest.mark.parametrize("arguments", [{}, {"near": Pose(0, 0, 0)}, {"near": Pose(0, 0, 0), "radius": 0.0}])
def test_priors_that_restrict_nothing_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"needs near|above 0"):
        Prior(**arguments)


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
    assert (result.exit_code, result.stderr) == (2, "Error: --poses needs --near (see main --help)\n")
