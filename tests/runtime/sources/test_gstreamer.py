"""CSI cameras: a real GStreamer child process and pipe, with its test picture in the camera's place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr.cli.run import main as pairvpr_run
from pairvpr.errors import SourceError
from pairvpr.runtime.mapping.builder import add_pictures
from pairvpr.runtime.model import load_model
from pairvpr.runtime.sources import LiveSource, gstreamer, live, open_source
from pairvpr.runtime.sources.gstreamer import GstreamerFeed
from tests.scenes import draw_scene

SIZE = (64, 48)
RED = "videotestsrc pattern=red is-live=true num-buffers={buffers} ! video/x-raw,format=RGBA,width=64,height=48"

needs_gstreamer = pytest.mark.skipif(
    shutil.which(gstreamer.PROGRAM) is None, reason="needs gstreamer1.0-tools and gstreamer1.0-plugins-base"
)


def feed(pipeline: str, timeout: float = 20) -> GstreamerFeed:
    return GstreamerFeed(pipeline, SIZE, "csi0", timeout=timeout, advice="see to it")


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """GStreamer's test picture in place of a camera, which is lost after 12 frames."""
    monkeypatch.setattr(gstreamer, "CSI_CAMERA", RED.format(buffers=12) + ",framerate=20/1")
    monkeypatch.setattr(gstreamer, "CSI_SIZE", SIZE)
    monkeypatch.setattr(live, "FIRST_WAIT", 0.1)


@needs_gstreamer
def test_frames_come_whole_and_in_order() -> None:
    pattern = "videotestsrc pattern=smpte num-buffers=5 ! video/x-raw,format=RGBA,width=64,height=48"
    source = feed(pattern)
    shots = source.shots()
    pictures = [np.asarray(next(shots).as_frame("x", 1.0).picture) for _ in range(5)]
    with pytest.raises(SourceError, match=r"csi0 gives no pictures \(it ended\): see to it"):
        next(shots)
    source.close()
    source.close()
    for picture in pictures:
        assert picture.shape == (48, 64, 3)
        # The bars of SMPTE's pattern: from white and yellow on the left to red and blue on the right.
        assert (
            np.abs(
                picture[10, [4, 13, 50, 60]].astype(int) - [(255,) * 3, (255, 255, 0), (255, 0, 0), (0, 0, 255)]
            ).max()
            < 8
        )


@needs_gstreamer
def test_a_camera_that_is_lost_goes_on(camera: None, caplog: pytest.LogCaptureFixture) -> None:
    numbers = []
    with open_source("csi0") as source:
        assert isinstance(source, LiveSource)
        for frame in source:
            assert np.abs(np.asarray(frame.picture).astype(int) - (255, 0, 0)).max() < 3
            numbers.append(int(frame.name.removeprefix("csi0#")))
            if numbers[-1] >= 15:
                break
    assert numbers == sorted(set(numbers))
    assert "csi0 gives no pictures (it ended)" in caplog.text
    assert "csi0 is connected again" in caplog.text


@needs_gstreamer
def test_the_child_ends_with_its_source() -> None:
    source = feed(RED.format(buffers=-1))
    child = source._process
    assert child.poll() is None
    source.close()
    assert child.poll() is not None


@needs_gstreamer
def test_a_camera_that_gives_nothing() -> None:
    with pytest.raises(SourceError, match=r"csi0 gives no pictures \(no data in time\): see to it"):
        feed(RED.format(buffers=-1) + " ! valve drop=true", timeout=1)


@needs_gstreamer
@pytest.mark.skipif(Path("/etc/nv_tegra_release").exists(), reason="a Jetson may have the camera")
def test_a_computer_without_csi_cameras(tmp_path: Path) -> None:
    result = CliRunner().invoke(pairvpr_run, ["--db", str(tmp_path), "--query", "csi0"])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert 'csi0 gives no pictures (erroneous pipeline: no element "nvarguscamerasrc"): check that' in result.stderr


def test_without_gstreamer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gstreamer, "PROGRAM", "gst-launch-that-is-not-there")
    with pytest.raises(
        SourceError, match=r"csi0 needs gst-launch.* \(No such file.*\): sudo apt install gstreamer1\.0"
    ):
        open_source("csi0")


@needs_gstreamer
def test_an_answer_for_what_it_sees(camera: None, tmp_path: Path) -> None:
    for place in range(2):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(draw_scene(place, 0, (96, 128))).save(tmp_path / "in" / f"{place}.png")
    add_pictures(tmp_path / "in", tmp_path / "map", load_model(), create=True)
    arguments = [
        "--db",
        str(tmp_path / "map"),
        "--query",
        "csi0",
        "--duration",
        "0.3",
        "--format",
        "jsonl",
        "--no-rerank",
    ]
    result = CliRunner().invoke(pairvpr_run, arguments)
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[0]["query"].startswith("csi0#0000")
    assert lines[0]["error"] is None
