"""Fewer frames, turned and cut pictures: the same options for every source and both commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr.cli.main import main as pairvpr
from pairvpr.cli.run import main as pairvpr_run
from pairvpr.errors import SourceError
from pairvpr.runtime.remarks import remark_scope
from pairvpr.runtime.sources import Frame, LiveSource, Source, SourceOptions, open_source
from pairvpr.runtime.sources.base import Wanted, every_frame
from pairvpr.runtime.sources.transforms import TransformedSource, _FrameFilter
from pairvpr.runtime.sources.video import VideoFeed, open_container
from tests.scenes import draw_scene

SIZE = (96, 128)
START = 1_600_000_000_000_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures, the fourth of which cannot be read."""
    (tmp_path / "in").mkdir()
    for i in range(7):
        Image.fromarray(draw_scene(i, 0, SIZE)).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "3.png").write_bytes(b"broken")
    return tmp_path / "in"


def euroc(folder: Path, seconds: list[float]) -> Path:
    """A camera folder with frames at these seconds."""
    cam = folder / "cam0"
    (cam / "data").mkdir(parents=True)
    stamps = [START + round(each * 1e9) for each in seconds]
    for stamp in stamps:
        Image.fromarray(draw_scene(0, 0, SIZE)).save(cam / "data" / f"{stamp}.png")
    (cam / "data.csv").write_text("".join(f"{stamp},{stamp}.png\n" for stamp in stamps))
    return cam


def numbers(source: str | Path, **options: object) -> list[int]:
    """The chosen frames, by their numbers in the whole source."""
    with open_source(str(source)) as opened:
        names = list(opened.names)
    with open_source(str(source), SourceOptions(**options)) as opened:
        return [names.index(frame.name) for frame in opened]


def test_every(folder: Path) -> None:
    with open_source(str(folder), SourceOptions(every=3)) as source:
        assert (source.length, source.names) == (3, ["0.png", "3.png", "6.png"])
        assert [(frame.name, frame.error is None) for frame in source] == [
            ("0.png", True),
            ("3.png", False),
            ("6.png", True),
        ]


def test_start_and_duration(tmp_path: Path) -> None:
    cam = euroc(tmp_path, [0, 0.5, 1, 1.5, 2, 2.5])
    assert numbers(cam, start=0.5) == [1, 2, 3, 4, 5]
    assert numbers(cam, start=0.5, duration=1) == [1, 2]
    assert numbers(cam, duration=1.1) == [0, 1, 2]
    assert numbers(cam, start=0.5, every=2) == [2, 4]
    assert numbers(cam, start=9) == []


def test_nothing_is_read_after_the_end(tmp_path: Path) -> None:
    cam = euroc(tmp_path, [0, 1, 2])
    for file in sorted((cam / "data").iterdir())[1:]:
        file.write_bytes(b"broken")
    assert numbers(cam, duration=1) == [0]


@pytest.mark.parametrize("jitter", [0, 0.01])
def test_max_fps_keeps_the_rate(tmp_path: Path, jitter: float) -> None:
    rng = np.random.default_rng(0)
    seconds = [0.0, *(i / 30 + rng.uniform(-jitter, jitter) for i in range(1, 91))]
    taken = numbers(euroc(tmp_path, seconds), max_fps=10)
    assert len(taken) in (30, 31)
    assert numbers(tmp_path / "cam0", max_fps=1000) == list(range(91))


