"""Tracking searches around the robot, finds a kidnapped one, and answers as a map of the searched pictures would."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr.cli.run import main
from pairvpr.runtime import Filtered, Frame, PlaceRecognizer, Pose, Prior, Recognition, build_map
from pairvpr.runtime.answer import Match
from pairvpr.runtime.map import Record
from pairvpr.runtime.prior import PriorIndex
from pairvpr.runtime.sequence.filter import SequenceFilter
from pairvpr.runtime.sequence.topology import Topology
from pairvpr.runtime.sequence.tracking import MARGIN, SURE, WHOLE, Follower, choose_rows
from tests.scenes import draw_scene

COUNT = 200
RIGHT, WRONG = 4.0, -8.0


def drive(count: int = COUNT) -> list[Record]:
    return [Record(i + 1, f"p{i}", "drive", None, None, None, 1, i, 0, 0) for i in range(count)]


@dataclass
class _Map:
    records: list[Record]


@dataclass
class _Robot:
    """Answers as a recognizer does whose robot is at the pictures of `path`, one after the other. None: off the map.

    similar: answer by similarities, 0.9 and 0.1, in place of scores.
    """

    path: list[int | None]
    similar: bool = False
    map: _Map = field(default_factory=lambda: _Map(drive()))

    def find_allowed(self, prior: Prior) -> np.ndarray:
        return PriorIndex(self.map.records).rows(prior)

    def recognize_frame(self, frame: Frame, prior: Prior | None = None) -> Recognition:
        rows = range(len(self.map.records)) if prior is None else self.find_allowed(prior)
        true = self.path[int(frame.name)]
        spread = np.random.default_rng(int(frame.name)).uniform(0.1, 0.3, COUNT)
        matches = [
            Match(f"p{row}", None, 0.9 if row == true else float(spread[row]), "descriptor")
            if self.similar
            else Match(f"p{row}", RIGHT if row == true else WRONG + 10 * float(spread[row]), 0.5, "full")
            for row in rows
        ]
        best_first = sorted(matches, key=lambda match: (match.score or 0.0, match.similarity), reverse=True)
        return Recognition(frame.name, None, tuple(best_first), complete=True)

    def run(self, prior: Prior | None = None) -> list[Filtered]:
        follower = Follower(self, track=True)  # type: ignore[arg-type]
        found = [follower.recognize_frame(Frame(f"{i}", None, None, None, 0.0), prior) for i in range(len(self.path))]
        return [answer.sequence for answer in found if answer.sequence is not None]


@pytest.mark.parametrize("similar", [False, True])
def test_a_tracked_robot_is_searched_around_its_place(similar: bool) -> None:
    places = _Robot(list(range(20, 70)), similar).run()
    assert [place.name for place in places[2:]] == [f"p{row}" for row in range(22, 70)]
    searched = [place.searched or 0 for place in places]
    whole = [number for number, count in enumerate(searched) if count == COUNT]
    assert whole == list(range(whole[0], 50, WHOLE)) or whole[:2] == [0, 1]
    assert max(np.diff(whole)) <= WHOLE
    assert np.median(searched) <= 2 * MARGIN + 6


@pytest.mark.parametrize("similar", [False, True])
def test_a_kidnapped_robot_is_found(similar: bool) -> None:
    places = _Robot([*range(20, 40), *range(150, 170)], similar).run()
    after = [place.name == f"p{row}" for place, row in zip(places[20:], range(150, 170), strict=True)]
    assert all(after[WHOLE:])
    assert after.index(True) <= WHOLE
    assert min(place.searched or 0 for place in places[-3:]) < COUNT / 4


def test_a_robot_off_the_map_is_sought_everywhere_until_it_is_back() -> None:
    places = _Robot([*range(20, 40), *[None] * 20, *range(100, 120)]).run()
    assert all(place.searched == COUNT for place in places[26:41])
    assert places[39].off_map > SURE
    assert places[-1].name == "p119"
    assert min(place.searched or 0 for place in places[-3:]) < COUNT / 4


def test_tracking_keeps_to_the_prior() -> None:
    allowed = frozenset(f"p{row}" for row in range(30, 150))
    places = _Robot(list(range(20, 70))).run(Prior(pictures=allowed))
    assert max(place.searched or 0 for place in places) == len(allowed)
    assert places[-1].name == "p69"
    assert all(place.name in allowed for place in places[20:])


def test_the_robot_is_in_the_named_part_of_the_map_or_off_the_map() -> None:
    """The robot is at pictures that the pattern leaves out, so it is off this map; then it is at one of the others."""
    robot = _Robot([*range(20, 40), *range(150, 160)])
    follower = Follower(robot)  # type: ignore[arg-type]
    prior = Prior(names="p1??")
    found = [follower.recognize_frame(Frame(f"{i}", None, None, None, 0.0), prior).sequence for i in range(30)]
    assert all(place is not None and place.name.startswith("p1") and len(place.name) == 4 for place in found)
    assert found[0] is not None
    assert 0.4 < found[0].off_map < 0.95  # from one half, for any share of the map that is named
    assert all(place is not None and place.off_map > SURE for place in found[5:20])
    assert found[-1] is not None
    assert (found[-1].name, found[-1].off_map < 0.1) == ("p159", True)


def test_a_prior_near_a_pose_restricts_the_search_alone() -> None:
    robot = _Robot(list(range(20, 30)))
    robot.map = _Map([replace(record, pose=Pose(float(record.row), 0, 0)) for record in drive()])
    follower = Follower(robot)  # type: ignore[arg-type]
    for i in range(10):
        prior = Prior(Pose(20.0 + i, 0, 0), 15.0, names="p*")
        answer = follower.recognize_frame(Frame(f"{i}", None, None, None, 0.0), prior)
    assert answer.sequence is not None
    assert (answer.sequence.name, answer.sequence.off_map < 0.1) == ("p29", True)
    nothing = follower.recognize_frame(Frame("9", None, None, None, 0.0), Prior(names="q*"))
    assert (nothing.matches, nothing.sequence) == ((), None)


@pytest.mark.parametrize("count", [12, 40])
def test_tracking_a_small_map_does_not_search_it_whole_always(count: int) -> None:
    robot = _Robot(list(range(count)), map=_Map(drive(count)))
    searched = [place.searched or 0 for place in robot.run()]
    assert min(searched[3:]) < count


def test_rows_hold_the_expected_place_and_its_neighbours() -> None:
    topology = Topology.from_order([range(COUNT)], COUNT)
    expected = np.full(COUNT, 0.001 / COUNT)
    expected[50] = 0.95
    rows = choose_rows(expected, topology)
    assert rows is not None
    assert rows.tolist() == list(range(50 - int(MARGIN), 51 + int(MARGIN)))
    expected[50], expected[150] = 0.5, 0.45  # it may be at either
    both = choose_rows(expected, topology)
    assert both is not None
    assert len(both) == 2 * len(rows)
    anywhere = choose_rows(np.full(COUNT, 1 / COUNT), topology)
    assert anywhere is None or len(anywhere) >= SURE * COUNT
    assert choose_rows(expected * (SURE - 0.01), topology) is None  # off the map, perhaps


def test_pictures_that_were_not_searched_keep_their_likelihood() -> None:
    before = SequenceFilter(drive())
    scores = dict.fromkeys(range(0, COUNT, 5), WRONG) | {20: WRONG - 2, 50: RIGHT, 150: RIGHT - 1}
    before.update(Recognition("q", None, tuple(Match(f"p{row}", score, 0.5, "full") for row, score in scores.items())))
    searched = np.arange(40, 61)
    wrong = Recognition("q", None, tuple(Match(f"p{row}", WRONG, 0.5, "full") for row in searched), complete=True)
    expected = before.expect()
    before.update(wrong, searched=searched)
    inside = np.isin(np.arange(COUNT), searched)
    ratio = before._belief * before._on / expected
    assert ratio[inside].max() < ratio[~inside].min()
    assert np.allclose(ratio[~inside], (1 - before._on) / (1 - expected.sum()))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map of 30 pictures one metre apart, and a drive along twelve of them."""
    home = tmp_path_factory.mktemp("home")
    lines = ["name,x,y,z,qx,qy,qz,qw"]
    for folder, visit, rows in (("map_pictures", 0, range(30)), ("drive", 1, range(10, 22))):
        (home / folder).mkdir()
        for row in rows:
            Image.fromarray(draw_scene(row, visit, (96, 128))).save(home / folder / f"p{row:02}.png")
            lines.append(f"p{row:02}.png,{row},0,0,0,0,0,1")
    (home / "poses.csv").write_text("\n".join(lines[:31]))
    build_map(home / "map_pictures", home / "map", poses=home / "poses.csv")
    return home


