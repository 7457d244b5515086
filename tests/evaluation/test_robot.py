"""Two drives with poses: what is right, what is refused, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr.cli.main import main
from pairvpr.errors import SourceError
from pairvpr.evaluation.recall import precision_recall
from pairvpr.evaluation.robot import load_robot
from tests.scenes import draw_scene

PLACES, APART = 6, 10


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `one` and `two` of places APART metres from each other, and their poses; `two` is 3 m to the side."""
    home = tmp_path_factory.mktemp("drives")
    for drive, (name, side) in enumerate((("one", 0), ("two", 3))):
        (home / name).mkdir()
        lines = ["name,x,y,z,qx,qy,qz,qw"]
        for place in range(PLACES):
            Image.fromarray(draw_scene(place, drive)).resize((160, 120)).save(home / name / f"{place}.png")
            lines.append(f"{place}.png,{place * APART},{side},0,0,0,0,1")
        (home / f"{name}.csv").write_text("\n".join(lines))
    return home


def test_right_is_a_picture_within_the_radius(drives: Path, tmp_path: Path) -> None:
    files = [drives / "one.csv", drives / "two.csv"]
    for radius, right in ((2, 0), (3, 1), (10.5, 3)):
        if not right:
            with pytest.raises(SourceError, match="none of its 6 queries has a right answer"):
                load_robot(drives / "one", drives / "two", radius, tmp_path, files)
            continue
        found = load_robot(drives / "one", drives / "two", radius, tmp_path, files)
        assert [len(each) for each in found.positives[1:-1]] == [right] * (PLACES - 2)
        assert found.folders == (str(drives / "one"), str(drives / "two"))
    assert found.positions is not None
    assert found.positions.errors(np.arange(PLACES)).tolist() == [3.0] * PLACES
    same = load_robot(drives / "one", drives / "two", 1, tmp_path, files[:1])  # one file for both drives
    assert [each.tolist() for each in same.positives] == [[place] for place in range(PLACES)]
    assert not list(tmp_path.iterdir())


def test_gps_positions_are_metres_on_the_ground(drives: Path, tmp_path: Path) -> None:
    lines = ["name,latitude,longitude", *(f"{place}.png,50.0,{8 + place / 1000}" for place in range(PLACES))]
    (tmp_path / "gps.csv").write_text("\n".join(lines))
    found = load_robot(drives / "one", drives / "two", 80, tmp_path, [tmp_path / "gps.csv"])
    assert found.positions is not None
    assert found.positions.distances(0)[1] == pytest.approx(71.5, abs=0.1)
    with pytest.raises(SourceError, match="places in different frames, map and wgs84; give poses in one frame"):
        load_robot(drives / "one", drives / "two", 5, tmp_path, [drives / "one.csv", tmp_path / "gps.csv"])


def test_drives_without_places_are_refused(drives: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"one: none of its pictures has a place; give --poses"):
        load_robot(drives / "one", drives / "two", 5, tmp_path)
    (tmp_path / "other.csv").write_text("name,x,y,z,qx,qy,qz,qw\nelse.png,0,0,0,0,0,0,1\n")
    with pytest.raises(SourceError, match=r"the file has else\.png, a picture is 0\.png"):
        load_robot(drives / "one", drives / "two", 5, tmp_path, [tmp_path / "other.csv"])


def test_frames_of_a_video_are_kept_as_pictures(drives: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "drive.mp4"), "w") as video:
        stream = video.add_stream("mpeg4", rate=1)
        stream.width, stream.height = 160, 120
        for place in range(PLACES):
            picture = Image.fromarray(draw_scene(place, 0)).resize((160, 120))
            video.mux(stream.encode(av.VideoFrame.from_image(picture)))
        video.mux(stream.encode())
    times = [f"{place} {place * APART} 0 0 0 0 0 1" for place in range(PLACES)]
    (tmp_path / "times.txt").write_text("\n".join(times))
    found = load_robot(
        drives / "one", tmp_path / "drive.mp4", 5, tmp_path / "work", [drives / "one.csv", tmp_path / "times.txt"]
    )
    assert [file.name for _, file in found.queries] == [f"{place:06d}.png" for place in range(PLACES)]
    assert [each.tolist() for each in found.positives] == [[place] for place in range(PLACES)]
    with Image.open(found.queries[0][1]) as picture:
        assert picture.size == (160, 120)


def test_the_share_of_wrong_answers_is_limited() -> None:
    confidence = np.array([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 1])
    right = np.array([1, 1, 1, 0, 1, 1, 0, 1, 0, 1], bool)
    curve = precision_recall(confidence, right, 10)
    found = [curve.with_wrong(limit, 10) for limit in (1.0, 0.2, 0.1, 0.0)]
    assert [(each.right, each.wrong, each.threshold) for each in found] == [(7, 3, 1), (6, 2, 2), (5, 1, 4), (3, 0, 7)]
    none = precision_recall(np.array([1.0, 0.5]), np.array([False, True]), 2).with_wrong(0.0, 2)
    assert (none.right, none.wrong, none.threshold) == (0, 0, None)


def test_the_command_says_how_many_places_are_recognised(drives: Path, tmp_path: Path) -> None:
    poses = ["--poses", str(drives / "one.csv"), "--poses", str(drives / "two.csv")]
    sides = [str(drives / "one"), str(drives / "two")]
    command = ["eval", "--robot", *sides, *poses, "--radius", "5", "--name", "Drive <2>"]
    done = CliRunner().invoke(main, [*command, "--sequence", "--report", str(tmp_path / "report")])
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Drive <2>: 6 queries, 6 database pictures")
    head = next(i for i, line in enumerate(lines) if line.startswith("Of all queries, %"))
    rows = [line.rsplit(maxsplit=3) for line in lines[head + 1 : head + 5]]
    assert [row[0] for row in rows] == ["all answers accepted", "wrong at most 5", "wrong at most 1", "wrong at most 0"]
    assert all(sum(map(float, row[1:])) == pytest.approx(100, abs=0.2) for row in rows)
    assert "m off (median), 95 % within" in lines[head + 5]
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert found["benchmark"]["name"] == "Drive <2>"
    assert found["recognised"][0]["right"] / 6 == found["recall"]["re_ranked"]["1"]
    assert "Drive &lt;2&gt;" in (tmp_path / "report" / "index.html").read_text()


def test_options_of_drives() -> None:
    for given, message in (
        (("one", "two", "--radius", "5"), "--radius needs --robot"),
        (("one", "two", "--poses", "p"), "--poses needs --robot"),
        (("one", "two", "--robot", "--tolerance", "1"), "--tolerance does not go with --robot"),
        (("one", "--robot"), "--robot needs two drives"),
        (("one", "two", "--robot", "--poses", "a", "--poses", "b", "--poses", "c"), "once for each of the two drives"),
    ):
        done = CliRunner().invoke(main, ["eval", *given])
        assert done.exit_code == 2
        assert message in done.stderr
