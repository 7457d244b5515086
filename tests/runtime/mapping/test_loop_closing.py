"""Loops are closed with pictures added long enough before, and the grown map equals a built one."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pairvpr.cli.main import main
from pairvpr.errors import BundleError, MapError, SourceError
from pairvpr.runtime import Features, Model, load_model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import FILE
from pairvpr.runtime.calibrated.acceptance import KEY, Acceptance, ScoreSetup, Traverse
from pairvpr.runtime.map import Map, verify_map
from pairvpr.runtime.map.segments import Segment
from pairvpr.runtime.mapping.builder import add_pictures, open_writer
from pairvpr.runtime.mapping.closure import Closure, Threshold
from pairvpr.runtime.mapping.loop_closing import LoopCloser
from tests.scenes import draw_scene

SIZE = (96, 128)
EDGE = [
    "format", "kind", "from", "from_timestamp", "to", "to_timestamp", "score", "similarity", "threshold", "confidence",
    "calibrated_on", "relative_pose", "information", "by_poses",
]  # fmt: skip
ROUND = (0, 1, 2, 3, 0, 1)
"""The places of a drive, ten seconds apart: the first two are seen again after 40 s."""


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model()


def drive(folder: Path, *places: int, start: float = 100.0, step: float = 10.0, visits: bool = False) -> Path:
    """A camera folder with time stamps; visits: a place looks different each time."""
    (folder / "data").mkdir(parents=True)
    rows = ["#timestamp [ns],filename"]
    for number, place in enumerate(places):
        stamp = int((start + step * number) * 1e9)
        Image.fromarray(draw_scene(place, number * visits, SIZE)).save(folder / "data" / f"{stamp}.png")
        rows.append(f"{stamp},{stamp}.png")
    (folder / "data.csv").write_text("\n".join(rows) + "\n")
    return folder


def name(number: int, start: float = 100.0) -> str:
    return f"data/{int((start + 10 * number) * 1e9)}.png"


def loops(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["map", "loops", *(str(argument) for argument in arguments)])


def edges(result: Result) -> list[dict]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_drive_that_comes_back(tmp_path: Path) -> None:
    source = drive(tmp_path / "cam", *ROUND)
    found = edges(loops(source, "--db", tmp_path / "map", "--threshold", "6", "--exclude", "25"))
    assert [(edge["from"], edge["to"]) for edge in found] == [(name(4), name(0)), (name(5), name(1))]
    assert list(found[0]) == EDGE
    assert (found[0]["format"], found[0]["from_timestamp"], found[0]["to_timestamp"]) == (1, 140.0, 100.0)
    assert found[0]["score"] >= found[0]["threshold"] == 6
    assert found[0]["confidence"] is found[0]["calibrated_on"] is found[0]["relative_pose"] is None
    with Map.open(tmp_path / "map") as map_:
        assert [record.name for record in map_.records] == [name(number) for number in range(6)]
    assert not verify_map(tmp_path / "map")
    again = loops(source, "--db", tmp_path / "map", "--threshold", "6", "--exclude", "25")
    assert edges(again) == []
    assert "0 pictures added, 0 loops closed, 6 already there" in again.stderr


def test_each_commit_is_read_once(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, read = Segment.read_descriptors, []
    monkeypatch.setattr(Segment, "read_descriptors", lambda self: (read.append(self.entry.number), plain(self))[1])
    source = drive(tmp_path / "cam", *ROUND, visits=True)
    with LoopCloser(model, Threshold(-1000.0), 15.0) as closer:
        add_pictures(source, tmp_path / "map", model, create=True, loop_closer=closer)
    assert len(read) > 1
    assert read == sorted(set(read))


def test_poses_of_the_source_are_compared(tmp_path: Path) -> None:
    """Odometry that has drifted by 3 m when the first place is seen again."""
    source, poses = drive(tmp_path / "cam", *ROUND), tmp_path / "odometry.txt"
    poses.write_text(
        "".join(f"{100 + 10 * number}.0 {number} 0 0 0 0 0 1\n" for number in range(4)) + "140.0 3 0 0 0 0 0 1\n"
    )
    found = edges(loops(source, "--db", tmp_path / "map", "--threshold", "6", "--exclude", "25", "--poses", poses))
    assert [edge["by_poses"] for edge in found] == [{"x": 3, "y": 0, "z": 0, "q": [0, 0, 0, 1]}, None]


def test_recent_pictures_close_no_loop(tmp_path: Path) -> None:
    source = drive(tmp_path / "cam", *ROUND)
    assert edges(loops(source, "--db", tmp_path / "map", "--threshold", "-1000", "--exclude", "60")) == []
    refused = loops(source, "--db", tmp_path / "other", "--threshold", "6", "--exclude", "nan")
    assert (refused.exit_code, "'--exclude': 'nan' is not a finite number" in refused.stderr) == (2, True)


def test_every_loop_is_the_best_match_among_older_pictures(tmp_path: Path, model: Model) -> None:
    """With every best match an edge: compared with looking at all earlier pictures one by one."""
    source = drive(tmp_path / "cam", 0, 1, 2, 1, 0, 2, 1, visits=True)
    closures: list[Closure] = []
    with LoopCloser(model, Threshold(-1000.0), 15.0, report=closures.append) as closer:
        add_pictures(source, tmp_path / "map", model, create=True, loop_closer=closer)
    with Map.open(tmp_path / "map") as map_:
        features = model.encode([source / record.name for record in map_.records])
        stored = map_.read_tokens(range(len(map_)))
        assert [closure.name for closure in closures] == [record.name for record in map_.records][2:]
        for number, closure in enumerate(closures, start=2):
            older = slice(0, number - 1)
            scores = model.score(features[number], Features(features.descriptors[older], stored[older]))
            assert closure.earlier == map_.records[int(scores.argmax())].name
            assert closure.score == pytest.approx(float(scores.max()), abs=1e-3)
            assert closure.earlier_timestamp == map_.records[int(scores.argmax())].timestamp


def test_going_on_after_an_interruption_closes_the_same_loops(tmp_path: Path) -> None:
    source, options = drive(tmp_path / "cam", 0, 1, 2, 3, 4, visits=True), ("--threshold", "-1000", "--exclude", "25")
    whole = edges(loops(source, "--db", tmp_path / "whole", *options))
    begun = edges(loops(source, "--db", tmp_path / "map", *options, "--duration", "25"))
    assert [(edge["from"], edge["to"]) for edge in begun] == []
    rest = edges(loops(source, "--db", tmp_path / "map", *options))
    assert [(edge["from"], edge["to"]) for edge in rest] == [(edge["from"], edge["to"]) for edge in whole]
    assert [edge["from"] for edge in rest] == [name(3), name(4)]


def test_an_earlier_drive_is_there_from_the_start(tmp_path: Path) -> None:
    first, second = drive(tmp_path / "a", 0, 1), drive(tmp_path / "b", 5, 1, start=130.0)
    edges(loops(first, "--db", tmp_path / "map", "--threshold", "6"))
    found = edges(loops(second, "--db", tmp_path / "map", "--threshold", "6", "--out", tmp_path / "edges.jsonl"))
    assert found == []
    (line,) = (tmp_path / "edges.jsonl").read_text().splitlines()
    assert (json.loads(line)["from"], json.loads(line)["to"]) == (name(1, 130.0), name(1))


def test_rejected_pictures_close_no_loop(tmp_path: Path) -> None:
    source = drive(tmp_path / "cam", 0, 0, 1, 2, 0)
    options = ("--db", tmp_path / "map", "--threshold", "6", "--exclude", "5", "--min-change", "0.05")
    result = loops(source, *options)
    found = [(edge["from"], edge["to"]) for edge in edges(result)]
    assert found[-1] == (name(4), name(0))
    assert name(1) not in {end for edge in found for end in edge}
    assert (
        f"4 pictures added, {len(found)} loops closed, 0 already there, 0 could not be read, 1 left out"
        in result.stderr
    )


def test_pictures_without_a_time_stamp_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    Image.fromarray(draw_scene(0, 0, SIZE)).save(tmp_path / "pics" / "a.png")
    result = loops(tmp_path / "pics", "--db", tmp_path / "map", "--threshold", "6")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: a.png: has no time stamp")
    assert not (tmp_path / "map").exists()


@pytest.mark.parametrize(("threshold", "says"), [("nan", "finite"), ("nowhere", "nowhere")])
def test_an_unusable_threshold_is_refused(tmp_path: Path, threshold: str, says: str) -> None:
    source = drive(tmp_path / "cam", 0)
    result = loops(source, "--db", tmp_path / "map", "--threshold", threshold)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert not (tmp_path / "map").exists()


def calibrated(path: Path, identity: str | None = None) -> Acceptance:
    """Write a threshold of 6 into a map."""
    bundle = Bundle.open(path / "model")
    acceptance = Acceptance(
        identity=bundle.identity, engine="", setup=ScoreSetup("", 1, None), threshold=6.0, slope=1.0, bias=-6.0,
        radius=25.0, precision=0.9, delta=0.1, fitted=1, checked=1, right=1, outside=0, expected=1.0, accepted=1,
        accepted_right=1, traverses=(Traverse("drive1", 1, 1, 1),), own=0,
    )  # fmt: skip
    info = dataclasses.replace(bundle.info, calibration={KEY: acceptance.to_json()})
    (bundle.path / FILE).unlink()  # a link to the package's own
    (bundle.path / FILE).write_text(info.to_json())
    return acceptance


def test_the_threshold_comes_from_another_map(tmp_path: Path, model: Model) -> None:
    source, other = drive(tmp_path / "cam", *ROUND), tmp_path / "other"
    add_pictures(drive(tmp_path / "b", 7), other, model, create=True)
    with pytest.raises(MapError, match=r"other: this map has no threshold; calibrate one"):
        Threshold.from_text(str(other), model.bundle.identity)
    acceptance = calibrated(other)
    with pytest.raises(MapError, match="name a map of the same model"):
        Threshold.from_text(str(other), "0" * 64)
    result = loops(source, "--db", tmp_path / "map", "--threshold", other, "--exclude", "25")
    found = edges(result)
    assert len(found) == 2
    assert "precision does not hold for this map" in result.stderr
    assert {edge["calibrated_on"] for edge in found} == {str(other)}
    for edge in found:
        assert edge["threshold"] == 6
        assert edge["confidence"] == pytest.approx(acceptance.confidence(edge["score"]), abs=1e-5)


def test_the_exclusion_holds_when_the_clock_jumps_back(tmp_path: Path, model: Model) -> None:
    features = model.encode([draw_scene(0, 0, SIZE)])
    with (
        open_writer(str(tmp_path / "map"), model, create=True) as writer,
        LoopCloser(model, Threshold(0.0), 30.0) as closer,
    ):
        for number, stamp in enumerate([100.0, 110.0, 90.0, 95.0]):
            assert closer.find_loop(writer, f"{number}", "here", stamp, features) is None
            writer.add(name=f"{number}", source="here", features=features, timestamp=stamp)
        closure = closer.find_loop(writer, "4", "here", 131.0, features)
        assert closure is not None
        assert closure.earlier in ("0", "2", "3")
        with pytest.raises(SourceError, match="5: has no time stamp"):
            closer.find_loop(writer, "5", "here", None, features)
    with pytest.raises(ValueError, match="exclude 0"):
        LoopCloser(model, Threshold(0.0), 0.0)


@pytest.mark.parametrize("jump", [-100.0, 1e9])
def test_pictures_that_were_just_added_close_no_loop_when_the_clock_is_set(
    tmp_path: Path, model: Model, jump: float
) -> None:
    features = model.encode([draw_scene(0, 0, SIZE)])
    with (
        open_writer(str(tmp_path / "map"), model, create=True) as writer,
        LoopCloser(model, Threshold(0.0), 30.0) as closer,
    ):
        for number, stamp in enumerate([200.0, 210.0, 210.0 + jump, 215.0 + jump]):
            assert closer.find_loop(writer, f"{number}", "here", stamp, features) is None
            writer.add(name=f"{number}", source="here", features=features, timestamp=stamp)
        closure = closer.find_loop(writer, "4", "here", 235.0 + jump, features)
        assert closure is not None
        assert closure.earlier in ("0", "1")  # 45 and 35 s ago


def test_memory_beside_the_map_is_bounded(tmp_path: Path, model: Model) -> None:
    random = np.random.default_rng(0)
    given = model.encode([draw_scene(0, 0, SIZE)])
    with (
        open_writer(tmp_path / "map", model, create=True) as writer,
        LoopCloser(model, Threshold(1000.0), 5.0, top_k=1) as closer,
    ):
        for number in range(60):
            noise = random.normal(0, 0.1, given.descriptors.shape).astype(np.float32)
            moved = given.descriptors + noise
            features = Features(moved / np.linalg.norm(moved), given.tokens)
            closer.find_loop(writer, f"{number}", "here", float(number), features)
            writer.add(name=f"{number}", source="here", features=features, timestamp=float(number))
            assert len(closer._recent) <= 6
            assert len(writer._pending) <= 6
    with Map.open(tmp_path / "map") as map_:
        assert len(map_) == 60
        assert map_.info().segments <= 12


def test_termination_leaves_an_intact_map(tmp_path: Path) -> None:
    source, out = drive(tmp_path / "cam", *(number % 7 for number in range(300))), tmp_path / "edges.jsonl"
    command = [sys.executable, "-m", "pairvpr", "map", "loops", str(source), "--db", str(tmp_path / "map")]
    command += ["--threshold", "6", "--exclude", "30", "--top-k", "5", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 300
    while not (out.exists() and len(out.read_text().splitlines()) > 2):
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 143, said
    assert not verify_map(tmp_path / "map")
    with Map.open(tmp_path / "map") as map_:
        held = {record.name for record in map_.records}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {edge["from"] for edge in lines} | {edge["to"] for edge in lines} <= held


def test_a_damaged_threshold_is_an_error(tmp_path: Path, model: Model) -> None:
    add_pictures(drive(tmp_path / "b", 7), tmp_path / "other", model, create=True)
    bundle = Bundle.open(tmp_path / "other" / "model")
    (bundle.path / FILE).unlink()
    (bundle.path / FILE).write_text(dataclasses.replace(bundle.info, calibration={KEY: {"threshold": 1}}).to_json())
    with pytest.raises(BundleError, match="calibrate again"):
        Threshold.from_text(str(tmp_path / "other"), model.bundle.identity)