def test_tracked_answers_are_those_near_the_same_place(home: Path) -> None:
    asked: list[tuple[Frame, Prior | None, Recognition]] = []
    with PlaceRecognizer.open(home / "map", exact=True, top_k=5) as recognizer:
        search = recognizer.recognize_frame

        def recognize_frame(frame: Frame, prior: Prior | None = None) -> Recognition:
            asked.append((frame, prior, search(frame, prior)))
            return asked[-1][2]

        recognizer.recognize_frame = recognize_frame  # type: ignore[method-assign]
        follower, tracked = Follower(recognizer, track=True), 0
        for path in sorted((home / "drive").iterdir()):
            follower.recognize_frame(Frame(path.name, None, Image.open(path), None, 0.0))
        for frame, prior, answer in asked:
            if prior is None:
                continue
            rows = recognizer.find_allowed(prior)
            middle, radius = (rows[0] + rows[-1]) / 2, (rows[-1] - rows[0]) / 2
            near = Prior(Pose(float(middle), 0, 0), float(radius) + 0.1)
            assert recognizer.find_allowed(near).tolist() == rows.tolist()
            assert search(frame, near).matches == answer.matches
            tracked += 1
    assert tracked >= 6


def test_the_command_tracks(home: Path) -> None:
    command = ["--db", str(home / "map"), "--query", str(home / "drive"), "--format", "jsonl", "--top-k", "30"]
    result = CliRunner().invoke(main, [*command, "--track"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["sequence"]["name"] for line in lines[-3:]] == ["p19.png", "p20.png", "p21.png"]
    assert all(line["compared"] == line["sequence"]["searched"] for line in lines)
    assert lines[0]["compared"] == 30
    assert min(line["compared"] for line in lines) < 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--near", "5"], "--track and --near exclude each other"),
        (["--no-rerank"], "--track needs pair scores: leave out --no-rerank"),
    ],
)
def test_options_that_cannot_be_tracked_are_refused(home: Path, options: list[str], message: str) -> None:
    command = ["--db", str(home / "map"), "--query", str(home / "drive"), "--track", *options]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {message}")
    assert len(result.stderr.splitlines()) == 1
