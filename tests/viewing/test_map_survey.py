"""Gaps of a map, and places that look alike."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.viewing.map_survey import MOST, find_gaps, find_look_alikes


def record(name: str, pose: Pose | None, source: str = "drive", gps: Gps | None = None) -> Any:
    return SimpleNamespace(name=name, pose=pose, gps=gps, source=source)


def line(*metres: float) -> list[Any]:
    return [record(f"p{i}", Pose(x, 0, 0)) for i, x in enumerate(metres)]


def map_of(records: list[Any], descriptors: Any) -> Any:
    descriptors = np.asarray(descriptors, np.float32)
    return SimpleNamespace(
        records=records, descriptors=descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)
    )


def test_gaps_are_steps_above_thrice_the_median() -> None:
    found = find_gaps(line(0, 1, 2, 3, 10, 11, 12, 14.5, 20))
    assert [(gap.first, gap.second, gap.metres, gap.step) for gap in found] == [
        ("p3", "p4", 7, 1),
        ("p7", "p8", 5.5, 1),
    ]
    assert find_gaps(line(0, 1, 2, 3)) == find_gaps(line(0)) == find_gaps([]) == []
    assert len(find_gaps(line(*(x + 50 * (x // 10) for x in range(200))))) == MOST


def test_only_pictures_of_one_source_and_frame_have_gaps() -> None:
    steps = line(0, 1, 2, 3)
    assert find_gaps([*steps, record("other", Pose(90, 0, 0), "drive2")]) == []
    assert find_gaps([*steps, record("lost", None), record("far", Pose(90, 0, 0))]) == []
    assert find_gaps([*steps, record("odd", Pose(90, 0, 0, frame="utm"))]) == []
    gps = [record(str(i), None, gps=Gps(50, 8 + degrees)) for i, degrees in enumerate((0, 0.001, 0.002, 0.02))]
    assert [gap.metres for gap in find_gaps(gps)] == [pytest.approx(1287, rel=0.01)]


def test_pictures_that_are_near_are_no_look_alikes() -> None:
    chance = np.random.default_rng(0)
    descriptors = chance.normal(size=(40, 64))
    descriptors[21] = descriptors[20] + 0.01 * chance.normal(size=64)  # neighbours
    descriptors[30] = descriptors[5] + 0.1 * chance.normal(size=64)
    descriptors[31] = descriptors[6] + 0.2 * chance.normal(size=64)  # of the same two places
    for records in (line(*range(40)), [record(f"p{i}", None) for i in range(40)]):
        found = find_look_alikes(map_of(records, descriptors))
        assert len(found) == MOST
        assert (found[0].first, found[0].second) == (5, 30)
        assert found[0].similarity == pytest.approx(0.995, abs=0.01)
        assert found[0].metres == (25 if records[0].pose else None)
        assert all(each.similarity < 0.6 for each in found[1:])


def test_a_second_drive_is_no_look_alike_of_the_first_where_places_are_known() -> None:
    descriptors = np.eye(40)
    again = map_of([*line(*range(40)), *line(*range(40))], np.concatenate([descriptors, descriptors]))
    assert all(each.similarity == 0 for each in find_look_alikes(again))


@pytest.mark.parametrize("count", [0, 1])
def test_small_maps_have_none(count: int, tmp_path: Path) -> None:
    assert find_look_alikes(map_of(line(*range(count)), np.ones((count, 4)))) == []
    assert find_look_alikes(map_of(line(0, 0), np.ones((2, 4)))) == []
