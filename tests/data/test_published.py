"""Test the published data sets on small trees of the same names and columns."""

from __future__ import annotations

import csv
import json
import pickle
from datetime import datetime, timezone
from math import asin, cos, hypot, radians, sin, sqrt

import numpy as np
import pytest

from pairvpr.data import GoogleLandmarks, GsvCities, SfXl, open_places
from pairvpr.data.tables import read_table
from pairvpr.errors import SourceError
from tests.data import trees

SPOTS = [(2.0, 2.0, 0), (9.0, 3.0, 90), (4.0, 12.0, 217), (20.0, 4.0, 10), (28.0, 4.0, 350), (50.0, 4.0, 3)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/pairvpr"


def opened(name, root):
    if name == "gsv-cities":
        trees.gsv_cities(root)
    elif name == "google-landmarks":
        trees.google_landmarks(root)
    else:
        trees.sf_xl(root, SPOTS)
    return open_places(name, {"root": str(root)})


def told(make, *arguments, **more):
    with pytest.raises(SourceError) as caught:
        make(*arguments, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shown(place):
    return place.name, [(p.name, p.position, p.heading, p.time) for p in place.pictures]


@pytest.mark.parametrize("name", ["gsv-cities", "sf-xl", "google-landmarks"])
def test_the_protocol(name, tmp_path):
    places = opened(name, tmp_path / "data")
    assert len(places) == sum(places.groups) > 1
    copied = pickle.dumps(places)
    assert len(copied) < 1000
    for index in range(len(places)):
        draws = [p.place(index, np.random.default_rng(3)) for p in (places, places, pickle.loads(copied))]
        assert shown(draws[0]) == shown(draws[1]) == shown(draws[2])
        names = [picture.name for picture in draws[0].pictures]
        assert len(set(names)) == len(names) >= 2
    with pytest.raises(IndexError):
        places.place(len(places), np.random.default_rng(0))
    assert "does not take these arguments" in told(open_places, name, {"root": str(tmp_path / "data"), "rot": 1})


@pytest.mark.parametrize("name", ["gsv-cities", "sf-xl", "google-landmarks"])
def test_a_missing_picture_is_replaced_and_reported(name, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    from pairvpr.data.samples import read_pictures

    places = opened(name, tmp_path / "data")
    number = {"gsv-cities": 1, "sf-xl": 0, "google-landmarks": 0}[name]
    whole = read_pictures(places, number, 2, np.random.default_rng(0))
    assert (whole.place, len(whole.pictures), whole.broken) == (number, 2, [])
    lost = places.place(number, np.random.default_rng(0)).pictures[0].name
    (tmp_path / "data" / lost).unlink()
    reports = [read_pictures(places, number, 2, np.random.default_rng(seed)) for seed in range(8)]
    assert all(len(found.pictures) == 2 for found in reports)
    assert any(line.startswith(f"{lost}: there is no picture") for found in reports for line in found.broken)


def test_gsv_cities_names_positions_headings_and_times(tmp_path):
    places = opened("gsv-cities", tmp_path / "data")
    assert places.groups == (1, 2)
    assert [places.place(i, None).name for i in range(3)] == ["Boston/130", "London/130", "London/6793"]
    pictures = places.place(1, None).pictures
    assert [picture.name for picture in pictures] == [f"Images/London/{name}" for name in trees.LONDON_130]
    assert [picture.load().size for picture in pictures] == [(20, 16)] * 4
    assert [picture.heading for picture in pictures] == [46, 289, 15, 0]
    assert pictures[2].time == datetime(2018, 4, 1, tzinfo=timezone.utc).timestamp()
    # Digits are the CSV file's: a float would lose the last zero.
    assert any("_51.51870_-0.16080_" in picture.name for picture in places.place(2, None).pictures)


def haversine(one, two):
    (lat1, lon1), (lat2, lon2) = (tuple(map(radians, point)) for point in (one, two))
    return (
        2 * 6_371_008.8 * asin(sqrt(sin((lat2 - lat1) / 2) ** 2 + cos(lat1) * cos(lat2) * sin((lon2 - lon1) / 2) ** 2))
    )


def test_gsv_cities_positions_are_metres(tmp_path):
    places = opened("gsv-cities", tmp_path / "data")
    one, two = places.place(1, None).pictures[0], places.place(2, None).pictures[0]
    degrees = [tuple(map(float, picture.name.split("_")[5:7])) for picture in (one, two)]
    east, north = np.subtract(two.position, one.position)
    assert hypot(east, north) == pytest.approx(haversine(*degrees), rel=2e-3)
    assert east < 0 < north


def test_gsv_cities_choices(tmp_path):
    root = str(trees.gsv_cities(tmp_path, pictures=False))
    assert GsvCities(root, cities=["London"]).groups == (2,)
    assert GsvCities(root, cities=["London", "Boston", "London"]).groups == (1, 2)
    assert GsvCities(root, min_pictures=1).groups == (1, 3)
    assert "cities as a list out of Boston, London" in told(GsvCities, root, cities=["Paris"])
    assert "L.csv: missing" in told(GsvCities, root, cities="London")
    assert "holds no place" in told(open_places, "gsv-cities", {"root": root, "min_pictures": 9})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("place_id,", "id,"), "London.csv: lacks the column 'place_id'"),
        ((",R2vU9sk2livh_YbhySFfA-g", ""), "London.csv, line 4: has 7 fields, the header has 8"),
        (("6793,2015,6,97", "x,2015,6,97"), "London.csv, line 5: not a row of GSV-Cities (invalid literal"),
        (("2015,6,97", "2015,13,97"), "London.csv, line 5: not a row of GSV-Cities (month must"),
        (("51.51870", "91.5"), "London.csv, line 5: not a row of GSV-Cities (place_id 6793 at 91.5, -0.16080)"),
        (("51.51870", "nan"), "London.csv, line 5: not a row of GSV-Cities"),
        (
            ("zFbmpj8jt8natu7IPYrh_w", ""),
            "London.csv, line 5: not a row of GSV-Cities (city_id 'London' with panoid ''",
        ),
        (("zFbmpj8jt8natu7IPYrh_w", "../x"), "London.csv, line 5: not a row of GSV-Cities"),
        (("6793,2015", "9" * 5000 + ",2015"), "London.csv, line 5: not a row of GSV-Cities"),
    ],
)
def test_a_bad_table_of_gsv_cities_is_told(change, said, tmp_path, cache):
    file = trees.gsv_cities(tmp_path, pictures=False) / "Dataframes/London.csv"
    assert change[0] in file.read_text()
    file.write_text(file.read_text().replace(*change, 1))
    assert said in told(GsvCities, str(tmp_path))
    assert list(cache.iterdir()) == []