@pytest.mark.parametrize("jump", [-40.0, 50 * 365 * 86400.0])
def test_a_clock_that_is_set_begins_a_new_stretch(
    tmp_path: Path, jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    cam = euroc(tmp_path, [100 + i / 10 + jump * (i >= 30) for i in range(60)])
    with remark_scope():
        assert numbers(cam, max_fps=2) == list(range(0, 60, 5))
        assert numbers(cam, start=1) == list(range(10, 60))
        assert numbers(cam, duration=5) == list(range(50))
    assert "jumps of the clock" in caplog.text


def test_frames_lost_to_a_clock_that_stands_still_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with remark_scope():
        filter_ = _FrameFilter(SourceOptions(max_fps=10))
        assert [filter_.accept(i, f"{i}", stamp) for i, stamp in enumerate([5, 5, 5, 6])] == [True, False, False, True]
    assert "2 frames have the time stamp of the frame before, and are left out by --max-fps" in caplog.text


def test_choosing_by_time_needs_time_stamps(folder: Path) -> None:
    for options in ({"start": 1}, {"duration": 1}, {"max_fps": 1}):
        source = open_source(str(folder), SourceOptions(**options))
        with pytest.raises(SourceError, match=r"0\.png has no time stamp, .*: use --every instead"):
            list(source)


def test_rotate_and_crop(folder: Path) -> None:
    whole = draw_scene(0, 0, SIZE)
    for degrees, turned in ((90, np.rot90(whole, -1)), (180, np.rot90(whole, 2)), (270, np.rot90(whole))):
        frame = next(iter(open_source(str(folder), SourceOptions(rotate=degrees))))
        assert np.array_equal(np.asarray(frame.picture), turned)
    frame = next(iter(open_source(str(folder), SourceOptions(rotate=90, crop=(10, 20, 40, 50)))))
    assert np.array_equal(np.asarray(frame.picture), np.rot90(whole, -1)[20:70, 10:50])
    with pytest.raises(SourceError, match=r"--crop 100,0,40,50 exceeds 0\.png, of 128 x 96 pixels: choose"):
        list(open_source(str(folder), SourceOptions(crop=(100, 0, 40, 50))))


def test_a_single_picture_that_is_broken_still_raises(folder: Path) -> None:
    source = open_source(str(folder / "3.png"), SourceOptions(rotate=90))
    assert source.single
    with pytest.raises(SourceError, match=r"3\.png is not a picture"):
        list(source)


def test_a_live_source_ends_after_its_duration() -> None:
    pytest.importorskip("av")
    connect = partial(open_container, "testsrc=size=64x48:rate=20:duration=20,realtime", "test", format="lavfi")
    live = LiveSource("test", lambda: VideoFeed(connect(), "test"), endless=False)
    with TransformedSource(live, SourceOptions(start=0.2, duration=1, max_fps=5), None) as source:
        assert source.live
        frames = list(source)
    assert 3 <= len(frames) <= 5


def test_a_picture_of_a_live_source_that_does_not_fit_is_that_frames_error() -> None:
    """A camera that is set to another size does not end whoever reads it."""

    class Camera(Source):
        live, single, length, names, origin = True, False, None, None, "camera"

        def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
            for side in (64, 32, 64):
                yield Frame(f"camera#{side}", 0.0, Image.new("RGB", (side, side)), None, 0.0)

        def close(self) -> None:
            pass

    with TransformedSource(Camera(), SourceOptions(crop=(0, 0, 40, 40)), None) as source:
        sizes = [frame.picture and frame.picture.size for frame in source]
        errors = [frame.error for frame in source]
    assert sizes == [(40, 40), None, (40, 40)]
    assert errors == [None, "--crop 0,0,40,40 exceeds camera#32, of 32 x 32 pixels: choose a part inside", None]


def test_both_commands_take_source_options(folder: Path, tmp_path: Path) -> None:
    db, options = tmp_path / "map", ["--every", "2", "--rotate", "180", "--crop", "0,0,100,90"]
    for added in (4, 0):
        built = CliRunner().invoke(pairvpr, ["map", "build", str(folder), "--db", str(db), *options])
        assert built.exit_code == 0, built.stderr
        assert f"{added} pictures added" in built.stdout
    result = CliRunner().invoke(pairvpr_run, ["--db", str(db), "--query", str(folder), "--format", "jsonl", *options])
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["query"] for line in lines] == ["0.png", "2.png", "4.png", "6.png"]
    for line in lines:
        (own,) = (match for match in line["matches"] if match["name"] == line["query"])
        assert own["similarity"] == pytest.approx(1, abs=1e-4)
    added = CliRunner().invoke(pairvpr, ["map", "add", str(folder), "--db", str(db), "--rotate", "180"])
    assert "2 pictures added, 0 with a place, 4 already there, 1 could not be read" in added.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--every", "0"], "--every"),
        (["--start", "-1"], "--start"),
        (["--duration", "0"], "--duration"),
        (["--max-fps", "0"], "--max-fps"),
        (["--rotate", "45"], "--rotate"),
        (["--crop", "1,2,3"], "'1,2,3' is not X,Y,WIDTH,HEIGHT in pixels"),
        (["--crop", "1,2,3,-4"], "is not X,Y,WIDTH,HEIGHT"),
        (["--crop", "0,0,100,8"], "needs 16 pixels on each side, not 100 x 8"),
        (["--undistort", "none.yaml"], "the calibration none.yaml cannot be read"),
        (["--topic", "/image"], "only bags have topics"),
    ],
)
def test_mistakes_are_told_in_one_line(folder: Path, tmp_path: Path, options: list[str], told: str) -> None:
    for command, arguments in (
        (pairvpr, ["map", "build", str(folder), "--db", str(tmp_path / "map")]),
        (pairvpr_run, ["--db", str(tmp_path / "map"), "--query", str(folder)]),
    ):
        result = CliRunner().invoke(command, [*arguments, *options])
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.stderr
        assert told in result.stderr
    assert not (tmp_path / "map").exists()
