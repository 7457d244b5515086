"""Test drives with poses as a data set: places, the held-out stretch, and arguments that are refused."""

from __future__ import annotations

import logging
import math
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pairvpr.data import Traverses, open_places
from pairvpr.data.traverses import group
from pairvpr.errors import SourceError
from tests.scenes import draw_scene

LENGTH = 60
NO_TURN = (0.0, 0.0, 0.0, 1.0)
HEADER = "name,x,y,z,qx,qy,qz,qw"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Drives `one` and `two` with a picture each metre of a straight way, `two` half a metre to the side."""
    home = tmp_path_factory.mktemp("site")
    for drive, (name, side) in enumerate((("one", 0.0), ("two", 0.5))):
        (home / name).mkdir()
        lines = [HEADER]
        for metre in range(LENGTH):
            Image.fromarray(draw_scene(metre // 10, drive, (24, 32))).save(home / name / f"{metre:03}.png")
            lines.append(f"{metre:03}.png,{metre},{side},0,0,0,0,1")
        (home / f"{name}.csv").write_text("\n".join(lines))
    return home


def arguments(site, **other):
    poses = [str(site / f"{name}.csv") for name in ("one", "two")]
    return {"folders": [str(site / "one"), str(site / "two")], "poses": poses, "radius": 2.0, **other}


def pictures(places: Traverses, draws: int = 40) -> list[dict[str, tuple[float, float]]]:
    """Return the positions of each place's pictures, by name, as many draws find them."""
    rng = np.random.default_rng(0)
    return [
        {each.name: each.position for _ in range(draws) for each in places.place(index, rng).pictures}
        for index in range(len(places))
    ]


def distances(first, second):
    a, b = (np.array(list(each.values())) for each in (first, second))
    return np.linalg.norm(a[:, None] - b, axis=-1)


def test_places_lie_apart_and_are_seen_by_both_drives(site):
    places = open_places("traverses", arguments(site))
    assert isinstance(places, Traverses)
    assert list(places.groups) == [len(places)] == [10]  # a centre each 6 metres
    found = pictures(places)
    for number, place in enumerate(found):
        centre = np.array([6.0 * number, 0.0])
        assert all(math.dist(centre, position) < 2 for position in place.values())
        assert {Path(name).parent.name for name in place} == {"one", "two"}
        for other in found[:number]:
            assert distances(place, other).min() > 2


def test_a_draw_takes_one_picture_of_each_drive(site):
    places = pickle.loads(pickle.dumps(Traverses(**arguments(site))))
    rng = np.random.default_rng(0)
    draws = [places.place(3, rng).pictures for _ in range(20)]
    assert all([Path(each.name).parent.name for each in draw] == ["one", "two"] for draw in draws)
    assert len({tuple(each.name for each in draw) for draw in draws}) > 3
    assert draws[0][0].load().size == (32, 24)


def test_the_held_out_stretch_is_apart_from_all_training_pictures(site):
    held, training = (pictures(Traverses(**arguments(site, part=part))) for part in ("held-out", "training"))
    assert (len(held), len(training)) == (2, 8)
    along = [x for place in held for x, _ in place.values()]
    assert min(along) >= 24
    assert max(along) < 36  # the middle fifth of 60 metres
    assert min(distances(one, other).min() for one in held for other in training) > 2


def test_a_place_needs_two_drives_and_one_direction():
    """The second drive turns round after 30 metres, and the third drive does not reach beyond."""
    along = np.arange(60.0)
    positions = np.zeros((120, 3))
    positions[:, 0] = np.concatenate([along, along])
    drives = np.repeat([0, 1], 60)
    ahead, back = NO_TURN, (0.0, 0.0, 1.0, 0.0)
    turned = np.array([ahead] * 60 + [ahead] * 30 + [back] * 30)
    found = group(positions, turned, drives, 2.0)
    assert len(found) == 6  # centres at 0, 6, ... 24 and 30, which sees the picture at 29
    assert max(positions[i, 0] for place in found for i in place if drives[i] == 1) == 29
    unknown = np.full((120, 4), math.nan)
    assert len(group(positions, unknown, drives, 2.0)) == 10
    assert group(positions, unknown, np.zeros(120, np.int64), 2.0) == []


