"""The neighbour graph of a map's pictures, checked against every pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Record
from pairvpr.runtime.sequence.topology import MOST, REACH, Topology


def record(row: int, source: str = "drive", timestamp: float | None = None, **place: object) -> Record:
    where = {"pose": None, "gps": None, **place}
    return Record(row + 1, f"p{row}", source, timestamp, segment=1, row=row, descriptor_crc=0, tokens_crc=0, **where)  # type: ignore[arg-type]


def near(topology: Topology, row: int) -> dict[int, float]:
    pairs = zip(topology.neighbours[row], topology.distances[row], strict=True)
    return {int(other): float(distance) for other, distance in pairs if np.isfinite(distance)}


def test_without_places_the_order_counts_and_drives_do_not_touch() -> None:
    topology = Topology.from_records([record(row, "ab"[row % 2]) for row in range(60)])
    assert (topology.metric, topology.spacing, topology.seconds) == (False, 1.0, None)
    assert near(topology, 0) == {2 * step: float(step) for step in range(int(REACH) + 1)}
    assert near(topology, 31)[33] == near(topology, 31)[29] == 1.0
    assert all(row % 2 for row in near(topology, 31))


def test_subfolders_are_drives() -> None:
    records = [dataclasses.replace(record(row), name=f"{'ab'[row // 5]}/{row}.png") for row in range(10)]
    assert set(near(Topology.from_records(records), 4)) == set(range(5))


@pytest.mark.parametrize("count", [1, 2, 400])
def test_poses_against_every_pair(count: int) -> None:
    places = np.array([5e5, 6e6, 30]) + np.cumsum(np.random.default_rng(0).normal(0, 2, (count, 3)), axis=0)
    poses = [Pose(x, y, z) for x, y, z in places.tolist()]
    topology = Topology.from_records([record(row, pose=pose) for row, pose in enumerate(poses)])
    assert topology.metric
    for row in range(count):
        every = np.array([distance_between(poses[row], other) for other in poses])
        wanted = np.sort(every[every <= topology.reach])[:MOST]
        found = near(topology, row)
        assert np.allclose(sorted(found.values()), wanted)
        assert all(np.isclose(every[other], distance) for other, distance in found.items())


def test_gps_positions_are_metres_apart_also_at_the_date_line() -> None:
    gps = [Gps(-17.0, 179.9996 + 1e-4 * step) for step in range(4)] + [
        Gps(-17.0, -180 + 1e-4 * step) for step in range(4)
    ]
    topology = Topology.from_records([record(row, gps=each) for row, each in enumerate(gps)])
    assert topology.spacing == pytest.approx(distance_between(gps[0], gps[1]), rel=1e-3)
    assert near(topology, 0)[7] == pytest.approx(distance_between(gps[0], gps[7]), rel=1e-3)


def test_places_in_two_frames_or_none_leave_the_order() -> None:
    for strange in (Pose(0, 0, 0, frame="odom"), None):
        records = [record(row, pose=Pose(row, 0, 0)) for row in range(3)]
        assert not Topology.from_records([*records, record(3, pose=strange)]).metric


def test_the_usual_step_in_metres_and_seconds() -> None:
    stamps = [0.0, 0.5, 1.0, 31.0, None, 32.0, 32.5]  # a traffic light, and a picture without a stamp
    topology = Topology.from_records(
        [record(row, timestamp=stamp, pose=Pose(4.0 * row, 0, 0)) for row, stamp in enumerate(stamps)]
    )
    assert (topology.spacing, topology.seconds) == (4.0, 0.5)


def test_pictures_of_one_spot_stay_bounded() -> None:
    topology = Topology.from_records([record(row, pose=Pose(0, 0, 0)) for row in range(3000)])
    assert topology.neighbours.shape == (3000, MOST)
    assert topology.spacing == 1.0
    assert (topology.distances == 0).all()


def test_a_stop_on_a_drive_keeps_the_next_pictures_of_the_stop() -> None:
    stop = [Pose(40, 0, 0)] * 1000
    poses = [*(Pose(x, 0, 0) for x in range(40)), *stop, *(Pose(x, 0, 0) for x in range(41, 80))]
    topology = Topology.from_records([record(row, pose=pose) for row, pose in enumerate(poses)])
    assert set(near(topology, 500)) == set(range(500 - MOST // 2, 500 + MOST // 2))
    assert list(near(topology, 38)) == [38, 37, 39, 36, *range(40, 40 + MOST - 4)]  # equal ones in the order of rows


@pytest.mark.parametrize("spread", [1e-9, 0.2, 4.0])
def test_a_crowded_place_against_every_pair(spread: float) -> None:
    chance = np.random.default_rng(1)
    crowd, drive = chance.normal(0, spread, (1500, 3)), np.arange(1, 41)[:, None] * [1.0, 0.2, 0]
    places = np.concatenate([crowd, drive, np.repeat(crowd[:3], 20, axis=0)])
    topology = Topology.from_records([record(row, pose=Pose(*place)) for row, place in enumerate(places.tolist())])
    for row in range(0, len(places), 7):
        every = np.linalg.norm(places - places[row], axis=1)
        wanted = np.sort(every[every <= topology.reach])[:MOST]
        found = near(topology, row)
        np.testing.assert_allclose(list(found.values()), wanted, rtol=1e-6, atol=1e-15)
        assert next(iter(found)) == row


def test_work_in_a_crowded_place_grows_with_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    work = []
    for count in (2_000, 8_000):
        places = np.random.default_rng(2).uniform(0, 4, (count, 2)).tolist()
        with counted_distances(monkeypatch) as computed:
            Topology.from_records([record(row, pose=Pose(x, y, 0)) for row, (x, y) in enumerate(places)])
        work.append(sum(computed))
    assert work[1] < 6 * work[0]


@contextmanager
def counted_distances(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Yield a list that receives the number of distances of each computation."""
    norm, computed = np.linalg.norm, []

    def count_distances(values: np.ndarray, **options: int) -> np.ndarray:
        result = norm(values, **options)
        computed.append(np.size(result))
        return result

    with monkeypatch.context() as patched:
        patched.setattr(np.linalg, "norm", count_distances)
        yield computed


def test_work_grows_with_the_map_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    work = []
    for count in (5_000, 20_000):
        records = [record(row, pose=Pose(row % 1000, row // 1000 * 50.0, 0)) for row in range(count)]
        with counted_distances(monkeypatch) as computed:
            topology = Topology.from_records(records)
        assert topology.neighbours.shape == (count, 2 * int(REACH) + 1)
        work.append(sum(computed))
    assert work[1] < 5 * work[0]
