"""Reading ahead keeps the order, the bound, the exceptions and the scope of remarks, and ends with its block."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pairvpr.errors import SourceError
from pairvpr.runtime import Model, load_model
from pairvpr.runtime.ahead import fit_frame, fitted_frames, read_ahead
from pairvpr.runtime.remarks import remark, remark_scope
from pairvpr.runtime.sources import open_source
from pairvpr.runtime.sources.base import Frame
from tests.scenes import draw_scene


def wait_for(condition: threading.Event) -> None:
    assert condition.wait(20)


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_order_and_no_more_than_allowed_are_ahead(depth: int) -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    got = []
    with read_ahead(items(), depth) as ahead:
        for number in ahead:
            got.append(number)
            time.sleep(0.002)  # so that the thread gets as far as it may
            assert len(made) <= len(got) + depth
    assert got == list(range(20))


def test_the_next_item_is_made_while_one_is_used() -> None:
    begun = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        begun.set()
        yield 1

    with read_ahead(items()) as ahead:
        assert next(ahead) == 0
        wait_for(begun)  # without asking for the next one


def test_an_exception_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise SourceError("torn")

    got = []
    with pytest.raises(SourceError, match="torn"), read_ahead(items(), 8) as ahead:
        got.extend(iter(lambda: next(ahead), None))
    assert got == [0, 1, 2]


def test_leaving_the_block_ends_the_thread_and_closes_the_items() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(10**6)
        finally:
            closed.set()

    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), read_ahead(items()) as first, read_ahead(first, 3) as ahead:
        interrupt(next(ahead))
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "pairvpr pictures"]


def test_remarks_of_the_thread_belong_to_the_scope_around_it(caplog: pytest.LogCaptureFixture) -> None:
    def items() -> Iterator[int]:
        remark("odd")
        yield 1

    with remark_scope():
        for _ in range(2):
            with read_ahead(items()) as ahead:
                assert list(ahead) == [1]
    assert [record.getMessage() for record in caplog.records] == ["odd"]
    with (
        pytest.raises(SourceError, match="odd; --strict stops here"),
        remark_scope(strict=True),
        read_ahead(items()) as a,
    ):
        next(a)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model()


def test_fitted_frames_are_those_of_the_source(tmp_path: Path, model: Model) -> None:
    for place in range(3):
        Image.fromarray(draw_scene(place, 0, (120, 160))).save(tmp_path / f"{place}.png")
    (tmp_path / "1.png").write_bytes(b"torn")
    with open_source(str(tmp_path)) as source:
        plain = list(source)
        with fitted_frames(source, model, ahead=True) as frames:
            fitted = list(frames)
        with fitted_frames(source, model, ahead=False) as frames:
            assert all(frame.fitted is None for frame in frames)
    assert [(each.name, each.error) for each in fitted] == [(each.name, each.error) for each in plain]
    for each, known in zip(fitted, plain, strict=True):
        if known.picture is None:
            assert each.fitted is None
        else:
            assert each.fitted is not None
            np.testing.assert_array_equal(each.fitted[0], model.fit(known.picture)[0])


def test_every_camera_of_a_frame_is_fitted(model: Model) -> None:
    picture = Image.fromarray(draw_scene(0, 0, (120, 160)))
    other = Frame("b", None, picture, None, 0.0)
    frame = fit_frame(dataclasses.replace(other, name="a", beside=(other,)), model)
    assert all(camera.fitted is not None and camera.fit_ms > 0 for camera in frame.cameras)


def test_a_live_source_is_read_when_a_frame_is_asked_for(tmp_path: Path, model: Model) -> None:
    Image.fromarray(draw_scene(0, 0, (120, 160))).save(tmp_path / "0.png")
    with open_source(str(tmp_path)) as source:
        source.live = True
        with fitted_frames(source, model, ahead=True) as frames:
            assert next(frames).fitted is None
        assert not [thread for thread in threading.enumerate() if thread.name == "pairvpr pictures"]


@pytest.mark.parametrize("kind", ["sqlite", "mcap", "drive.bag"])
def test_a_bag_opened_here_is_read_in_the_thread(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("rosbags", reason="needs the extra bags")
    from tests.runtime.sources.bag_writer import write_drive

    path = write_drive(tmp_path, kind)
    with open_source(str(path)) as source:
        wanted = list(source)
    with open_source(str(path)) as source, read_ahead(iter(source)) as frames:
        found = list(frames)
    assert [(each.name, each.timestamp, each.pose) for each in found] == [
        (each.name, each.timestamp, each.pose) for each in wanted
    ]
    assert all(np.array_equal(np.asarray(a.picture), np.asarray(b.picture)) for a, b in zip(found, wanted, strict=True))
