"""Decisions: what is calibrated, stored and shown, and what answers say; with seeded weights, so by no means recall."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pairvpr.calibration.acceptance import PrecisionTarget, calibrate_acceptance
from pairvpr.calibration.candidates import Workshop
from pairvpr.calibration.known_places import STRETCHES, cut_stretches, split_places
from pairvpr.cli.main import main
from pairvpr.cli.run import main as run_main
from pairvpr.errors import BundleError, MapError, SourceError
from pairvpr.runtime import Match, Model, PlaceRecognizer, Pose, Recognition, load_model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import FILE
from pairvpr.runtime.calibrated.acceptance import FRAMES, KEY, Acceptance, AnswerDefaults, Sample, ScoreSetup
from pairvpr.runtime.calibrated.judge import ACCEPTED, ADDED, INCOMPLETE, TOO_LOW, Judge
from pairvpr.runtime.geometry.utm_names import utm_pose
from pairvpr.runtime.map import Map
from pairvpr.runtime.mapping.builder import BuildOptions, add_pictures
from pairvpr.runtime.model import default_bundle
from pairvpr.runtime.outputs.writers import format_text
from pairvpr.runtime.sources import Frame
from pairvpr.viewing.calibration_results import acceptance_rows
from tests.runtime.outputs.ros_contract import acceptance as planned
from tests.scenes import draw_scene

SIZE, APART, COUNT = (64, 64), 100, 60
"""A map of six places APART metres from each other, and COUNT pictures to ask."""


def quiet(step: str, done: int, total: int | None) -> None:
    pass


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures `db`, a `map` of them with a model that compares three candidates, and `queries`."""
    home = tmp_path_factory.mktemp("home")
    bundle = Bundle.open(default_bundle())
    bundle.install(home / "bundle")
    (home / "bundle" / FILE).unlink()  # a link to the package's own
    (home / "bundle" / FILE).write_text(dataclasses.replace(bundle.info, calibration={}, top_k=3).to_json())
    (home / "db").mkdir()
    for number in range(6):
        Image.fromarray(draw_scene(number, 0, SIZE)).save(home / "db" / f"@{APART * number}@0@.png")
    add_pictures(home / "db", home / "map", load_model(home / "bundle"), create=True)
    grey = np.random.default_rng(0).integers(0, 255, (COUNT, *SIZE, 3), np.uint8)
    for number in range(COUNT):
        folder = home / "queries" / f"drive{number // 20}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey[number]).save(folder / f"@{30 * (number % 20)}@1@.png")
    return home


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept answers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pairvpr"


@pytest.fixture(scope="module")
def model(home: Path) -> Model:
    return load_model(home / "bundle")


def answers(
    monkeypatch: pytest.MonkeyPatch,
    wrong: set[str] = frozenset(),  # type: ignore[assignment]
    similarity: float = 0.5,
    place: bool = True,
    name: str = "m",
) -> list[str]:
    """Plant the answers: the place nearest along the street with a high score, 1 km off with a low one for `wrong`.

    Returns the names that are asked, as they come.
    """
    names: list[str] = []

    def recognize_frame(_: PlaceRecognizer, frame: Frame) -> Recognition:
        names.append(frame.name)
        pose = utm_pose(frame.name)
        assert pose is not None
        where = Pose(pose.x + 1000 * (frame.name in wrong), pose.y, 0, frame="utm") if place else None
        score = -5.0 if frame.name in wrong else 5.0
        return Recognition(frame.name, matches=(Match(name, score, similarity, "full", where),), complete=True)

    monkeypatch.setattr(PlaceRecognizer, "recognize_frame", recognize_frame)
    return names


def calibrated(home: Path, model: Model, images: str = "queries", **promise: float) -> Acceptance:
    with Map.open(home / "map") as map_:
        return calibrate_acceptance(
            map_, model, [home / images], PrecisionTarget(**{"precision": 0.9, **promise}), quiet
        )


# What is calibrated


