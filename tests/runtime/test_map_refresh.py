"""A map that changes, or cannot be read just now, holds up no answer."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from pairvpr.errors import MapError
from pairvpr.runtime.map_refresh import Refresher
from pairvpr.runtime.mapping.builder import add_pictures
from pairvpr.runtime.model import load_model
from pairvpr.runtime.recognizer import PlaceRecognizer
from tests.scenes import draw_scene


@pytest.fixture(autouse=True)
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Refresher, "INTERVAL", 0.0)


def wait(refresher: Refresher) -> None:
    """Wait until the look that was begun has ended."""
    assert refresher._thread is not None
    refresher._thread.join(60)
    assert not refresher._thread.is_alive()


def of(refresh: Callable[[], Any]) -> Refresher:
    return Refresher(SimpleNamespace(refresh=refresh))  # type: ignore[arg-type]


def test_one_look_at_a_time_and_nobody_waits() -> None:
    begun, go_on, looks = threading.Semaphore(0), threading.Event(), []

    def refresh() -> None:
        looks.append(threading.current_thread())
        begun.release()
        assert go_on.wait(60)

    refresher = of(refresh)
    for _ in range(3):
        refresher.poll()
    assert begun.acquire(timeout=60)
    assert len(looks) == 1
    assert looks[0] is not threading.current_thread()
    go_on.set()
    wait(refresher)
    refresher.poll()
    assert begun.acquire(timeout=60)
    wait(refresher)
    assert len(looks) == 2


def test_an_error_is_logged_once_until_a_look_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    faults: Iterator[str] = iter(["a", "a", "b", "", "b"])

    def refresh() -> None:
        if text := next(faults):
            raise MapError(text)

    refresher = of(refresh)
    for _ in range(5):
        refresher.poll()
        wait(refresher)
    assert [text.partition(";")[0] for text in caplog.messages] == ["a", "b", "b"]


def test_a_bug_ends_the_run() -> None:
    def refresh() -> None:
        raise ZeroDivisionError

    refresher = of(refresh)
    refresher.poll()
    wait(refresher)
    with pytest.raises(ZeroDivisionError):
        refresher.poll()


def test_a_writer_that_stands_still_holds_up_no_answer(tmp_path: Path) -> None:
    """The answer comes while the look at the map still waits for the writer, and later answers know the new picture."""
    (tmp_path / "pictures").mkdir()
    pictures = [Image.fromarray(draw_scene(place, 0, (96, 128))) for place in range(3)]
    for number, picture in enumerate(pictures[:2]):
        picture.save(tmp_path / f"pictures/{number}.png")
    model = load_model(None, "cpu")
    add_pictures(tmp_path / "pictures", tmp_path / "map", model, create=True)
    with PlaceRecognizer.open(tmp_path / "map", device="cpu") as recognizer:
        refresher = Refresher(recognizer)
        pictures[2].save(tmp_path / "pictures/2.png")
        add_pictures(tmp_path / "pictures", tmp_path / "map", model)
        with closing(sqlite3.connect(tmp_path / "map" / "map.sqlite", isolation_level=None)) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            os.utime(tmp_path / "map" / "map.sqlite")
            refresher.poll()
            answer = recognizer.recognize(pictures[2])
            assert refresher._thread is not None
            assert refresher._thread.is_alive()
            assert len(answer.matches) == 2
            writer.execute("ROLLBACK")
        wait(refresher)
        assert recognizer.recognize(pictures[2]).best.name == "2.png"
