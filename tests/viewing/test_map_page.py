"""The page of a map: all of it is there, nothing of it is elsewhere, and it says what it does not show."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pairvpr.cli.main import main
from pairvpr.errors import MapError, PairVPRError
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.calibrated.acceptance import KEY
from pairvpr.runtime.features import Features
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.image import make_thumbnail
from pairvpr.runtime.map import MapWriter
from pairvpr.runtime.model import default_bundle
from pairvpr.viewing import map_page
from pairvpr.viewing.map_page import view_map
from tests.html.page_reader import Page
from tests.runtime.outputs.ros_contract import acceptance
from tests.scenes import draw_scene

HOSTILE = '<script>alert("&\'1")</script>$style${x}'
FEATURES = Features(np.full((1, 4), 0.5, np.float32), np.zeros((1, 2, 3), np.float16))[0]


def make_map(path: Path, rows: list[tuple[str, str, Pose | None, Gps | None]]) -> Path:
    bundle = Bundle.open(default_bundle())
    with MapWriter.open(
        path, identity=bundle.identity, descriptor_dim=4, token_shape=(2, 3), install_model=bundle.install
    ) as writer:
        for name, source, pose, gps in rows:
            writer.add(name=name, source=source, features=FEATURES, timestamp=None, pose=pose, gps=gps)
    return path


def view(db: Path, out: Path) -> Result:
    return CliRunner().invoke(main, ["map", "view", "--db", str(db), "--out", str(out)])


def test_a_map_of_pictures_with_places(tmp_path: Path) -> None:
    pictures = tmp_path / f"pictures {HOSTILE.replace('/', '')}"
    pictures.mkdir()
    rows = []
    for i in range(4):
        Image.fromarray(draw_scene(i, 0, (96, 128))).save(pictures / f"p{i}.png")
        rows.append((f"p{i}.png", str(pictures), Pose(10.0 * i, 5.0, 0.0, (0.0, 0.0, 0.0, 1.0)), None))
    (pictures / "p3.png").write_bytes(b"damaged meanwhile")
    rows.append((HOSTILE, str(tmp_path / "drive.mp4"), None, Gps(48.0, 11.0)))
    rows.append(("cam0#000001@1.000", "cam0", None, None))
    db, out = make_map(tmp_path / "map", rows), tmp_path / "map.html"

    done = view(db, out)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{out}: 6 pictures, 5 on a plot, 3 shown\n"
    page = Page(out.read_text())
    assert page.count("svg") == 2  # the frame "map", and GPS
    assert (page.count("circle", "shown"), page.count("circle", "place")) == (3, 2)
    look_alikes = page.text.index("Places that look alike")
    assert page.count("img") == 3 + 6  # six of eight pictures of four pairs are there
    assert look_alikes < page.text.index("similarity 1.000, 30.0 m apart")
    assert "Decisions\nthresholdnot calibrated" in page.text
    assert "Tuned setting\nsettingnot tuned" in page.text
    ids = [attributes["id"] for tag, attributes in page.tags if "id" in attributes]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert ids == ["p1", "p2", "p3"]
    assert links == ["#p1", "#p2", "#p3"]
    assert "p2.png, (20.00, 5.00, 0.00) m in map, q 0.000 0.000 0.000 1.000" in page.text
    assert f"{HOSTILE}, (48.000000, 11.000000) in wgs84" in page.text
    assert "All 5 places; 1 pictures have none." in page.text
    assert "3 of 6 pictures are shown; 1 more could not be read." in page.text
    assert "2 have neither a thumbnail in the map" in page.text
    assert re.search(r"presetnano.*2 of 3 numbers.*float16", page.text)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []

    shutil.rmtree(pictures)
    assert view(db, out).stdout.endswith("5 on a plot, 0 shown\n")
    page = Page(out.read_text())
    assert page.count("img") == page.count("a") == 0
    assert "0 of 6 pictures are shown. 6 have neither a thumbnail in the map" in page.text


def test_frames_of_a_recording_are_shown_by_their_thumbnails(tmp_path: Path) -> None:
    """A picture's file is shown if it is there, because it is sharper."""
    Image.fromarray(draw_scene(0, 0, (240, 320))).save(tmp_path / "p.png")
    bundle = Bundle.open(default_bundle())
    jpeg = make_thumbnail(Image.fromarray(draw_scene(1, 0, (240, 320))), (160, 160))
    with MapWriter.open(
        tmp_path / "map", identity=bundle.identity, descriptor_dim=4, token_shape=(2, 3), install_model=bundle.install
    ) as writer:
        for name, source in (("drive.bag#000000", str(tmp_path / "drive.bag")), ("p.png", str(tmp_path))):
            writer.add(name=name, source=source, features=FEATURES, thumbnail=jpeg)
    out = tmp_path / "map.html"
    assert view_map(tmp_path / "map", out).shown == 2
    images = [attributes["src"] for tag, attributes in Page(out.read_text()).tags if tag == "img"]
    stored = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    assert [image == stored for image in images] == 2 * [True, False]  # as look-alikes, and in the album
    assert "2 of 2 pictures are shown." in Page(out.read_text()).text


