"""The demo from pictures to page; what is said of folders, names and pictures that are not as they should be."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pairvpr.demo import TOWN
from pairvpr.demo import album as album_module
from pairvpr.demo.album import Album, another_look, choose_pictures, copy_album, town_album
from pairvpr.demo.outcome import DemoResult, Outcome, median_timings
from pairvpr.demo.page import PER_GROUP, render
from pairvpr.demo.run import MARKER, ignore_progress, run_demo
from pairvpr.errors import BundleError, PairVPRError, SourceError
from pairvpr.runtime import Match, PlaceRecognizer, Recognition
from tests.html.page_reader import Page
from tests.scenes import draw_scene

HOSTILE = '<script>alert("&\'1")</script>$style${x}.jpg'
STEPS = ("decode", "preprocess", "encode", "search", "gather", "rerank", "total")


@pytest.fixture
def album(tmp_path: Path) -> Album:
    """Two places, the first with a hostile title."""
    folder = tmp_path / "map"
    folder.mkdir()
    for place in range(2):
        Image.fromarray(draw_scene(place, 0, (60, 80))).save(folder / f"{place}.jpg")
    return Album(folder, {"0.jpg": HOSTILE, "1.jpg": "place 1"}, (), ())


def outcome(album: Album, truth: str, descriptor: str, reranked: str) -> Outcome:
    """A query of a place, and what came first before and after re-ranking."""
    matches = [
        Match(name, 1.0 if name == reranked else -1.0, 0.9 if name == descriptor else 0.5, "full")
        for name in album.places
    ]
    matches.sort(key=lambda match: -(match.score or 0))
    timings = dict.fromkeys(STEPS, 12.5)
    answer = Recognition("query", matches=tuple(matches), compared=2, complete=True, timings=timings)
    return Outcome(album.map_folder / truth, truth, answer, f"a part of {album.places[truth]}")


def result(outcomes: list[Outcome], trained: bool = False, notes: tuple[str, ...] = ()) -> DemoResult:
    timings = median_timings(outcomes)
    return DemoResult(
        places=2, queries=len(outcomes), top_k=2, recall_before=0.25, recall_after=0.5, milliseconds=12.5,
        timings=timings, trained=trained, preset="nano", engine="an <engine>", notes=notes,
        report=Path("index.html"), map=Path("map"),
    )  # fmt: skip


def save_scenes(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(count):
        Image.fromarray(draw_scene(place, 0, (60, 80))).save(folder / f"{place}.png")


def test_page_escapes_names_and_needs_nothing_else(album: Album) -> None:
    outcomes = [outcome(album, "0.jpg", "1.jpg", "0.jpg"), outcome(album, "1.jpg", "0.jpg", "0.jpg")]
    html = render(result(outcomes, notes=(f"read {HOSTILE}",)), album, outcomes)
    page = Page(html)
    assert HOSTILE in page.text
    assert "an <engine>" in page.text
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert len(page.pictures) == 6
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.pictures)


def test_page_shows_the_figures_and_what_changed(album: Album) -> None:
    kinds = {
        "Put right by re-ranking": ("0.jpg", "1.jpg", "0.jpg"),
        "Put wrong by re-ranking": ("0.jpg", "0.jpg", "1.jpg"),
        "Wrong throughout": ("0.jpg", "1.jpg", "1.jpg"),
        "Right throughout": ("1.jpg", "1.jpg", "1.jpg"),
    }
    outcomes = [outcome(album, *names) for names in kinds.values()]
    text = " ".join(Page(render(result(outcomes), album, outcomes)).text.split())
    assert "25.0 % → 50.0 %" in text
    assert "guessing would give 50.0 %" in text
    assert "+1 / −1" in text
    assert "12.5 ms" in text
    assert [title for title in kinds if title in text] == list(kinds)
    assert sorted(kinds, key=text.index) == list(kinds)
    assert "The right place was number 2 by descriptor, number 1 after re-ranking." in text
    assert text.count("✓ right") == 4
    assert text.count("✗ wrong") == 4
    alone = " ".join(Page(render(result(outcomes[:1]), album, outcomes[:1])).text.split())
    assert [title for title in kinds if title in alone] == ["Put right by re-ranking"]


def test_page_limits_what_it_shows_of_a_kind(album: Album) -> None:
    outcomes = [outcome(album, "0.jpg", "0.jpg", "0.jpg")] * (PER_GROUP + 3)
    page = Page(render(result(outcomes), album, outcomes))
    assert len(page.pictures) == 3 * PER_GROUP
    assert f"{PER_GROUP + 3}, {PER_GROUP} shown" in page.text


def test_page_says_that_weights_were_never_trained(album: Album) -> None:
    outcomes = [outcome(album, "0.jpg", "0.jpg", "0.jpg")]
    assert "never trained" in Page(render(result(outcomes), album, outcomes)).text
    assert "never trained" not in Page(render(result(outcomes, trained=True), album, outcomes)).text


def test_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("x")
    with pytest.raises(PairVPRError, match=r"not empty and holds no demo; choose"):
        run_demo(tmp_path)
    with pytest.raises(PairVPRError, match=r"precious.txt is a file"):
        run_demo(precious)
    with pytest.raises(PairVPRError, match=r"precious.txt"):
        run_demo(precious / "below")
    assert list(tmp_path.iterdir()) == [precious]
    assert precious.read_text() == "x"


def test_places_of_the_town_have_names(tmp_path: Path) -> None:
    album = town_album(tmp_path, 3, 2, ignore_progress)
    assert [title.split(",")[0] for title in album.places.values()] == ["place 1", "place 2", "place 3"]
    assert all(re.fullmatch(r"place \d, [a-z]+", title) for title in album.places.values())
    shown = [(query.title.split(",")[0], query.truth) for query in album.queries]
    assert all(album.places[truth].startswith(f"{place},") for place, truth in shown)
    assert len(shown) == 6
    assert {query.title.split(", ")[1] for query in album.queries} <= {
        "day",
        "dusk",
        "fog",
        "night",
        "overcast",
        "rain",
        "snow",
    }


def test_missing_model_leaves_the_folder_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / MARKER).touch()
    (out / "index.html").write_text("earlier")
    with pytest.raises(BundleError, match="no model bundle"):
        run_demo(out, model=tmp_path / "nothing")
    assert (out / "index.html").read_text() == "earlier"


@pytest.mark.parametrize("numbers", [{"places": 1}, {"visits": 0}, {"top_k": 0}])
def test_numbers_that_make_no_demo(tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a demo needs at least"):
        run_demo(tmp_path / "out", **numbers)  # type: ignore[arg-type]


def test_own_pictures_are_chosen_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(album_module, "MAX_PICTURES", 4)
    save_scenes(tmp_path / "own", 1)
    for number in range(10):
        (tmp_path / "own" / f"{number}.png").touch()
    chosen, found = choose_pictures(tmp_path / "own", tmp_path / "out")
    assert [name for name, _ in chosen] == ["0.png", "3.png", "6.png", "9.png"]
    assert found == 10


def test_too_few_own_pictures(tmp_path: Path) -> None:
    save_scenes(tmp_path / "one", 1)
    with pytest.raises(SourceError, match="fewer than 2 pictures"):
        choose_pictures(tmp_path / "one", tmp_path / "out")
    with pytest.raises(SourceError, match="not a folder"):
        choose_pictures(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "one" / "broken.png").write_bytes(b"x")
    chosen, found = choose_pictures(tmp_path / "one", tmp_path / "out")
    with pytest.raises(SourceError, match=r"1 of 2 pictures can be read.*broken\.png"):
        copy_album(tmp_path / "out", chosen, found, 1, ignore_progress)


def test_own_pictures_below_the_output_do_not_count(tmp_path: Path) -> None:
    save_scenes(tmp_path, 2)
    save_scenes(tmp_path / "out" / "pictures", 3)
    _, found = choose_pictures(tmp_path, tmp_path / "out")
    assert found == 2
    for inside in (tmp_path / "out", tmp_path / "out" / "pictures"):
        with pytest.raises(SourceError, match="where the demo writes"):
            choose_pictures(inside, tmp_path / "out")


def test_own_album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(album_module, "MAX_QUERIES", 4)
    own = tmp_path / "own"
    save_scenes(own / "sub", 3)
    (own / "broken <i>.jpg").write_bytes(b"x")
    Image.new("RGB", (2000, 20), "green").save(own / "long.png")
    Image.new("L", (16, 16), 90).save(own / "least.png")
    chosen, found = choose_pictures(own, tmp_path / "out")
    album = copy_album(tmp_path / "out", chosen, found, 2, ignore_progress)
    titles = set(album.places.values())
    assert titles == {"sub/0.png", "sub/1.png", "sub/2.png", "long.png", "least.png"}
    assert {path.name for path in album.map_folder.iterdir()} == set(album.places)
    assert len(album.queries) == 4
    for query in album.queries:
        assert query.truth in album.places
        with Image.open(query.file) as picture:
            assert min(picture.size) >= 16
    for name, title in album.places.items():
        with Image.open(album.map_folder / name) as picture:
            expected = {"long.png": (640, 16), "least.png": (16, 16)}.get(title, (80, 60))
            assert picture.size == expected
    assert "1 pictures could not be read and were left out; the first" in album.notes[-1]
    assert "Only the picture that a query was cut from" in album.notes[0]


def test_another_look_is_a_part_in_another_light() -> None:
    picture = Image.fromarray(draw_scene(0, 0))
    first, again = (another_look(picture, (0, 1)) for _ in range(2))
    assert np.array_equal(np.asarray(first), np.asarray(again))
    assert 0.7 * 320 < first.width < 0.91 * 320
    other = another_look(picture, (1, 1))
    assert first.size != other.size


def test_demo_end_to_end_and_again(tmp_path: Path) -> None:
    out, steps = tmp_path / "out", []
    result = run_demo(out, places=3, visits=1, progress=lambda *step: steps.append(step))
    assert (result.places, result.queries, result.top_k) == (3, 3, 3)
    assert 0 <= result.recall_before <= 1
    assert 0 <= result.recall_after <= 1
    assert result.milliseconds == result.timings["total"] > 0
    assert tuple(result.timings) == STEPS
    html = result.report.read_text(encoding="utf-8")
    assert "://" not in html
    assert len(Page(html).pictures) == 9
    assert ("never trained" in html) == (not result.trained)
    for title, total in (("copying pictures", 3), ("building the map", 3), ("recognising", 3)):
        assert (title, total, total) in steps

    # The map is a map like any other, and its own picture is in it.
    with PlaceRecognizer.open(result.map) as recognizer:
        picture = sorted((out / "pictures" / "map").iterdir())[1]
        answer = recognizer.recognize(picture)
        assert max(answer.matches, key=lambda match: match.similarity).name == picture.name
        assert json.loads(answer.to_json())["compared"] == 3

    (out / "mine.txt").write_text("x")
    again = run_demo(out, places=2, visits=1, top_k=1)
    assert (again.places, again.queries, again.top_k) == (2, 2, 1)
    assert again.recall_before == again.recall_after
    assert len(list((out / "pictures" / "map").iterdir())) == 2
    assert (out / "mine.txt").read_text() == "x"


def test_the_town_that_ships(tmp_path: Path) -> None:
    album = town_album(tmp_path, 30, 4, ignore_progress)
    assert (len(album.places), len(album.queries)) == (30, 120)
    assert {query.truth for query in album.queries} == set(album.places)
    size = sum(file.stat().st_size for file in TOWN.rglob("*.jpg"))
    assert size < 5_000_000


def test_demo_with_own_pictures(tmp_path: Path) -> None:
    save_scenes(tmp_path / "own" / HOSTILE.split("/")[0], 3)
    before = sorted(tmp_path.rglob("*"))
    result = run_demo(tmp_path / "out", tmp_path / "own", visits=1)
    assert (result.places, result.queries) == (3, 3)
    html = result.report.read_text(encoding="utf-8")
    assert not re.search(r"<script|https?:", html)
    assert "your own pictures" in html
    assert [path for path in sorted(tmp_path.rglob("*")) if "out" not in path.parts] == before


def test_demo_result_is_frozen(album: Album) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        result([outcome(album, "0.jpg", "0.jpg", "0.jpg")]).places = 3  # type: ignore[misc]
