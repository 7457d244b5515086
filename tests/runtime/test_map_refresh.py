"""A map that changes, or cannot be read just now, holds up no answer."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from pairvpr.errors import MapError
from pairvpr.runtime.map import MapWriter, catalog, tables
from pairvpr.runtime.map_refresh import Refresher
from pairvpr.runtime.mapping.builder import add_pictures
from pairvpr.runtime.model import Model, load_model
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


PICTURES = [Image.fromarray(draw_scene(place, 0, (96, 128))) for place in range(3)]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(None, "cpu", threads=1)  # more threads would not outlive a fork


@pytest.fixture
def path(tmp_path: Path, model: Model) -> Path:
    """A map of two pictures."""
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate(PICTURES[:2]):
        picture.save(tmp_path / f"pictures/{number}.png")
    add_pictures(tmp_path / "pictures", tmp_path / "map", model, create=True)
    return tmp_path / "map"


def add_third(path: Path, model: Model) -> None:
    """Add the third picture."""
    info = model.bundle.info
    with MapWriter.open(
        path,
        identity=info.identity,
        descriptor_dim=info.dims.descriptor,
        token_shape=(info.dims.tokens, info.dims.token_dim),
    ) as writer:
        writer.add(name="2.png", source="camera", features=model.encode([PICTURES[2]]))


def assert_answers_before(recognizer: PlaceRecognizer, refresher: Refresher, go_on: Callable[[], None]) -> None:
    """Check that an answer comes of the old map, that later ones know the new picture, and nothing in another order."""
    refresher.poll()
    assert len(recognizer.recognize(PICTURES[2]).matches) == 2
    assert refresher._thread is not None
    waits = refresher._thread.is_alive()
    go_on()
    wait(refresher)
    refresher.poll()
    wait(refresher)
    answer = recognizer.recognize(PICTURES[2])
    assert (answer.best.name, len(answer.matches)) == ("2.png", 3)
    assert waits  # the look was not over when the answer came


def test_a_writer_that_stands_still_holds_up_no_answer(path: Path, model: Model) -> None:
    with PlaceRecognizer.open(path, device="cpu") as recognizer:
        refresher = Refresher(recognizer)
        add_third(path, model)
        with closing(sqlite3.connect(path / "map.sqlite", isolation_level=None)) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            os.utime(path / "map.sqlite")
            assert_answers_before(recognizer, refresher, lambda: writer.execute("ROLLBACK") and None)


def test_a_writer_stopped_inside_its_commit_holds_up_no_answer(path: Path, model: Model) -> None:
    """As by Ctrl-Z, a debugger, or a computer that swaps, with the lock that a commit holds while it writes."""
    with PlaceRecognizer.open(path, device="cpu") as recognizer:
        refresher = Refresher(recognizer)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                tables.insert = stop_and(tables.insert)
                catalog._begin = lambda connection: connection.execute("BEGIN EXCLUSIVE")
                add_third(path, model)
                code = 0
            finally:
                os._exit(code)
        assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])

        def go_on() -> None:
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            os.kill(child, signal.SIGCONT)
            assert os.waitpid(child, 0)[1] == 0

        os.utime(path / "map.sqlite")
        assert_answers_before(recognizer, refresher, go_on)


def stop_and(function: Callable[..., None]) -> Callable[..., None]:
    """Stop this process before its first call of a function."""
    stopped: list[bool] = []

    def stopping(*arguments: Any) -> None:
        if not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGSTOP)
        function(*arguments)

    return stopping


@pytest.mark.parametrize("nth", [1, 2])
def test_a_disk_that_takes_long_holds_up_no_answer(
    path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """The fsync of a segment, or of its folder, ends after the answer."""
    begun, go_on, count = threading.Event(), threading.Event(), []
    sync = os.fsync

    def slow(file: int) -> None:
        count.append(file)
        if len(count) == nth:
            begun.set()
            assert go_on.wait(60)
        sync(file)

    with PlaceRecognizer.open(path, device="cpu") as recognizer:
        monkeypatch.setattr(os, "fsync", slow)
        writer = threading.Thread(target=add_third, args=(path, model))
        writer.start()
        assert begun.wait(60)
        refresher = Refresher(recognizer)
        refresher.poll()
        assert len(recognizer.recognize(PICTURES[2]).matches) == 2
        wait(refresher)  # nothing is committed, so that there is nothing to wait for
        assert writer.is_alive()
        go_on.set()
        writer.join(60)
        refresher.poll()
        wait(refresher)
        assert recognizer.recognize(PICTURES[2]).best.name == "2.png"


@pytest.mark.parametrize("step", [-86_400.0, -0.5, 86_400.0])
def test_a_clock_that_is_set_hides_no_commit(
    path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """The catalog's date is then older than before, or in the future. Answers and looks go on."""
    file, now = path / "map.sqlite", time.time_ns()
    os.utime(file, ns=(now - 10**10, now - 10**10))
    with PlaceRecognizer.open(path, device="cpu") as recognizer:
        refresher = Refresher(recognizer)
        refresher.poll()
        wait(refresher)
        monkeypatch.setattr(time, "time_ns", lambda: now + int(step * 1e9))
        monkeypatch.setattr(time, "time", lambda: now / 1e9 + step)
        add_third(path, model)
        os.utime(file, ns=(now + int(step * 1e9),) * 2)
        refresher.poll()
        wait(refresher)
        assert recognizer.recognize(PICTURES[2]).best.name == "2.png"
        refresher.poll()
        wait(refresher)
        assert len(recognizer.recognize(PICTURES[2]).matches) == 3
