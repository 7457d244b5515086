"""A run recorded for Rerun's viewer, read back with Rerun's own reader."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("rerun", reason="recordings need the extra pairvpr[viz]")

from pyarrow.types import is_temporal
from rerun.chunk import RrdReader

from pairvpr.errors import MapError, PairVPRError
from pairvpr.runtime.answer import Match, Recognition
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Record
from pairvpr.runtime.sources import Frame
from pairvpr.viewing.rerun_recording import PICTURE, recording
from tests.scenes import draw_scene

SCENE = Image.fromarray(draw_scene(0, 0, (480, 640)))


class Places:
    """A map with the members that a recording reads; it has no thumbnails."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def read_thumbnail(self, record: Record) -> bytes | None:
        return None


@pytest.fixture
def recognizer(tmp_path: Path) -> Any:
    """One with a map of which p0 is there as a file, p1 came out of a video, and p2 has a GPS position."""
    SCENE.save(tmp_path / "p0", "PNG")
    places = [Pose(0, 0, 0), Pose(10, 0, 0), None]
    sources = [str(tmp_path), "/clip.mp4", "cam0"]
    records = [
        Record(i, f"p{i}", source, None, place, None if place else Gps(47, 8), 1, i, 0, 0)
        for i, (source, place) in enumerate(zip(sources, places, strict=True))
    ]
    return SimpleNamespace(map=Places(records))


def add(taken: Any, i: int, accepted: bool | None, at: Any, own: Any = None, score: float | None = 1.5) -> None:
    frame = Frame(f"q{i}", 1e9 + i, SCENE, None, 1.0, pose=own)
    match = Match(f"p{i % 3}", score, 0.75, "full", at)
    timings = {"encode": 2.0, "total": 9.0 + i}
    taken.add(frame, Recognition(frame.name, 1e9 + i, (match,), accepted, timings=timings))


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each entity in the order of the answers: its components, and the timelines in their own units."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for chunk in RrdReader(path).stream():
        batch = chunk.to_record_batch()
        columns = [each.cast("int64") if is_temporal(each.type) else each for each in batch.columns]
        for row in zip(*(column.to_pylist() for column in columns), strict=True):
            rows[chunk.entity_path].append(dict(zip(batch.schema.names, row, strict=True)))
    return {name: sorted(found, key=lambda row: row.get("answer", 0)) for name, found in rows.items()}


def assert_verified(path: Path) -> None:
    """Rerun's own command finds nothing wrong with the file; with a home of its own it reports to nobody."""
    command = [sys.executable, "-m", "rerun", "rrd", "verify", str(path)]
    home = {**os.environ, "HOME": str(path.parent), "XDG_CONFIG_HOME": str(path.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=home)
    assert (done.returncode, "1 file verified without error" in done.stderr) == (0, True), done.stderr


def values(rows: list[dict[str, Any]], component: str) -> list[Any]:
    return [row[component][0] for row in rows if row.get(component)]


def test_a_run_is_recorded(recognizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.rrd"
    with recording(path, "drive", SimpleNamespace(live=True, dropped=7), recognizer) as taken:
        add(taken, 0, True, Pose(0, 0, 0), Pose(0, 1, 0))
        add(taken, 1, False, Pose(10, 0, 0), Pose(9, 1, 0))
        add(taken, 2, None, Gps(47, 8), score=None)
        taken.add(Frame("q3", 1e9 + 3, None, "q3 is damaged", 1.0), Recognition("q3", error="q3 is damaged"))
    assert_verified(path)
    rows = read(path)
    assert [row["answer"] for row in rows["/log"]] == [0, 1, 2, 3]
    assert [row["time"] for row in rows["/log"]] == [(10**9 + i) * 10**9 for i in range(4)]
    assert values(rows["/log"], "TextLog:level") == ["INFO", "WARN", "INFO", "ERROR"]
    assert values(rows["/log"], "TextLog:text")[1:] == [
        "q1 -> p1, score +1.500, similarity 0.750, rejected, 1.4 m off",
        "q2 -> p2, not compared, similarity 0.750, not judged",
        "q3 is damaged",
    ]
    for blob in (*values(rows["/query"], "EncodedImage:blob"), *values(rows["/match"], "EncodedImage:blob")):
        assert Image.open(io.BytesIO(bytes(blob))).size == PICTURE
    assert ["EncodedImage:blob" in row for row in rows["/match"]] == [True, False, False]  # the others are no files
    assert values(rows["/places/map/accepted"], "Points3D:positions") == [[0, 0, 0]]
    assert values(rows["/places/map/rejected"], "Points3D:positions") == [[10, 0, 0]]
    assert values(rows["/places/map/rejected_from"], "LineStrips3D:strips") == [[[9, 1, 0], [10, 0, 0]]]
    assert values(rows["/places/map/trajectory"], "LineStrips3D:strips") == [[[0, 1, 0], [9, 1, 0]]]
    assert values(rows["/places/wgs84/unjudged"], "GeoPoints:positions") == [[47, 8]]
    assert rows["/places/map/map"][0]["Points3D:positions"] == [[0, 0, 0], [10, 0, 0]]
    assert values(rows["/score/pair"], "Scalars:scalars") == [1.5, 1.5]
    assert values(rows["/milliseconds/total"], "Scalars:scalars") == [9, 10, 11]
    assert values(rows["/dropped/frames"], "Scalars:scalars") == [7, 7, 7]


def test_what_was_recorded_before_a_failure_is_there(recognizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.rrd"

    def fail() -> None:
        with recording(path, "drive", SimpleNamespace(live=False), recognizer) as taken:
            add(taken, 0, None, None)
            raise MapError("the map is gone")

    with pytest.raises(MapError):
        fail()
    assert_verified(path)
    assert len(read(path)["/query"]) == 1


def test_a_map_that_changes_is_shown_anew(recognizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.rrd"
    with recording(path, "drive", SimpleNamespace(live=True, dropped=0), recognizer) as taken:
        add(taken, 0, None, Pose(0, 0, 0))
        add(taken, 0, None, Pose(0, 0, 0))
        recognizer.map = Places(recognizer.map.records[1:])
        add(taken, 0, None, Pose(0, 0, 0))
    rows = read(path)
    assert [len(row["Points3D:positions"]) for row in rows["/places/map/map"]] in ([2, 1], [1])  # the last counts
    assert ["EncodedImage:blob" in row for row in rows["/match"]] == [True, True, False]  # p0 is no longer in the map


def test_a_recording_that_cannot_be_written_is_refused(recognizer: Any, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "run.rrd"):
        with pytest.raises(PairVPRError), recording(path, "drive", SimpleNamespace(live=False), recognizer):
            pytest.fail("not refused before the run")


def test_names_that_are_not_utf_8_are_escaped(recognizer: Any, tmp_path: Path) -> None:
    odd = "a\udcff.jpg"
    source = SimpleNamespace(live=False, dropped=0)
    with recording(tmp_path / "run.rrd", odd, source, recognizer) as taken:
        taken.add(Frame(odd, None, None, f"{odd} is damaged", 1.0), Recognition(odd, error=f"{odd} is damaged"))
        place = Pose(1, 2, 3, frame=f"odom@{odd}")
        match = Match("p0", 1.0, 0.5, "full", place)
        taken.add(Frame(odd, None, SCENE, None, 1.0, pose=place), Recognition(odd, None, (match,), True))
    rows = read(tmp_path / "run.rrd")
    assert values(rows["/log"], "TextLog:text")[0] == "a\\udcff.jpg is damaged"
    assert any("udcff" in entity for entity in rows if entity.startswith("/places"))
