"""Test the protocol of data sets: folders as places, several data sets as one, data sets by name."""

from __future__ import annotations

import numpy as np
import pytest

from pairvpr import data
from pairvpr.data import FolderPlaces, JoinedPlaces, LoosePictures, open_places
from pairvpr.errors import SourceError
from tests.scenes import draw_scene

RNG = np.random.default_rng(0)


@pytest.fixture
def folders(tmp_path):
    from PIL import Image

    for name in (
        "a/1/x.png",
        "a/1/y.png",
        "a/2/x.png",
        "a/2/y.png",
        "a/2/z.png",
        "b/1/x.png",
        "b/1/y.png",
        "b/2/x.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_scene(0, 0, (20, 30))).save(tmp_path / name)
    return tmp_path


def names(places):
    return [places.place(index, RNG).name for index in range(len(places))]


def test_folders_are_places(folders):
    places = FolderPlaces(str(folders))
    assert names(places) == ["a/1", "a/2", "b/1"]
    assert list(places.groups) == [2, 1]
    pictures = places.place(1, RNG).pictures
    assert [picture.name for picture in pictures] == ["a/2/x.png", "a/2/y.png", "a/2/z.png"]
    assert pictures[0].load().size == (30, 20)
    assert len(FolderPlaces(str(folders), min_pictures=3)) == 1


def test_groups_follow_one_another_in_any_layout(tmp_path, folders):
    """A place folder beside a city folder: each group is one run of places."""
    (folders / "a/1/x.png").parent.joinpath("deep").mkdir()
    for name in ("x.png", "y.png"):
        (folders / "a/1/deep" / name).write_bytes((folders / "a/1/x.png").read_bytes())
    places = FolderPlaces(str(folders))
    assert sum(places.groups) == len(places) == 4
    assert sorted(places.groups) == [1, 1, 2]


def test_loose_pictures_are_places_of_their_own(folders):
    places = LoosePictures(str(folders))
    assert len(places) == 8
    assert list(places.groups) == [2, 3, 2, 1]
    assert [picture.name for picture in places.place(2, RNG).pictures] == ["a/2/x.png"]


def test_nothing_is_read_before_it_is_asked_for(folders):
    (folders / "a/1/x.png").write_bytes(b"no picture")
    picture = FolderPlaces(str(folders)).place(0, RNG).pictures[0]
    with pytest.raises(SourceError, match=r"x\.png"):
        picture.load()


def test_joined_places(folders):
    joined = JoinedPlaces([FolderPlaces(str(folders)), LoosePictures(str(folders))])
    assert len(joined) == 11
    assert names(joined)[:4] == ["a/1", "a/2", "b/1", "a/1/x.png"]
    assert list(joined.groups) == [2, 1, 2, 3, 2, 1]


def test_data_sets_by_name(folders):
    assert len(open_places("folders", {"root": str(folders)})) == 3
    assert len(open_places("tests.training.support:Scenes", {"count": 5})) == 5
    for name, arguments, told in [
        (
            "fodlers",
            {},
            "unknown; name one of folders, clips, pictures, traverses, town, .* or module:callable",
        ),
        ("absent.module:Places", {}, "cannot be imported .*; check the name and PYTHONPATH"),
        ("tests.training.support:Absent", {}, "cannot be imported"),
        ("folders", {}, "does not take these arguments.*root"),
        ("folders", {"root": str(folders), "rot": 1}, "does not take these arguments.*rot"),
        ("tests.training.support:Scenes", {"count": 0}, "holds no place"),
        ("folders", {"root": str(folders / "a/1")}, None),
    ]:
        if told:
            with pytest.raises(SourceError, match=told):
                open_places(name, arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("folders", {"root": 3}, "root must be a text, is 3"),
        ("folders", {"root": ".", "min_pictures": "many"}, "min_pictures must be a whole number, is 'many'"),
        ("folders", {"root": ".", "min_pictures": True}, "min_pictures must be a whole number, is True"),
        ("clips", {"root": ".", "window": 2.5}, "window must be a whole number, is 2.5"),
        ("pictures", {"root": ["."]}, "root must be a text"),
        ("town", {"streets": 1, "hardness": "much"}, "hardness must be a number, is 'much'"),
        ("gsv-cities", {"root": ".", "cities": 3}, "cities must be a list, is 3"),
        ("google-landmarks", {"root": ".", "min_pictures": "4"}, "min_pictures must be a whole number"),
        ("sf-xl", {"root": ".", "index": 1}, "index must be a text"),
    ],
)
def test_arguments_of_a_wrong_kind_are_told(name, arguments, told):
    with pytest.raises(SourceError, match=f"data set '{name}': {told}.*; correct it"):
        open_places(name, arguments)


@pytest.mark.parametrize(("old", "new"), [("Picture", data.TrainingPicture), ("Place", data.TrainingPlace)])
def test_the_names_of_version_0_1_warn(old, new):
    with pytest.warns(FutureWarning, match=f"pairvpr.data.{old} is now pairvpr.data.{new.__name__}"):
        assert getattr(data, old) is new


def test_a_folder_without_places_is_refused(tmp_path, folders):
    with pytest.raises(SourceError, match="none of its folders holds 9 pictures"):
        FolderPlaces(str(folders), min_pictures=9)


def test_frames_of_a_clip_are_places(tmp_path):
    from PIL import Image

    frames = [f"hall/walk_{n:04}.png" for n in (*range(1, 9), *range(20, 24))] + [
        "hall/stairs_0001.png",
        "roof/a_1.png",
    ]
    for name in frames:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(draw_scene(0, 0, (20, 30))).save(tmp_path / name)
    places = open_places("clips", {"root": str(tmp_path), "window": 3, "gap": 2})
    shown = [[picture.name for picture in places.place(i, RNG).pictures] for i in range(len(places))]
    assert shown == [[frames[0], frames[1], frames[2]], [frames[5], frames[6], frames[7]], frames[8:11]]
    assert list(places.groups) == [3]
    with pytest.raises(SourceError, match="no clip of 9 frames"):
        open_places("clips", {"root": str(tmp_path), "window": 9})
    with pytest.raises(SourceError, match="window must be at least 2"):
        open_places("clips", {"root": str(tmp_path), "window": 1})


def test_a_pattern_chooses_pictures(folders):
    places = FolderPlaces(str(folders), match="*/[xz].png", min_pictures=2)
    assert [picture.name for picture in places.place(0, RNG).pictures] == ["a/2/x.png", "a/2/z.png"]
    assert len(places) == 1
    with pytest.raises(SourceError, match="fit"):
        FolderPlaces(str(folders), match="*.jpg")
