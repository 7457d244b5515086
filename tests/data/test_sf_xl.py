"""Test views of SF-XL against directions painted into panoramas and against plain loops."""

from __future__ import annotations

from datetime import datetime, timezone
from math import atan2, degrees, floor, hypot, tan

import numpy as np
import pytest
from PIL import Image

from pairvpr.data import SfXl
from pairvpr.data.panoramas import CROP, view
from pairvpr.data.sf_xl import fitting_pairs
from pairvpr.errors import SourceError
from tests.data import trees

SPOTS = [(2.0, 2.0, 0), (9.0, 3.0, 90), (4.0, 12.0, 217), (13.0, 14.0, 305)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def places(tmp_path):
    return SfXl(str(trees.sf_xl(tmp_path / "data", SPOTS, (128, 832))))


def meeting(one, two):
    """Where the lines from two pictures along their headings meet: metres along each, and the point."""
    ways = [np.array([np.sin(np.radians(p.heading)), np.cos(np.radians(p.heading))]) for p in (one, two)]
    along = np.linalg.solve(np.stack([ways[0], -ways[1]], axis=1), np.subtract(two.position, one.position))
    return along, one.position + along[0] * ways[0]


def test_pairs_face_a_focal_point_near_the_cell(places):
    centre = np.add(trees.CORNER, 7.5)
    assert (len(places), places.groups) == (1, (1,))
    distances, angles, ways, pairs = [], [], [], set()
    for seed in range(300):
        place = places.place(0, np.random.default_rng(seed))
        assert place.name == "551850_4176495"
        one, two = place.pictures
        along, focal = meeting(one, two)
        assert min(along) > 0  # before the camera
        distances.append(hypot(*(focal - centre)))
        ways.append(degrees(atan2(*(focal - centre))) % 360)
        to_one, to_two = np.subtract(one.position, focal), np.subtract(two.position, focal)
        cosine = to_one @ to_two / hypot(*to_one) / hypot(*to_two)
        angles.append(degrees(np.arccos(cosine)))
        pairs.add(frozenset((one.name, two.name)))
    assert 10 <= min(distances) < 10.5 < 19.5 < max(distances) <= 20
    assert 3 <= min(angles) < 6 < 45 < max(angles) <= 50
    assert np.histogram(ways, 8, (0, 360))[0].min() > 15
    assert len(pairs) == 6


def test_the_middle_of_a_view_shows_the_focal_point(places):
    headings = dict(zip("0123", (0, 90, 217, 305), strict=True))
    for seed in range(20):
        for picture in places.place(0, np.random.default_rng(seed)).pictures:
            pixels = np.asarray(picture.load()).astype(float)
            assert pixels.shape == (128, 128, 3)
            number = picture.name.split("pano-")[1][0]
            assert f"@@{headings[number]}@@@@" in picture.name
            azimuth, _ = trees.direction(pixels[20:108, 63:65].mean((0, 1)))
            assert abs((azimuth - picture.heading + 180) % 360 - 180) < 1


@pytest.mark.parametrize("shape", [(416, 832), (128, 832)])
@pytest.mark.parametrize("turn", [0, 77, 180, -95, 1000])
def test_a_view_is_a_central_projection(shape, turn):
    pixels = view(trees.painted(shape, 0), turn)
    side = 128
    half = tan(np.pi * CROP)
    shift = None
    for row in range(4, side, 17):
        for column in range(4, side, 17):
            azimuth, elevation = trees.direction(pixels[row, column])
            off = (azimuth - turn + 180) % 360 - 180
            assert tan(np.radians(off)) == pytest.approx(half * (2 * (column + 0.5) / side - 1), abs=0.02)
            # Height above the horizon on a wall at distance 1, and how much the view is moved.
            height = tan(np.radians(elevation)) / np.cos(np.radians(off))
            moved = height - half * (1 - 2 * (row + 0.5) / side)
            shift = moved if shift is None else shift
            assert moved == pytest.approx(shift, abs=0.03)
    # The cut panorama sees 21 degrees down and 35 up; half of the view is 28.
    assert shift == pytest.approx(0 if shape[0] == 416 else half - tan(np.radians(48 / 832 * 360)), abs=0.03)


@pytest.mark.parametrize("shape", [(52, 104), (16, 104)])
@pytest.mark.parametrize("turn", [0.0, 33.3, 179.0, -181.7])
def test_a_view_is_bilinear_and_goes_around(shape, turn):
    """Against a loop over pixels that turns rays into angles."""
    panorama = np.random.default_rng(5).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels = view(panorama, turn)
    side, half = 16, tan(np.pi * CROP)
    horizon = shape[0] / 2 if shape[0] == 52 else 10
    moved = 0 if shape[0] == 52 else half - tan(np.radians(6 / 104 * 360))
    assert pixels.shape == (side, side, 3)
    for row in range(side):
        for column in range(side):
            right, up = half * (2 * (column + 0.5) / side - 1), half * (1 - 2 * (row + 0.5) / side) + moved
            azimuth = degrees(atan2(right, 1)) + turn
            elevation = degrees(atan2(up, hypot(right, 1)))
            x = 52 + azimuth / 360 * 104 - 0.5
            y = min(max(horizon - elevation / 360 * 104 - 0.5, 0), shape[0] - 1)
            expected = np.zeros(3)
            for i in (floor(y), floor(y) + 1):
                for j in (floor(x), floor(x) + 1):
                    weight = (1 - abs(y - i)) * (1 - abs(x - j))
                    if weight > 0:
                        expected += weight * panorama[i, j % 104]
            assert np.abs(pixels[row, column] - expected).max() <= 0.51


def test_fitting_pairs_against_the_cosine_rule():
    rng = np.random.default_rng(1)
    positions, focal = rng.uniform(0, 15, (12, 2)), np.array([20.0, -3.0])
    expected = []
    for i in range(12):
        for j in range(i + 1, 12):
            a, b = (hypot(*(positions[k] - focal)) for k in (i, j))
            c = hypot(*(positions[i] - positions[j]))
            if 3 <= degrees(np.arccos((a * a + b * b - c * c) / (2 * a * b))) <= 50:
                expected.append([i, j])
    assert fitting_pairs(positions, focal).tolist() == expected


def test_positions_headings_and_times_of_pictures(tmp_path):
    root = trees.sf_xl(tmp_path / "data", [(2.25, 2, 0), (9, 3, 90)])
    for file in list(root.rglob("*_pano-*")) + list(root.rglob("*pano-0*")):
        file.rename(file.with_name(file.name.replace("201409", "")))
    pictures = SfXl(str(root)).place(0, np.random.default_rng(0)).pictures
    known = {picture.position: picture.time for picture in pictures}
    september = datetime(2014, 9, 1, tzinfo=timezone.utc).timestamp()
    assert known == {(551852.25, 4176497.0): None, (551859.0, 4176498.0): september}


def test_cells_without_pairs_are_left_out(tmp_path):
    spots = [(1, 1, 0), (1.2, 1.2, 0), (16, 1, 0), (31, 1, 0), (31, 2.5, 0), (-1, 4, 0), (-12, 4, 0)]
    places = SfXl(str(trees.sf_xl(tmp_path / "data", spots)))
    assert [places.place(i, np.random.default_rng(0)).name for i in range(2)] == ["551835_4176495", "551880_4176495"]
    assert len(places) == 2


@pytest.mark.parametrize("spots", [[(0, 0, 0), (1.1, 0, 0)], [(0, 0, 0), (14.9, 14.9, 0)], [(7, 7, 0), (7, 8.1, 0)]])
def test_awkward_cells_have_pairs_too(spots, tmp_path):
    places = SfXl(str(trees.sf_xl(tmp_path / "data", spots)))
    assert all(len(places.place(0, np.random.default_rng(seed)).pictures) == 2 for seed in range(500))


def test_bad_names_and_pictures_are_told(tmp_path, places):
    root = tmp_path / "data"
    for file in root.rglob("*.jpg"):
        Image.new("RGB", (100, 90)).save(file)
    with pytest.raises(SourceError, match=r"jpg: 100 x 90 pixels are neither a panorama of SF-XL"):
        places.place(0, np.random.default_rng(0)).pictures[0].load()
    (root / "notes.txt").touch()
    (root / ".hidden.jpg").touch()
    assert len(SfXl(str(root))) == 1
    for name in (
        "street.jpg",
        "@551850.00@4176495.00@10@S@37@-122@x@@@@@@201409@@.jpg",
        "@1@2@.jpg",
        "@1@2@@@@@@@x@.jpg",
    ):
        (root / name).touch()
        with pytest.raises(SourceError, match="its name holds no position and heading") as caught:
            SfXl(str(root))
        assert "\n" not in str(caught.value)
        (root / name).unlink()