def test_tables_that_are_no_text_are_told(tmp_path):
    (trees.gsv_cities(tmp_path, pictures=False) / "Dataframes/London.csv").write_bytes(b"\xff\xfe\x00")
    assert "London.csv: cannot be read as CSV" in told(GsvCities, str(tmp_path))


def test_missing_roots_are_told(tmp_path):
    absent = str(tmp_path / "absent")
    assert "absent/Dataframes: holds no <city>.csv" in told(GsvCities, absent)
    assert "absent/train_clean.csv: missing" in told(GoogleLandmarks, absent)
    assert "absent: no such folder" in told(SfXl, absent)


def test_google_landmarks_names(tmp_path):
    places = opened("google-landmarks", tmp_path / "data")
    assert places.groups == (2,)
    assert [places.place(i, None).name for i in range(2)] == ["1", "9"]
    first = places.place(0, None).pictures[0]
    assert first.name == "train/1/7/6/17660ef415d37059.jpg"
    assert (first.load().size, first.position, first.heading, first.time) == ((20, 16), None, None, None)
    assert len(GoogleLandmarks(str(tmp_path / "data"), min_pictures=2)) == 3


def test_google_landmarks_of_many_pictures(tmp_path):
    names = " ".join(f"{number:016x}" for number in range(9000))
    (tmp_path / "train_clean.csv").write_text(f"landmark_id,images\n138982,{names}\n")
    assert len(GoogleLandmarks(str(tmp_path)).place(0, None).pictures) == 9000


def test_a_half_read_table_leaves_the_limit_of_fields_alone(tmp_path):
    (tmp_path / "table.csv").write_text("one\n1\n2\n")
    before = csv.field_size_limit()
    rows = read_table(tmp_path / "table.csv", ["one"], "mend it")
    assert next(rows)[1] == ["1"]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("images", "pictures"), "train_clean.csv: lacks the column 'images'"),
        (("7,25c9", "seven,25c9"), "train_clean.csv, line 3: 'seven' is not a landmark_id"),
        (("25c9dfc7ea69838d", "../../x"), "train_clean.csv, line 3: '../../x' is not a picture id"),
        (("7,25c9dfc7ea69838d", "25c9dfc7ea69838d"), "train_clean.csv, line 3: has 1 fields, the header has 2"),
    ],
)
def test_a_bad_table_of_google_landmarks_is_told(change, said, tmp_path):
    (tmp_path / "train_clean.csv").write_text(trees.LANDMARKS.replace(*change, 1))
    assert said in told(GoogleLandmarks, str(tmp_path))


def test_stage_two_reads_a_configuration_of_gsv_cities(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("pytorch_metric_learning")
    pytest.importorskip("tomllib")
    from pairvpr.training.batches import open_all
    from pairvpr.training.config import stage_two_config

    root = json.dumps(str(trees.gsv_cities(tmp_path / "data", pictures=False)))
    file = tmp_path / "two.toml"
    file.write_text(
        f'out = "run"\n[network]\npreset = "nano"\n[[data]]\nplaces = "gsv-cities"\n'
        f'arguments = {{root = {root}, cities = ["London"]}}\n[[data]]\nplaces = "gsv-cities"\n'
        f"arguments = {{root = {root}, min_pictures = 1}}\n"
    )
    assert open_all(stage_two_config(file).data).groups == [2, 1, 3]