def test_places_in_names_and_lines_by_time_and_gps_serve_too(tmp_path):
    tum, gps = [], ["name,latitude,longitude"]
    for drive in ("names", "other names", "tum", "gps"):
        (tmp_path / drive).mkdir()
    for metre in range(0, 40, 2):
        scene = Image.fromarray(draw_scene(metre, 0, (24, 32)))
        scene.save(tmp_path / "names" / f"@{500000 + metre}.00@4000000.00@.png")
        scene.save(tmp_path / "other names" / f"@{500000.5 + metre:.2f}@4000000.00@.png")
        scene.save(tmp_path / "tum" / f"{100 + metre}.000000.png")
        scene.save(tmp_path / "gps" / f"{metre}.png")
        tum.append(f"{100 + metre}.0 {metre} 0 0 0 0 0 1")
        gps.append(f"{metre}.png,50.0,{8 + metre / 71_400:.7f}")
    (tmp_path / "tum.txt").write_text("\n".join(tum))
    (tmp_path / "gps.csv").write_text("\n".join(gps))
    assert len(Traverses([str(tmp_path / "names"), str(tmp_path / "other names")], 2.0)) == 7
    for drive, file in (("tum", "tum.txt"), ("gps", "gps.csv")):  # one file for both drives
        shutil.copytree(tmp_path / drive, tmp_path / f"{drive} again")
        folders = [str(tmp_path / drive), str(tmp_path / f"{drive} again")]
        assert len(Traverses(folders, 2.0, [str(tmp_path / file)])) == 7
    mixed = [str(tmp_path / "names"), str(tmp_path / "gps")]
    with pytest.raises(SourceError, match=r"places in different frames, .* and wgs84; give poses in one frame"):
        Traverses(mixed, 2.0, ["", str(tmp_path / "gps.csv")])


def test_pictures_without_a_place_are_left_out_and_told(site, tmp_path, caplog):
    lines = (site / "two.csv").read_text().splitlines()
    (tmp_path / "half.csv").write_text("\n".join(lines[:31]))
    with caplog.at_level(logging.WARNING):
        places = Traverses(**arguments(site, poses=[str(site / "one.csv"), str(tmp_path / "half.csv")]))
    assert caplog.messages == [f"{site / 'two'}: 30 pictures left out: they have no place"]
    assert len(places) == 6


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"folders": ["one"]}, "folders must be two or more different folders, .*add another drive"),
        ({"folders": ["one", "one"]}, "folders must be two or more different folders"),
        ({"folders": ["one", "."], "poses": []}, "lies in another of the folders"),
        ({"folders": ["one", "absent"]}, "absent is not a folder"),
        ({"folders": "one"}, "folders must be a list"),
        ({"folders": ["one", 2]}, "folders must be a list of paths"),
        ({"poses": ["a", "b", "c"]}, "3 files of poses for 2 folders; give one for all, or one for each"),
        ({"poses": ["one.csv", "absent.csv"]}, r"absent\.csv"),
        ({"poses": ["one.csv", "strange.csv"]}, r"strange\.csv: fits no picture of .*two \(the file has .*9\.jpg"),
        ({"poses": []}, "one: none of its pictures has a place; give poses"),
        ({"poses": ["one.csv", "far.csv"]}, r"no place is seen by two of the drives within 2 m \(part 'all'\)"),
        ({"radius": 0.0}, "radius must be above 0 metres, is 0"),
        ({"radius": math.nan}, "radius must be above 0 metres"),
        ({"radius": "2"}, "radius must be a number, is '2'"),
        ({"radius": 100.0, "part": "training"}, r"no place is seen by two .*\(part 'training'\)"),
        ({"part": "test"}, "part 'test' is unknown; give one of all, training, held-out"),
    ],
)
def test_arguments_that_cannot_be_are_refused_in_one_line(site, tmp_path, monkeypatch, other, told):
    shutil.copytree(site, tmp_path, dirs_exist_ok=True)
    (tmp_path / "strange.csv").write_text(f"{HEADER}\n9.jpg,0,0,0,0,0,0,1\n")
    (tmp_path / "far.csv").write_text(re.sub(r"png,", "png,1000", (site / "two.csv").read_text()))
    monkeypatch.chdir(tmp_path)
    given = {"folders": ["one", "two"], "poses": ["one.csv", "two.csv"], "radius": 2.0, **other}
    with pytest.raises(SourceError, match=told) as error:
        open_places("traverses", given)
    assert "\n" not in str(error.value)
