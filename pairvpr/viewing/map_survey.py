"""Survey a map: gaps between consecutive pictures, and places that look alike although they are far apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.map import Map, Record
from pairvpr.spread import spread

COMPARED = 1500
"""Most pictures that are compared with each other, evenly chosen."""
FAR = 0.1
"""Share of the map's extent from which pictures are far apart; of its number of pictures where places are unknown."""
WIDE = 3.0
"""A gap is wider than the median step by this factor."""
MOST = 6
"""Most gaps and pairs that are shown."""


@dataclass(frozen=True)
class Gap:
    """Two consecutive pictures of one source that lie far apart. metres: between them. step: the median step."""

    first: str
    second: str
    metres: float
    step: float


@dataclass(frozen=True)
class LookAlike:
    """Two pictures that are far apart and look alike.

    first, second: indices of the records. similarity: cosine of the descriptors. metres: between them; None if unknown.
    """

    first: int
    second: int
    similarity: float
    metres: float | None


def find_gaps(records: Sequence[Record]) -> list[Gap]:
    """Return the widest gaps between consecutive pictures of one source, widest first."""
    steps = []
    for first, second in itertools.pairwise(records):
        metres = _distance(first, second)
        if first.source == second.source and metres is not None:
            steps.append((metres, first.name, second.name))
    if not steps:
        return []
    usual = median(metres for metres, _, _ in steps)
    wide = sorted((step for step in steps if step[0] > WIDE * usual), key=lambda step: -step[0])
    return [Gap(first, second, metres, usual) for metres, first, second in wide[:MOST]]


def find_look_alikes(map_: Map) -> list[LookAlike]:
    """Return the pairs of pictures of highest similarity that are far apart, at most one for a pair of places."""
    chosen = spread(list(range(len(map_.records))), COMPARED)
    if len(chosen) < 2:
        return []
    descriptors = map_.descriptors[chosen]
    similarities = np.where(np.triu(_far([map_.records[i] for i in chosen]), 1), descriptors @ descriptors.T, -np.inf)
    near = max(1, round(FAR * len(chosen)))
    found: list[LookAlike] = []
    while len(found) < MOST and np.isfinite(best := float(similarities.max())):
        row, column = np.unravel_index(int(similarities.argmax()), similarities.shape)
        first, second = chosen[int(row)], chosen[int(column)]
        found.append(LookAlike(first, second, best, _distance(map_.records[first], map_.records[second])))
        around = [slice(max(0, int(i) - near), int(i) + near + 1) for i in (row, column)]
        similarities[around[0], around[1]] = -np.inf
    return found


def _far(records: Sequence[Record]) -> npt.NDArray[np.bool_]:
    """Return which pairs of n pictures are far apart, (n, n): by place where both are known, else by order."""
    order = np.arange(len(records))
    far: npt.NDArray[np.bool_] = np.abs(order[:, None] - order) > FAR * len(records)
    by_frame: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        if record.pose is not None:
            by_frame.setdefault(record.pose.frame, []).append(i)
    for rows in by_frame.values():
        poses = [pose for i in rows if (pose := records[i].pose) is not None]
        points = np.array([(pose.x, pose.y, pose.z) for pose in poses])
        apart = np.linalg.norm(points[:, None] - points, axis=2)
        far[np.ix_(rows, rows)] = apart > FAR * np.linalg.norm(np.ptp(points, axis=0))
    return far


def _distance(first: Record, second: Record) -> float | None:
    """Return the metres between two pictures, None if they are not known in one frame."""
    places = first.pose or first.gps, second.pose or second.gps
    if places[0] is None or places[1] is None:
        return None
    metres = distance_between(places[0], places[1])
    return metres if math.isfinite(metres) else None
