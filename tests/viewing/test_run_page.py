"""The page of a run: what is kept is bounded, what is shown is what happened, however the run ended."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from pairvpr.errors import MapError, PairVPRError
from pairvpr.runtime.answer import Filtered, Match, Recognition
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.geometry.poses import Pose
from pairvpr.runtime.image import make_thumbnail
from pairvpr.runtime.map import Record
from pairvpr.runtime.model import default_bundle
from pairvpr.runtime.sources import Frame
from pairvpr.viewing import run_page
from pairvpr.viewing.latency import BINS, Latency
from pairvpr.viewing.run_page import reporting
from pairvpr.viewing.run_record import ANSWERS, ERRORS, STRIPS, Answered, RunRecord
from pairvpr.viewing.thinning import Thinned
from tests.html.page_reader import Page
from tests.runtime.outputs.ros_contract import acceptance
from tests.scenes import draw_scene

HOSTILE = '<script>alert("&\'1")</script>$style${x}\udcff'
PICTURE = Image.fromarray(draw_scene(0, 0, (48, 64)))
JPEG = make_thumbnail(PICTURE, (32, 32))


class Places(list[Record]):
    """A map with the members that the page reads; it has a thumbnail of p1."""

    path = Path("/maps/town <1>")
    identity = "0123456789abcdef"

    @property
    def records(self) -> list[Record]:
        return self

    def read_thumbnail(self, record: Record) -> bytes | None:
        return JPEG if record.name == "p1" else None


@pytest.fixture
def recognizer(tmp_path: Path) -> Any:
    """One with a map of which p0 is there as a file, p1 came out of a video, and neither has a place of a third."""
    PICTURE.save(tmp_path / "p0", "PNG")
    places = Places(
        Record(i, f"p{i}", source, None, Pose(10.0 * i, 0, 0) if i < 2 else None, None, 1, i, 0, 0)
        for i, source in enumerate((str(tmp_path), "/clip.mp4", "cam0"))
    )
    model = SimpleNamespace(
        bundle=Bundle.open(default_bundle()), engines=SimpleNamespace(description="an engine on cpu")
    )
    return SimpleNamespace(map=places, model=model, top_k=3, finish_run=lambda: None)


def source(live: bool = False, dropped: int = 0) -> Any:
    return SimpleNamespace(live=live, dropped=dropped)


def test_degrees_in_a_name_are_no_place_of_the_query() -> None:
    answer = Recognition("q", matches=(Match("p0", 1.0, 0.5, "full"),))
    for name, known in (("@8.5417@47.3769@.jpg", False), ("@0465000.12@5247000.50@32@T@.jpg", True)):
        answered = Answered.from_answer(Frame(name, None, PICTURE, None, 0.0), answer)
        assert (answered.own is not None) == known


def add(record: RunRecord, i: int, accepted: bool | None, at: Pose | None, name: str | None = None) -> None:
    match = Match(f"p{i % 3}", 1.5, 0.75, "full", at)
    timings = {"decode": 1.0, "rerank": 8.0 + i, "total": 9.0 + i}
    frame = Frame(name or f"q{i}", float(i), PICTURE, None, 1.0, pose=None if at is None else Pose(at.x, 1.0, 0.0))
    record.add(frame, Recognition(frame.name, matches=(match,), accepted=accepted, complete=i > 0, timings=timings))


def fail(record: RunRecord, name: str) -> None:
    record.add(Frame(name, None, None, f"{name} is damaged", 1.0), Recognition(name, error=f"{name} is damaged"))


def break_off(out: Path, recognizer: Any, error: BaseException) -> None:
    """A run that ends with `error` after its first answer."""
    with reporting(out, "drive", source(), recognizer) as record:
        add(record, 0, None, None)
        raise error


def test_a_run_and_its_page(recognizer: Any, tmp_path: Path) -> None:
    out = tmp_path / "run.html"
    with reporting(out, HOSTILE, source(live=True, dropped=7), recognizer) as record:
        add(record, 0, True, Pose(0, 0, 0))
        add(record, 1, False, Pose(10, 0, 0), HOSTILE)
        add(record, 2, None, None)
        fail(record, "broken & gone")
        assert not out.exists()
    page = Page(out.read_text())
    assert page.count("svg") == 3  # places, scores and time
    assert [page.count("circle", kind) for kind in ("place", "accepted", "rejected", "unjudged")] == [2, 2, 2, 1]
    assert page.count("line", "threshold") == 0
    assert [page.count("div", f"strip {kind}") for kind in ("accepted", "rejected", "unjudged")] == [1, 1, 1]
    assert page.count("input") == 4  # all, accepted, rejected, not judged
    assert page.count("path") == 2
    assert page.count("img") == 5  # three queries, p0 from its file and p1 from the map
    assert (page.count("polygon"), page.count("polygon", "point")) == (5, 3)  # two steps, three answers
    for said in (
        "went on until it was stopped",
        "Frames dropped\n7\n",
        "Accepted / rejected\n1 / 1\n1 not judged",
        "Metres off\n1.0\nmedian of 2 answers whose query has a place; 95 % are within 1.0; ",
        "1 compared fewer candidates",
        "broken & gone is damaged",
        "Queries and their best matches 3 of 3",
        "The longest of all took 11.0 ms",
        "Lines lead from the places of 2 queries",
        "the map stores no thumbnail of it, and there is no file to show",
        "p0, score +1.500, similarity 0.750, accepted, 1.0 m off",
        HOSTILE.replace("\udcff", "\\udcff"),
    ):
        assert said in page.text, said


def test_the_way_of_the_sequence_filter_and_the_threshold_are_drawn(recognizer: Any, tmp_path: Path) -> None:
    out = tmp_path / "run.html"
    with reporting(out, "drive", source(), recognizer) as record:
        for i in range(4):
            match = Match("p0", 3.0 - i, 0.5, "full", Pose(0, 0, 0))
            place = Filtered("p1", 0.9, 0.1, None if i == 1 else Pose(float(i), 1, 0))
            answer = Recognition(
                f"long/name_{i}", matches=(match,), accepted=i < 2, acceptance=acceptance(1.5), sequence=place
            )
            record.add(Frame(f"long/name_{i}", float(i), PICTURE, None, 1.0), answer)
    page = Page(html := out.read_text())
    assert page.count("circle", "sequence") == 3
    assert re.search(r'<path class="sequence" d="(M[\d.]+ [\d.]+L[\d.]+ [\d.]+){2}"/>', html)
    assert "The black line with rings is the way that the sequence filter gives." in page.text
    assert page.count("line", "threshold") == 1
    assert "The dashed line is the threshold, 1.500." in page.text
    assert "2: long/name_1 -> p0, score +2.000, similarity 0.500, accepted" in page.text
    assert "long/<wbr>name_<wbr>3" in html  # lines break between the parts of a name
    assert page.count("input") == 4


def test_a_page_without_places_or_thresholds_says_so(recognizer: Any, tmp_path: Path) -> None:
    out = tmp_path / "run.html"
    with reporting(out, "folder", source(), recognizer) as record:
        fail(record, "a")
    page = Page(out.read_text())
    assert page.count("img") == page.count("circle", "unjudged") == 0
    assert "There was no answer." in page.text
    assert "No matched picture has a pose" in page.text
    assert "Frames dropped" not in page.text
    assert "not calibrated" in page.text


@pytest.mark.parametrize(
    ("error", "said"), [(KeyboardInterrupt(), "was interrupted"), (MapError("the <map> is gone"), "the <map> is gone")]
)
def test_a_run_that_breaks_off_has_its_page(recognizer: Any, tmp_path: Path, error: BaseException, said: str) -> None:
    out = tmp_path / "run.html"
    with pytest.raises(type(error)):
        break_off(out, recognizer, error)
    assert said in Page(out.read_text()).text


def test_errors_of_the_page_and_of_the_run(
    recognizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for out in (tmp_path, tmp_path / "none" / "run.html"):
        with pytest.raises(PairVPRError), reporting(out, "drive", source(), recognizer):
            pytest.fail("not refused before the run")
    with pytest.raises(MapError), reporting(tmp_path / "run.html", "drive", source(), recognizer):
        raise MapError("before the first answer")
    assert not (tmp_path / "run.html").exists()

    def full(*_: object) -> None:
        raise PairVPRError("no room")

    monkeypatch.setattr(run_page, "write_page", full)
    with pytest.raises(MapError, match="own failure"):
        break_off(tmp_path / "run.html", recognizer, MapError("the run's own failure"))
    assert "no room" in caplog.text


def test_a_long_run_takes_no_more_room(recognizer: Any, tmp_path: Path) -> None:
    record = RunRecord()
    for i in range(3 * ANSWERS):
        add(record, i % 50, None, Pose(i % 50, 0, 0))
        fail(record, f"x{i}")
    assert (record.total, record.unread) == (6 * ANSWERS, 3 * ANSWERS)
    assert ANSWERS // 2 <= len(record.answers.items) <= ANSWERS
    assert STRIPS // 2 <= len(record.strips.items) <= STRIPS
    assert len(record.latency.bins) <= BINS
    assert list(record.errors) == [f"x{i} is damaged" for i in range(3 * ANSWERS - ERRORS, 3 * ANSWERS)]
    page = Page(run_page.render(record, "drive", source(), recognizer, "came to its end"))
    assert "Queries and their best matches" in page.text
    assert f"{record.unread}, the last {ERRORS}" in page.text
    assert f"Percentiles are of {len(record.answers.items)} evenly chosen answers" in page.text


def test_times_stay_exact_in_sum_and_maximum() -> None:
    latency = Latency()
    for i in range(10 * BINS + 1):
        latency.add(float(i), {"encode": float(i), "total": 5000.0 if i == 777 else 1.0})
    assert sum(each.count for each in latency.bins) == 10 * BINS + 1
    assert sum(each.sums["encode"] for each in latency.bins) == sum(range(10 * BINS + 1))
    assert latency.longest == 5000.0
    assert [each.begun for each in latency.bins] == [16.0 * i for i in range(len(latency.bins))]


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 12, 13, 100, 1000])
def test_thinned_items_have_even_distances(count: int) -> None:
    thinned: Thinned[int] = Thinned(6)
    for i in range(count):
        thinned.offer(lambda i=i: i)
    kept = thinned.items
    assert len(kept) <= 6
    assert len(kept) >= min(count, 3)
    stride = kept[1] - kept[0] if len(kept) > 1 else 1
    assert kept == list(range(0, count, stride))