def test_scores_of_wrong_answers_are_not_accepted(home: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {f"drive{d}/@{30 * n}@1@.png" for d in range(3) for n in range(0, 20, 4)}
    names = answers(monkeypatch, wrong)
    found = calibrated(home, model)
    assert len(names) == COUNT == found.fitted + found.checked
    assert found.threshold == 5
    _, checking = split_places([Pose(float(name.split("@")[1]), 1, 0) for name in names])
    tested = {names[i] for i in checking}
    assert found.right == len(tested - wrong)
    assert found.accepted_right == found.accepted == found.right
    assert found.outside == len({name for name in tested & wrong if name.split("@")[1] in ("240", "360")})  # 40 m off
    assert [each.name for each in found.traverses] == ["drive0", "drive1", "drive2"]
    assert sum(each.checked for each in found.traverses) == found.checked
    assert sum(each.accepted for each in found.traverses) == found.accepted
    assert found.own == 0
    scores = found.samples["value"]
    assert len(scores.quantiles) == 101
    assert (scores.quantiles[0], scores.quantiles[-1]) == (-5, 5)
    assert 1 <= scores.independent <= COUNT
    assert found.confidence(5) > 0.85
    assert found.confidence(-5) < 0.15
    assert found.expected == pytest.approx(found.right, abs=5)
    assert "OPTIMISTIC" not in str(acceptance_rows(found))


@pytest.fixture(scope="module")
def numbered(home: Path, model: Model) -> Path:
    """A folder with a `map` of two traverses of frames 0 to 5, and `queries`: three of frames 0 to 23."""
    for name, traverses, frames in (("db", ("left", "right"), 6), ("queries", ("a", "b", "c"), 24)):
        for traverse in traverses:
            (home / "numbered" / name / traverse).mkdir(parents=True)
            for number in range(frames):
                picture = home / "numbered" / name / traverse / f"Image{number:03}.png"
                Image.fromarray(draw_scene(number, len(name), SIZE)).save(picture)
    add_pictures(home / "numbered" / "db", home / "numbered" / "map", model, create=True)
    return home / "numbered"


def test_numbers_of_frames_are_places(numbered: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def recognize_frame(_: PlaceRecognizer, frame: Frame) -> Recognition:
        """Two frames off with a high score, three with a low one."""
        asked.append(frame.name)
        number, wrong = int(frame.name[-7:-4]), frame.name.endswith("8.png")
        match = Match(f"left/Image{number + 2 + wrong:03}.png", -5.0 if wrong else 5.0, 0.5, "full", None)
        return Recognition(frame.name, matches=(match,), complete=True)

    monkeypatch.setattr(PlaceRecognizer, "recognize_frame", recognize_frame)
    monkeypatch.setattr("pairvpr.calibration.acceptance.MIN_PICTURES", 36)
    with Map.open(numbered / "map") as map_:
        found = calibrate_acceptance(
            map_, model, [numbered / "queries"], PrecisionTarget(0.8, radius=2, unit=FRAMES), quiet
        )
    assert asked == [f"{traverse}/Image{number:03}.png" for traverse in "abc" for number in range(0, 24, 2)]
    assert (found.threshold, found.fitted + found.checked) == (5, 36)
    assert found.checked > found.right == found.accepted == found.accepted_right
    assert found.outside == found.checked - found.right  # of frame 8 and 18 the map's nearest is 5
    assert any("within 2 frames" in text for _, text in acceptance_rows(found))
    kept = {"setup": found.setup, "traverses": found.traverses, "samples": found.samples}
    assert Acceptance(**{**found.to_json(), **kept}) == found


def test_numbers_that_tell_no_place_are_refused(home: Path, numbered: Path, model: Model, tmp_path: Path) -> None:
    promise = PrecisionTarget(0.8, radius=2, unit=FRAMES)
    with Map.open(home / "map") as map_, pytest.raises(MapError, match=r"have places.*leave out --tolerance"):
        calibrate_acceptance(map_, model, [numbered / "queries"], promise, quiet)
    for names, message in (
        (("p1.png", "x.png"), r"x\.png: no frame number"),
        (("a1.png", "b1.png"), r"b1\.png: has frame number 1, as a1\.png"),
        (("@1@2@.png",), r"holds a UTM position.*leave out --tolerance"),
    ):
        folder = tmp_path / names[0]
        folder.mkdir()
        for name in names:
            Image.fromarray(draw_scene(0, 0, SIZE)).save(folder / name)
        with Map.open(numbered / "map") as map_, pytest.raises(SourceError, match=message):
            calibrate_acceptance(map_, model, [folder], promise, quiet)


def test_a_traverse_counts_once_for_each_place(home: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    names = answers(monkeypatch)
    with pytest.raises(SourceError, match=r"30 usable pictures.*40 m apart"):
        calibrated(home, model, radius=40)
    assert len(names) == 30
    assert {name.split("@")[1] for name in names} == {str(60 * n) for n in range(10)}


def test_it_says_what_it_was_checked_on(home: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """How each traverse came off: what is low for one of them is lost in the mean, and of others nothing is known."""
    wrong = {f"drive2/@{30 * n}@1@.png" for n in range(20)}
    answers(monkeypatch, wrong)
    found = calibrated(home, model, precision=0.5)
    assert [(each.name, each.right, each.accepted) for each in found.traverses[:2]] == [
        (each.name, each.checked, each.checked) for each in found.traverses[:2]
    ]
    worst = found.traverses[2]
    assert (worst.right, worst.accepted > 0) == (0, found.threshold == -5)
    rows = acceptance_rows(found)
    assert ("conditions", f"drive2: {worst.checked} queries, {worst.accepted} accepted, 0 of them right") in rows
    assert [label for label, _ in rows].count("conditions") == 4
    assert not any(label == "warning" for label, _ in rows)  # some pictures were outside the map
    answers(monkeypatch)
    monkeypatch.setattr("pairvpr.calibration.acceptance.MIN_PICTURES", 20)
    assert [each.name for each in calibrated(home, model, "queries/drive1", precision=0.5).traverses] == ["drive1"]


def test_too_few_pictures_are_refused_with_the_number_needed(
    home: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = answers(monkeypatch)
    with pytest.raises(SourceError, match=r"at most 60 usable pictures; a precision of 0.99 needs at least 345"):
        calibrated(home, model, precision=0.99)
    assert not names  # said before anything is worked out
    assert PrecisionTarget().min_pictures() == 345
    assert PrecisionTarget(0.5, 0.5).min_pictures() == 40


def test_what_no_score_shows_is_refused(home: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, {f"drive{d}/@{30 * n}@1@.png" for d in range(3) for n in range(20)})
    refusal = (
        r"no score shows a precision of 0.9: .*0 of \d+ answers were right.*of all, 0 of 60 first matches are right, "
        r"the wrong ones are 1,000 to 1,000 m off \(median 1,000\).*--radius"
    )
    with pytest.raises(SourceError, match=refusal):
        calibrated(home, model)
    answers(monkeypatch, {f"drive{d}/@{30 * n}@1@.png" for d in range(3) for n in range(20)}, place=False)
    with pytest.raises(SourceError, match=r"0 of 60 first matches are right, 60 have no known place"):
        calibrated(home, model)
    answers(monkeypatch, {"drive0/@0@1@.png"})
    with pytest.raises(
        SourceError, match=r"30 usable.*\(29 of 30 first matches are right, the wrong ones are 1,000 to"
    ):
        calibrated(home, model, radius=40)


def test_answers_are_kept_for_another_promise(home: Path, model: Model, monkeypatch: pytest.MonkeyPatch, cache) -> None:
    """Pictures that an earlier calibration asked are not asked again."""
    names: list[str] = []

    def recognize_frame(_: PlaceRecognizer, frame: Frame) -> Recognition:
        names.append(frame.name)
        nearest = APART * min(5, round(int(frame.name.split("@")[1]) / APART))
        match = Match(f"@{nearest}@0@.png", 5.0, 0.5, "full", Pose(nearest, 0, 0, frame="utm"))
        return Recognition(frame.name, matches=(match, dataclasses.replace(match, similarity=0.7)), complete=True)

    monkeypatch.setattr(PlaceRecognizer, "recognize_frame", recognize_frame)
    monkeypatch.setattr("pairvpr.calibration.acceptance.MIN_PICTURES", 9)

    def calibrate(radius: float, keep: bool = True, top_k: int | None = None) -> Acceptance:
        names.clear()
        with Map.open(home / "map") as map_:
            target = PrecisionTarget(0.3, 0.5, radius)
            return calibrate_acceptance(map_, model, [home / "queries"], target, quiet, keep=keep, top_k=top_k)

    first = calibrate(100)
    assert len(names) == first.fitted + first.checked == 15
    assert calibrate(100) == first
    assert not names
    calibrate(240)
    assert not names  # each drive's 0, 240 and 480 m were asked before
    calibrate(60)
    assert len(names) == 15  # of 30
    calibrate(100, top_k=2)
    assert len(names) == 15  # other answers
    calibrate(100, keep=False)
    assert len(names) == 15
    for file in cache.iterdir():
        file.write_text('{"a": [1, 2, 3]}')
    assert calibrate(100) == first
    assert len(names) == 15


def test_answers_are_kept_when_no_threshold_is_found(home: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    names = answers(monkeypatch, {f"drive{d}/@{30 * n}@1@.png" for d in range(3) for n in range(20)}, name="@0@0@.png")
    for _ in range(2):
        with Map.open(home / "map") as map_, pytest.raises(SourceError, match="no score shows"):
            calibrate_acceptance(map_, model, [home / "queries"], PrecisionTarget(0.9), quiet, keep=True)
    assert len(names) == COUNT


def test_several_traverses_count_together(home: Path, model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    answers(monkeypatch)
    whole, parts = calibrated(home, model), [home / "queries" / f"drive{n}" for n in range(3)]
    with Map.open(home / "map") as map_:
        found = calibrate_acceptance(map_, model, parts, PrecisionTarget(0.9), quiet)
        assert found == whole
        shutil.copytree(parts[0], tmp_path / "drive0")
        same = calibrate_acceptance(map_, model, [*parts, tmp_path / "drive0"], PrecisionTarget(0.9), quiet)
        above = calibrate_acceptance(map_, model, [home / "queries", parts[0]], PrecisionTarget(0.9), quiet)
    assert {each.name for each in same.traverses} == {str(tmp_path / "drive0"), *map(str, parts)}
    assert [each.name for each in above.traverses] == ["drive0", *(f"queries/drive{n}" for n in range(3))]


def test_each_traverse_has_its_poses(home: Path, model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pictures of the same names on two drives, each with poses of its own; or one file for all."""
    asked: list[Pose] = []

    def recognize_frame(_: PlaceRecognizer, frame: Frame) -> Recognition:
        return Recognition(frame.name, matches=(Match("m", 5.0, 0.5, "full", None),), complete=True)

    monkeypatch.setattr(PlaceRecognizer, "recognize_frame", recognize_frame)
    monkeypatch.setattr("pairvpr.calibration.acceptance.fit_threshold", lambda answered, *_: asked.extend(answered))
    monkeypatch.setattr("pairvpr.calibration.acceptance.MIN_PICTURES", 2)
    for drive in ("a", "b"):
        (tmp_path / drive).mkdir()
        shutil.copy(home / "db" / "@0@0@.png", tmp_path / drive / "1.png")
        (tmp_path / f"{drive}.csv").write_text(f"name,x,y,z,qx,qy,qz,qw\n1.png,{'ab'.index(drive)},0,0,0,0,0,1\n")
    images, files = [tmp_path / "a", tmp_path / "b"], [tmp_path / "a.csv", tmp_path / "b.csv"]
    add_pictures(images[0], tmp_path / "map", model, BuildOptions(poses=files[0]), create=True)
    for given, found in ((files, [0, 1]), (files[1:], [1, 1])):
        asked.clear()
        with Map.open(tmp_path / "map") as map_, pytest.raises(AttributeError):  # no threshold was fitted
            calibrate_acceptance(map_, model, images, PrecisionTarget(0.3, 0.5), quiet, poses=given)
        assert [each.where.x for each in asked] == found


def test_the_default_settings_are_those_of_the_threshold(acceptance: Acceptance, home: Path) -> None:
    bundle = Bundle.open(home / "bundle")

    def defaults(**change: object) -> AnswerDefaults:
        content = dataclasses.replace(acceptance, **change).to_json()
        return AnswerDefaults.from_bundle(
            Bundle(bundle.path, dataclasses.replace(bundle.info, calibration={KEY: content}))
        )

    assert AnswerDefaults.from_bundle(bundle) == AnswerDefaults(3, None)
    other = dataclasses.replace(acceptance.setup, top_k=2)
    assert defaults(setup=other) == AnswerDefaults(2, None)
    assert defaults(setup=other, exact=True) == AnswerDefaults(2, True)
    lost = dataclasses.replace(other, cascade="0" * 64)  # the cascade was calibrated again: the threshold is void
    assert defaults(setup=lost) == AnswerDefaults(2, None)
    for damaged in (0, "2", True):
        with pytest.raises(BundleError, match=r"top_k is not a whole number.*calibrate threshold"):
            defaults(setup=dataclasses.replace(other, top_k=damaged))


def test_pictures_of_the_map_itself_tell_nothing(home: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, similarity=1.0)
    with pytest.raises(SourceError, match="0 usable pictures"):
        calibrated(home, model)


def test_the_maps_own_traverse_is_optimistic(home: Path, tmp_path: Path, model: Model, monkeypatch) -> None:
    """A map that was made of the folder that is asked, or of one above it."""
    monkeypatch.setattr("pairvpr.calibration.acceptance.MIN_PICTURES", 3)
    shutil.copytree(home / "db", tmp_path / "db")
    add_pictures(tmp_path / "db", tmp_path / "map", model, create=True)
    answers(monkeypatch)
    (tmp_path / "db" / "later").mkdir()
    for number in range(60):
        shutil.copy(home / "queries" / "drive0" / "@0@1@.png", tmp_path / "db" / "later" / f"@{number * 30}@1@.png")
    for images, own in ((tmp_path / "db" / "later", 60), (tmp_path / "db", 66), (home / "queries", 0)):
        with Map.open(tmp_path / "map") as map_:
            found = calibrate_acceptance(map_, model, [images], PrecisionTarget(0.9), quiet)
        assert found.own == own
        assert ("OPTIMISTIC" in str(acceptance_rows(found))) == bool(own)


def test_places_that_cannot_be_compared(home: Path, tmp_path: Path, model: Model, monkeypatch) -> None:
    answers(monkeypatch, {f"drive0/@{30 * n}@1@.png" for n in range(20)})
    add_pictures(
        home / "queries" / "drive0", tmp_path / "gps", model, BuildOptions(poses=_gps(tmp_path, home)), create=True
    )
    with (
        Map.open(tmp_path / "gps") as map_,
        pytest.raises(MapError, match="none of its pictures has a place in frame 'utm'"),
    ):
        calibrate_acceptance(map_, model, [home / "queries"], PrecisionTarget(0.9), quiet)
    (tmp_path / "plain").mkdir()
    for number in range(50):
        shutil.copy(home / "db" / "@0@0@.png", tmp_path / "plain" / f"{number}.png")
    with pytest.raises(SourceError, match="0 usable pictures"), Map.open(home / "map") as map_:
        calibrate_acceptance(map_, model, [tmp_path / "plain"], PrecisionTarget(0.9), quiet)
    shutil.copytree(tmp_path / "plain", tmp_path / "few")
    for number in range(2, 50):
        (tmp_path / "few" / f"{number}.png").unlink()
    add_pictures(tmp_path / "few", tmp_path / "map", model, create=True)
    with Map.open(tmp_path / "map") as map_, pytest.raises(MapError, match="none of its pictures has a place;"):
        calibrate_acceptance(map_, model, [home / "queries"], PrecisionTarget(0.9), quiet)


def _gps(folder: Path, home: Path) -> Path:
    names = [path.name for path in (home / "queries" / "drive0").iterdir()]
    (folder / "gps.csv").write_text("name,latitude,longitude\n" + "".join(f"{name},50,8\n" for name in names))
    return folder / "gps.csv"


def test_what_is_learnt_and_tested_lies_in_other_stretches() -> None:
    chance = np.random.default_rng(0)
    along = chance.permutation(240) * 10.0
    wheres = [Pose(3 * x, 4 * x, chance.normal()) for x in along]
    learning, checking = split_places(wheres)
    assert sorted([*learning, *checking]) == list(range(240))
    assert len(learning) == 80
    order = np.argsort(along)
    sides = np.isin(order, learning)
    assert np.sum(sides[1:] != sides[:-1]) == STRETCHES * 2 // 3
    assert np.concatenate(cut_stretches(wheres, 7)).tolist() in (order.tolist(), order[::-1].tolist())


# What answers say


def answer(score: float | None, complete: bool = True) -> Recognition:
    match = Match("a", score, 0.5, "descriptor" if score is None else "full")
    return Recognition("q", matches=(match,), complete=complete, compared=3, timings={"total": 5.0})


@pytest.fixture
def acceptance(home: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> Acceptance:
    answers(monkeypatch)
    return calibrated(home, model)


def test_the_judge(acceptance: Acceptance) -> None:
    judge = Judge(dataclasses.replace(acceptance, threshold=2.0, slope=1.0, bias=-2.0))
    yes, no, cut = (judge.judge(each) for each in (answer(2.0), answer(1.0), answer(9.0, complete=False)))
    assert (yes.accepted, yes.confidence, yes.reason) == (True, 0.5, ACCEPTED)
    assert (no.accepted, no.reason) == (False, TOO_LOW)
    assert no.confidence == pytest.approx(1 / (1 + np.e))
    assert (cut.accepted, cut.confidence, cut.reason) == (None, None, INCOMPLETE)
    assert Judge().judge(answer(1.0)).reason == "not calibrated"
    line = json.loads(no.to_json())
    assert (line["accepted"], line["confidence"], line["reason"]) == (False, 0.268941, TOO_LOW)
    assert format_text(yes, 1)[-1].endswith("  accepted, confidence 0.500  (3 compared in 5 ms)")


def test_a_threshold_holds_for_one_setup_alone(acceptance: Acceptance, home: Path) -> None:
    bundle = Bundle.open(home / "bundle")
    stored = Bundle(bundle.path, dataclasses.replace(bundle.info, calibration={KEY: acceptance.to_json()}))
    assert Acceptance.find_in(stored) == acceptance
    assert Acceptance.find_in(bundle) is None
    same = acceptance.setup
    for setup, reason in (
        (same, ACCEPTED),
        (None, "not calibrated for answers by descriptors alone"),
        (dataclasses.replace(same, top_k=2), "not calibrated for --top-k 2, but for 3"),
        (dataclasses.replace(same, cascade="0" * 64), "not calibrated for these answers, but for exact answers"),
        (dataclasses.replace(same, places="0" * 64), "not calibrated for this map as it is now"),
    ):
        judged = Judge.from_bundle(stored, setup).judge(answer(99.0))
        assert (judged.accepted, judged.reason) == (True if setup is same else None, reason)
    with Map.open(home / "map") as map_:
        assert ScoreSetup.from_map(map_, 3, None) == same


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": float("nan")},
        {"slope": -1.0},
        {"precision": 1.5},
        {"accepted": 999},
        {"setup": {}},
        {"setup": {"places": "", "top_k": 3, "cascade": None, "pictures": 0}},
        {"traverses": 3},
        {"unit": "miles"},
        {"samples": {"value": {"quantiles": [2.0, 1.0], "independent": 2}}},
        {"samples": {"value": {"quantiles": [float("inf")], "independent": 2}}},
        {"samples": {"value": {"quantiles": [1.0], "independent": -1}}},
        {"samples": {"value": {"quantiles": [1.0]}}},
        {"samples": {"other": {"quantiles": [1.0], "independent": 1}}},
        {"samples": {"value": 3}},
        {"samples": 3},
        {"x": 1},
    ],
    ids=str,
)
def test_a_damaged_or_foreign_threshold_is_refused(acceptance: Acceptance, home: Path, change: dict) -> None:
    bundle = Bundle.open(home / "bundle")
    for content in ({**acceptance.to_json(), **change}, {**acceptance.to_json(), "identity": "1" * 64}, [1]):
        spoilt = Bundle(bundle.path, dataclasses.replace(bundle.info, calibration={KEY: content}))
        with pytest.raises(BundleError, match=r"acceptance threshold .*pairvpr calibrate threshold"):
            Acceptance.find_in(spoilt)


def test_a_threshold_of_an_earlier_version_has_no_scores(acceptance: Acceptance, home: Path) -> None:
    content = {key: value for key, value in acceptance.to_json().items() if key != "samples"}
    bundle = Bundle.open(home / "bundle")
    found = Acceptance.find_in(Bundle(bundle.path, dataclasses.replace(bundle.info, calibration={KEY: content})))
    assert found == dataclasses.replace(acceptance, samples={})


# From the command line


def command(*arguments: object, of: object = main) -> Result:
    return CliRunner().invoke(of, [str(each) for each in arguments])  # type: ignore[arg-type]


@pytest.fixture
def db(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A map, and beside it `drives`, traverses of one picture each."""
    monkeypatch.setattr("pairvpr.calibration.acceptance.MIN_PICTURES", STRETCHES)
    shutil.copytree(home / "map", tmp_path / "map")
    for number in range(STRETCHES):
        file = tmp_path / "drives" / str(number) / f"@{number}@0@.png"
        file.parent.mkdir(parents=True)
        Image.fromarray(draw_scene(number % 7, 1 + number, SIZE)).save(file)
    return tmp_path / "map"


def calibrate(db: Path, *more: object) -> Result:
    """Calibrate for real. What counts as right is everything: drawn scenes are no places."""
    asked = ("--images", db.parent / "drives", "--precision-target", 0.6, "--radius", 1000)
    done = command("calibrate", "threshold", "--db", db, *asked, *more)
    assert done.exit_code == 0, done.stderr
    return done


def query(db: Path, *more: object) -> dict[str, Any]:
    """Return the answer to a picture of a drive."""
    given = ("--db", db, "--query", db.parent / "drives" / "3", "--format", "jsonl")
    line: dict[str, Any] = json.loads(command(*given, *more, of=run_main).stdout)
    return line


def info(db: Path) -> dict[str, Any]:
    """Return what `map info` tells programs."""
    told: dict[str, Any] = json.loads(command("map", "info", "--db", db, "--format", "jsonl").stdout)
    return told


def test_a_map_is_calibrated_and_shown(home: Path, db: Path, tmp_path: Path) -> None:
    done = calibrate(db)
    assert done.stdout.startswith(f"{db / 'model'}: acceptance threshold\n  threshold    score >= ")
    assert "(precision 0.6 at 90% confidence, within 1000 m)" in done.stdout
    block = [line.strip() for line in done.stdout.splitlines()[1:]]
    shown = command("map", "info", "--db", db).stdout
    assert all(line in shown for line in block)
    figures = info(db)["decisions"]
    assert (figures["checked"], figures["right"], figures["setup"]["top_k"]) == (8, 8, 3)
    assert command("map", "verify", "--db", db).exit_code == 0
    found = command("eval", home / "db", tmp_path / "drives", "--model", db / "model", "--report", tmp_path / "report")
    said = r"^decisions: \d+ of 12 answers accepted from score .* \(precision 0.6\), \d+ of them right$"
    assert re.search(said, found.stdout, re.MULTILINE)
    decided = json.loads((tmp_path / "report" / "results.json").read_text())["decisions"]
    assert (decided["threshold"], decided["warning"]) == (figures["threshold"], None)


def test_a_calibrated_map_decides(db: Path) -> None:
    assert query(db)["reason"] == "not calibrated"
    calibrate(db)
    line = query(db)
    assert line["accepted"] == (line["best"]["score"] >= info(db)["decisions"]["threshold"])
    assert 0 < line["confidence"] < 1
    for more, reason in (
        (("--exact",), line["reason"]),
        (("--top-k", 2), "not calibrated for --top-k 2, but for 3"),
        (("--no-rerank",), "not calibrated for answers by descriptors alone"),
        (("--budget-ms", 0.001), INCOMPLETE),
    ):
        assert query(db, *more)["reason"] == reason


def test_the_number_of_candidates_of_the_calibration_is_the_default(db: Path) -> None:
    calibrate(db, "--top-k", 2)
    assert "answers      2 candidates, all compared in full" in command("map", "info", "--db", db).stdout
    line = query(db)
    assert (line["compared"], line["accepted"] is None) == (2, False)
    assert query(db, "--top-k", 3)["reason"] == "not calibrated for --top-k 3, but for 2"
    with Map.open(db) as map_:
        assert Workshop.from_map(map_).top_k == 2
    with PlaceRecognizer.open(db) as recognizer:
        assert recognizer.top_k == 2


def test_a_threshold_is_void_when_the_map_has_changed(db: Path, tmp_path: Path) -> None:
    calibrate(db)
    void, picture = "not calibrated for this map as it is now", next((tmp_path / "drives" / "3").iterdir())
    with PlaceRecognizer.open(db) as recognizer:
        assert recognizer.recognize(picture).accepted is not None
        assert command("map", "remove", f"@{APART}@0@.png", "--db", db).exit_code == 0
        assert recognizer.refresh()
        assert recognizer.recognize(picture).reason == void
    line = query(db)
    assert (line["accepted"], line["reason"]) == (None, void)
    shown = command("map", "info", "--db", db).stdout
    assert f"void         {void}" in shown
    assert "(precision 0.6 at 90% confidence, within 1000 m)" in shown
    told = info(db)
    assert (told["decisions"]["precision"], told["decisions_void"]) == (0.6, void)


def test_a_map_that_has_grown_decides_answers_of_its_calibrated_pictures(
    db: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same candidates it is the answer of the map as it was."""
    calibrate(db)
    pictures = sorted((tmp_path / "drives").rglob("*.png"))
    with PlaceRecognizer.open(db) as recognizer:
        before = {picture: recognizer.recognize(picture) for picture in pictures}
        Image.fromarray(draw_scene(0, 99, SIZE)).save(tmp_path / "new.png")
        assert command("map", "add", tmp_path / "new.png", "--db", db).exit_code == 0
        assert recognizer.refresh()
        after = {picture: recognizer.recognize(picture) for picture in pictures}
    decided = 0
    for picture, answer in after.items():
        if "new.png" in {match.name for match in answer.matches}:
            assert (answer.accepted, answer.confidence, answer.reason) == (None, None, ADDED)
        else:
            decided += 1
            earlier = before[picture]
            assert (answer.accepted, answer.reason, answer.matches) == (
                earlier.accepted,
                earlier.reason,
                earlier.matches,
            )
    assert 0 < decided < len(pictures)
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [text.partition(";")[0] for text in told] == ["1 pictures were added after the calibration"]
    shown = info(db)
    assert (shown["decisions_void"], shown["added_after_calibration"]) == (None, 1)
    assert "added        1 pictures were added" in command("map", "info", "--db", db).stdout
    assert command("map", "compact", "--db", db).exit_code == 0
    assert info(db)["added_after_calibration"] == 1
    calibrate(db)
    assert info(db)["added_after_calibration"] == 0
    assert command("map", "remove", f"@{APART}@0@.png", "--db", db).exit_code == 0
    assert info(db)["decisions_void"] == "not calibrated for this map as it is now"


def test_a_threshold_of_an_earlier_version_is_void_when_the_map_has_grown(db: Path, tmp_path: Path) -> None:
    calibrate(db)
    bundle = Bundle.open(db / "model")
    stored = dict(bundle.info.calibration[KEY])
    stored["setup"] = {key: value for key, value in stored["setup"].items() if key != "pictures"}
    bundle.store_calibration(KEY, stored)
    assert (info(db)["decisions_void"], info(db)["added_after_calibration"]) == (None, 0)
    Image.fromarray(draw_scene(0, 99, SIZE)).save(tmp_path / "new.png")
    assert command("map", "add", tmp_path / "new.png", "--db", db).exit_code == 0
    assert info(db)["decisions_void"] == "not calibrated for this map as it is now"


@pytest.mark.parametrize("first", [8, 32])
def test_a_run_with_other_scores_is_warned_of_once(
    home: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """During the run, or at the end of one that is too short for a comparison before."""
    monkeypatch.setattr("pairvpr.runtime.calibrated.score_monitor.FEWEST", 2)
    monkeypatch.setattr("pairvpr.runtime.calibrated.score_monitor.FIRST", first)
    shutil.copytree(home / "map", tmp_path / "map")
    scores = tuple(100.0 + number for number in range(101))
    with Map.open(home / "map") as map_:
        setup = ScoreSetup.from_map(map_, 3, None)
    other = dataclasses.replace(
        planned(150), identity=model.bundle.identity, setup=setup, samples={"value": Sample(scores, 100.0)}
    )
    Bundle.open(tmp_path / "map" / "model").store_calibration(KEY, other.to_json())
    done = command(
        "--db", tmp_path / "map", "--query", home / "queries" / "drive0", "--format", "jsonl", "--report",
        tmp_path / "run.html", of=run_main,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("scores are unlike those of the calibration: 0% accepted, 50% there") == 1
    warned = ["warning" in json.loads(line) for line in done.stdout.splitlines()]
    assert warned == [False] * (first - 1) + [True] * (21 - first) if first == 8 else not any(warned)
    assert "scores are unlike those of the calibration" in (tmp_path / "run.html").read_text()
    queries = tmp_path / "asked"
    shutil.copytree(home / "queries" / "drive0", queries)
    found = command("eval", home / "db", queries, "--model", tmp_path / "map" / "model")
    assert found.exit_code == 0, found.stderr
    assert "decisions: 0 of 20 answers accepted" in found.stdout
    assert found.stderr.count("scores are unlike those of the calibration") == 1


def test_options_that_do_not_go_together(home: Path) -> None:
    images = ("--images", home / "queries")
    for given, message in (
        (("threshold", "--model", home / "bundle"), "--model needs `pairvpr calibrate cascade`"),
        (("cascade", "--db", home / "map", "--radius", 5), "--radius needs `pairvpr calibrate threshold`"),
        (("cascade", "--db", home / "map", "--every", 2), "--every needs `pairvpr calibrate threshold`"),
        (("--db", home / "map", "--tolerance", 0), "--tolerance needs `pairvpr calibrate threshold`"),
        (("threshold", "--db", home / "map", "--colour", "red"), "No such option '--colour'"),
        (
            ("threshold", "--db", home / "map", "--tolerance", 0, "--radius", 5),
            "--radius goes by poses, --tolerance",
        ),
        (
            ("threshold", "--db", home / "map", "--tolerance", 0, "--poses", "p.csv"),
            "--poses goes by poses, --tolerance",
        ),
        (("threshold", "--db", home / "map", "--tolerance", 2), "are more precise; leave out --tolerance"),
        (("threshold", "--db", home / "map"), "needs at least 345"),
        (("threshold", "--db", home / "map", "--top-k", 9), "--top-k 9 is outside 1 to 6"),
        (("threshold", "--db", home / "map", *("--poses", "p.csv") * 2), "--poses once, or once for each of the 1"),
    ):
        result = command("calibrate", *given, *images)
        assert result.exit_code == 2
        assert message in result.stderr


@pytest.mark.parametrize(("old", "new"), [(["--accept"], "threshold"), ([], "cascade")])
def test_the_old_spellings_name_the_new_command(home: Path, old: list[str], new: str) -> None:
    arguments = ("--db", home / "map", "--images", home / "queries" / "none")
    before, after = command("calibrate", *old, *arguments), command("calibrate", new, *arguments)
    warning, *rest = before.stderr.splitlines()
    spelling = " ".join(["pairvpr calibrate", *old])
    assert warning == f"`{spelling}` is now `pairvpr calibrate {new}`; the old spelling ends with the next version"
    assert rest == after.stderr.splitlines()
    assert (before.exit_code, before.stdout) == (after.exit_code, after.stdout) == (2, "")