def test_gaps_decisions_and_tuning_are_shown(tmp_path: Path) -> None:
    rows = [(f"p{i}", "drive", Pose(float(x), 0.0, 0.0), None) for i, x in enumerate((0, 1, 2, 3, 20))]
    db, out = make_map(tmp_path / "map", rows), tmp_path / "map.html"
    bundle = Bundle.open(db / "model")
    bundle.store_calibration(KEY, {**acceptance(2.0).to_json(), "identity": bundle.identity})
    view_map(db, out)
    text = Page(out.read_text()).text
    assert "Fromtometresp3p417.0" in text
    assert "above 3 times the median of 1.0 m" in text
    assert "Decisions\nvoidnot calibrated for this map as it is now" in text
    assert "score >= 2.000 (precision 0.95 at 90% confidence" in text


def test_ten_thousand_pictures_stay_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_page, "SHOWN", 4)
    monkeypatch.setattr(map_page, "PLOTTED", 5000)
    Image.fromarray(draw_scene(0, 0, (48, 64))).save(tmp_path / "p.png")
    for i in range(0, 10_000, 500):
        (tmp_path / f"{i}.png").hardlink_to(tmp_path / "p.png")
    rows = [(f"{i}.png", str(tmp_path), Pose(i * 0.1, float(i % 100), 0.0), None) for i in range(10_000)]
    db, out = make_map(tmp_path / "map", rows), tmp_path / "map.html"
    found = view_map(db, out)
    assert (found.pictures, found.shown) == (10_000, 4)
    assert 5000 <= found.plotted <= 5004
    assert out.stat().st_size < 2_000_000
    page = Page(out.read_text())
    assert page.count("circle") == found.plotted
    assert page.count("img") == 4 + 6
    assert f"{found.plotted} of 10000 places, evenly chosen" in page.text
    assert "4 of 10000 pictures are shown, evenly chosen" in page.text


def test_a_map_without_places_or_pictures(tmp_path: Path) -> None:
    out = tmp_path / "map.html"
    view_map(make_map(tmp_path / "map", [("clip.mp4#000000", "/nowhere/clip.mp4", None, None)]), out)
    page = Page(out.read_text())
    assert page.count("svg") == page.count("img") == 0
    assert "No picture has a pose or GPS position" in page.text
    view_map(make_map(tmp_path / "empty", []), out)
    assert "A map of 0 pictures" in Page(out.read_text()).text


def test_a_missing_map_or_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    db = make_map(tmp_path / "map", [("a", "/", None, None)])
    before = tmp_path / "before.html"
    before.write_text("before")
    with pytest.raises(MapError):
        view_map(tmp_path / "none", before)
    assert before.read_text() == "before"
    for out in (tmp_path, tmp_path / "none" / "map.html"):
        with pytest.raises(PairVPRError, match=r"name the file|choose another"):
            view_map(db, out)
        done = view(db, out)
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
