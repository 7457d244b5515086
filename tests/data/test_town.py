"""Test the made-up town: seeds give the same pictures, places differ, visits agree, folders are resumed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

pytest.importorskip("torch")

from click.testing import CliRunner
from PIL import Image

from pairvpr.data import FolderPlaces, open_places
from pairvpr.data.town import Town, write_evaluation, write_town
from pairvpr.data.town.plan import LENGTH, PLACES, draw_street
from pairvpr.data.town.render import Drawing, Scenery
from pairvpr.data.town.studio import take_pictures
from pairvpr.data.town.textures import SIDE, STARTS, paint, paint_ground
from pairvpr.data.town.visits import CONDITIONS, draw_visit, draw_weather
from pairvpr.errors import SourceError

SMALL = (36, 48)


def visits(seed, conditions, hardness=1.0, place=0):
    street, rng = draw_street(seed), np.random.default_rng((seed, place))
    return [draw_visit(street, place, rng, condition, hardness) for condition in conditions]


def test_a_picture_depends_on_its_visit_alone():
    """Drawn alone or beside others, before or after: the same, but for the rounding of sums in another order."""
    taken = visits(3, CONDITIONS)
    together = take_pictures(taken, [1.0] * len(taken), SMALL)
    for i, visit in enumerate(taken):
        alone = take_pictures([visit], [1.0], SMALL)[0]
        assert np.abs(alone.astype(int) - together[i]).max() <= 2, CONDITIONS[i]


def test_the_same_view_again_is_nearer_than_another_place():
    """Without hardness a visit differs by the sky, the shadows and the camera alone."""
    first, again = (take_pictures(visits(seed, ["overcast"], 0.0), [0.0], SMALL)[0].astype(float) for seed in (5, 5))
    other = take_pictures(visits(6, ["overcast"], 0.0), [0.0], SMALL)[0].astype(float)
    assert np.array_equal(first, again)
    assert np.abs(first - other).mean() > 10


@pytest.mark.parametrize("seed", range(4))
def test_conditions_look_different(seed):
    pictures = dict(zip(CONDITIONS, take_pictures(visits(seed, CONDITIONS, 0.0), [0.0] * 7, SMALL), strict=True))
    contrast = {name: picture.astype(float).std() for name, picture in pictures.items()}
    assert contrast["fog"] < contrast["day"]
    assert pictures["snow"][-8:].mean() > pictures["rain"][-8:].mean()  # the ground
    assert all(picture.dtype == np.uint8 and picture.std() > 3 for picture in pictures.values())


def test_a_street_is_a_function_of_its_seed():
    one, same, other = draw_street(1), draw_street(1), draw_street(2)
    assert one.faces == same.faces
    assert one.faces != other.faces
    assert all(face.texture < len(one.textures) and face.top > face.base for face in one.faces)
    assert max(PLACES) < LENGTH
    assert min(np.diff(PLACES)) > 25


def test_faces_are_met_at_the_intersections():
    """The nearest face of each column against a loop over all faces, one column at a time."""
    import torch

    visit = visits(4, ["day"])[0]
    street = draw_street(4)
    device = torch.device("cpu")
    shared = len(street.textures)
    drawing = Drawing(
        [visit], Scenery(paint(visit.street.textures, device), shared, paint_ground(4, 5.0, device)), SMALL
    )
    table, _, _ = drawing._table()
    depths, _, order = drawing._meet(table)
    for column in range(0, SMALL[1], 7):
        ray = np.array([float(drawing.ray_x[0, column]), float(drawing.ray_z[0, column])])
        best = np.inf
        for x0, z0, x1, z1, *_ in table[0].double().numpy():
            edge = np.array([x1 - x0, z1 - z0])
            matrix = np.stack([ray, -edge], axis=1)
            if abs(np.linalg.det(matrix)) < 1e-9:
                continue
            depth, part = np.linalg.solve(matrix, np.array([x0 - visit.view.x, z0 - visit.view.z]))
            if 0 <= part < 1 and 0.4 < depth < best:
                best = depth
        assert float(depths[0, 0, column]) == pytest.approx(best, rel=1e-3)
        assert 0 <= int(order[0, 0, column]) < table.shape[1]


def test_textures_are_painted_each_from_its_own_seed():
    import torch

    textures = draw_street(1).textures[:6]
    together, alone = paint(textures, torch.device("cpu")), paint(textures[2:3], torch.device("cpu"))
    assert together.shape == (6, STARTS[-1], 5)
    assert STARTS[1] == SIDE**2
    assert int((together[2].int() - alone[0].int()).abs().max()) <= 1


def test_an_unknown_condition_is_named():
    with pytest.raises(ValueError, match="hail"):
        draw_weather(np.random.default_rng(0), "hail", 1.0)


def test_the_town_is_a_data_set():
    town = open_places("town", {"streets": 2, "seed": 3, "visits": 3})
    assert len(town) == sum(town.groups) == 6
    again = pickle.loads(pickle.dumps(town))
    place, same = (each.place(4, np.random.default_rng(1)) for each in (town, again))
    assert [p.name for p in place.pictures] == [p.name for p in same.pictures]
    one, two = (np.asarray(each.pictures[0].load()) for each in (place, same))
    assert one.shape == (144, 192, 3)
    assert np.array_equal(one, two)
    east, north = np.array([picture.position for picture in place.pictures]).T
    assert np.ptp(east) < 10
    assert np.ptp(north) < 10  # a match
    assert place.pictures[0].position != town.place(4, np.random.default_rng(2)).pictures[0].position


@pytest.mark.parametrize(
    "arguments",
    [{"streets": 0}, {"streets": 1, "seed": -1}, {"streets": 1, "visits": 0}, {"streets": 1, "hardness": 2.0}],
)
def test_a_town_of_nothing_is_refused(arguments):
    with pytest.raises(SourceError, match="data set 'town': streets must be"):
        Town(**arguments)


@pytest.mark.slow
def test_a_town_is_written_and_continued(tmp_path):
    told = []
    write_town(tmp_path / "town", 2, 1, 3, lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    files = {file: file.read_bytes() for file in sorted((tmp_path / "town").rglob("*.jpg"))}
    assert len(files) == 2 * 3 * 3
    places = FolderPlaces(str(tmp_path / "town"))
    assert list(places.groups) == [3, 3]
    assert (
        len(FolderPlaces(str(tmp_path / "town"), match="*@[0-1]@.jpg").place(0, np.random.default_rng(0)).pictures) == 2
    )

    # A street that is missing is drawn again, the same; the others are left alone.
    lost = next(iter(files)).parents[1]
    for file in lost.rglob("*.jpg"):
        file.unlink()
    for folder in [*lost.iterdir(), lost]:
        folder.rmdir()
    write_town(tmp_path / "town", 2, 1, 3, lambda done, total: None)
    assert {file: file.read_bytes() for file in sorted((tmp_path / "town").rglob("*.jpg"))} == files


@pytest.mark.slow
def test_towns_are_not_mixed(tmp_path):
    def write(streets, seed=0, visits=2):
        write_town(tmp_path / "town", streets, seed, visits, lambda done, total: None)

    write(1)
    write(2)  # more of the same is no other town
    files = {file.relative_to(tmp_path) for file in tmp_path.rglob("*.jpg")}
    assert len(files) == 2 * 3 * 2
    for other in ((1,), (2, 1), (2, 0, 3)):
        with pytest.raises(SourceError, match="holds a town of --streets 2 --seed 0 --visits 2; give these options"):
            write(*other)
    with pytest.raises(SourceError, match="holds a town of --streets 2 --seed 0 --visits 2"):
        write_evaluation(tmp_path / "town", 2, 0, lambda done, total: None)
    assert {file.relative_to(tmp_path) for file in tmp_path.rglob("*.jpg")} == files


@pytest.mark.slow
def test_an_evaluation_can_be_evaluated(tmp_path):
    from pairvpr.evaluation import load_folders

    write_evaluation(tmp_path, 1, 2, lambda done, total: None)
    benchmark = load_folders(tmp_path / "database", tmp_path / "queries", None)
    assert len(benchmark.database) == 3
    assert len(benchmark.queries) == 12
    assert all(len(found) == 1 for found in benchmark.positives)


@pytest.mark.slow
def test_the_command_draws_a_town(tmp_path):
    from pairvpr.cli.main import main

    result = CliRunner().invoke(main, ["town", str(tmp_path / "t"), "--streets", "1", "--visits", "2"])
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "t").rglob("*.jpg"))) == 6
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["town", str(tmp_path / "file"), "--streets", "1"])
    assert result.exit_code == 2
    assert "cannot be written" in result.output


def test_pictures_are_of_their_size():
    assert Image.fromarray(take_pictures(visits(1, ["day"]), [0.5], (30, 50))[0]).size == (50, 30)
