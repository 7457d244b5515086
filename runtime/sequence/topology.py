"""Neighbour graph of a map's pictures, with driving distances."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.geometry.geodesy import EARTH_RADIUS
from pairvpr.runtime.map import Record

REACH = 16.0
"""Distance within which pictures are neighbours, in spacings. A robot that went further may be anywhere."""
MOST = 64
"""Most neighbours of a picture, the nearest ones. It bounds memory and time."""
CHUNK = 1_000_000
"""Distances computed at once."""
CROWD = 4 * MOST
"""Pictures in a square from which the search for neighbours begins with smaller squares."""
MOST_CELLS = 2**30
"""Most squares on a side of the map, so that their number fits into 64 bits."""
APART = 1e6
"""Distance between two drives in pictures, if only the order of the pictures is known."""


@dataclass(frozen=True)
class Topology:
    """The neighbours of each of n pictures.

    metric: True if distances are metres (from poses or GPS positions), False if they are pictures along the drive.
    spacing: median distance from one picture of a drive to the next, above 0.
    seconds: median time from one picture of a drive to the next, None if unknown.
    neighbours: (n, K) int64, rows of the nearest pictures within REACH spacings, itself included. K is at most MOST.
    distances: (n, K) float64, in the unit of `metric`. A picture with fewer than K neighbours has itself at infinity.
    """

    metric: bool
    spacing: float
    seconds: float | None
    neighbours: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float64]

    @property
    def reach(self) -> float:
        """Distance within which pictures are neighbours."""
        return REACH * self.spacing

    @staticmethod
    def from_records(records: Sequence[Record]) -> Topology:
        """Make the topology of a map's records.

        Distances come from positions if all records have one, in one frame of reference. Otherwise they come from the
        order of the records. A drive is the records of one source and one subfolder, in the order in which they were
        added.
        """
        drives: dict[tuple[str, str], list[int]] = {}
        for row, record in enumerate(records):
            drives.setdefault((record.source, posixpath.dirname(record.name)), []).append(row)
        order = list(drives.values())
        stamps = [[records[row].timestamp for row in rows] for rows in order]
        steps = [b - a for drive in stamps for a, b in pairwise(drive) if a is not None and b is not None]
        forward = [step for step in steps if step > 0]
        seconds = float(np.median(forward)) if forward else None
        positions = _positions(records)
        if positions is not None:
            return Topology._from_positions(positions, order, seconds, metric=True)
        return Topology.from_order(order, len(records), seconds)

    @staticmethod
    def from_order(drives: Sequence[Sequence[int]], count: int, seconds: float | None = None) -> Topology:
        """Make the topology of `count` pictures from the rows of each drive, in their order."""
        positions = np.zeros((count, 2))
        for number, rows in enumerate(drives):
            positions[list(rows)] = np.stack([np.arange(len(rows)), np.full(len(rows), number * APART)], axis=1)
        return Topology._from_positions(positions, drives, seconds, metric=False)

    @staticmethod
    def _from_positions(
        positions: npt.NDArray[np.float64], drives: Sequence[Sequence[int]], seconds: float | None, metric: bool
    ) -> Topology:
        steps = [np.linalg.norm(np.diff(positions[list(rows)], axis=0), axis=1) for rows in drives]
        moved = np.concatenate([np.zeros(0), *steps])
        moved = moved[moved > 0]
        spacing = float(np.median(moved)) if len(moved) else 1.0
        return Topology(metric, spacing, seconds, *_nearest(positions, REACH * spacing))

    def __str__(self) -> str:
        if self.metric:
            return f"by positions, {self.spacing:.1f} m apart"
        return "by the order of the map's pictures"


def _positions(records: Sequence[Record]) -> npt.NDArray[np.float64] | None:
    """Return positions (n, 3) in metres; None if a picture has none or they are in several frames of reference."""
    poses = [record.pose for record in records if record.pose is not None]
    if len(poses) == len(records) and len({pose.frame for pose in poses}) == 1:
        return np.array([(pose.x, pose.y, pose.z) for pose in poses], np.float64)
    gps = [record.gps for record in records if record.gps is not None]
    if not records or len(gps) != len(records):
        return None
    degrees = np.array([(each.longitude, each.latitude) for each in gps], np.float64)
    degrees -= degrees[0]
    degrees[:, 0] = (degrees[:, 0] + 180) % 360 - 180
    degrees[:, 0] *= math.cos(math.radians(gps[0].latitude))  # a map is small enough to be flat
    return np.radians(np.pad(degrees, ((0, 0), (0, 1)))) * EARTH_RADIUS


def _nearest(
    positions: npt.NDArray[np.float64], radius: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the nearest of n positions (n, 2 or 3) within `radius` for each, and their distances; see `Topology`.

    The search begins within a fraction of the radius that holds few pictures, and doubles it for the pictures that have
    fewer than MOST neighbours there. Crowded places thus cost little more than others.
    """
    count = len(positions)
    neighbours = np.repeat(np.arange(count)[:, None], MOST, axis=1)
    distances = np.full((count, MOST), np.inf)
    waiting, candidates = _settle_stops(positions, neighbours, distances)
    within = radius
    finest = np.ptp(positions[:, :2], axis=0).max() / MOST_CELLS if count else radius
    while within > finest and _most_in_cell(positions[candidates], within) > CROWD:
        within /= 2
    while True:
        waiting = _search_within(positions, waiting, candidates, within, neighbours, distances)
        if within >= radius:
            break
        within = min(2 * within, radius)
    widest = int(np.isfinite(distances).sum(axis=1).max(initial=1))
    return neighbours[:, :widest].copy(), distances[:, :widest].copy()


def _settle_stops(
    positions: npt.NDArray[np.float64], neighbours: npt.NDArray[np.int64], distances: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Fill in the neighbours of pictures that share their position with MOST others or more: the next ones in order.

    Return the rows of the other pictures, and the rows that can be a neighbour of one of these.
    """
    _, where, sizes = np.unique(positions, axis=0, return_inverse=True, return_counts=True)
    where = where.reshape(-1)  # numpy 2.0 gives it another shape
    order = np.argsort(where, kind="stable")
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    crowded = np.flatnonzero(sizes > MOST)
    ends = np.cumsum(sizes)
    for place in crowded.tolist():
        rows = order[ends[place] - sizes[place] : ends[place]]
        first = np.clip(np.arange(len(rows)) - MOST // 2, 0, len(rows) - MOST)
        neighbours[rows] = rows[first[:, None] + np.arange(MOST)]
        distances[rows] = 0.0
    return np.flatnonzero(sizes[where] <= MOST), np.sort(order[rank < MOST])


def _cells(positions: npt.NDArray[np.float64], size: float) -> tuple[npt.NDArray[np.int64], int]:
    """Return the cell (n,) of each position in a grid of squares, and the number of cells in a column."""
    cells = np.floor((positions[:, :2] - positions[:, :2].min(axis=0, initial=np.inf)) / size).astype(np.int64) + 1
    stride = int(cells[:, 1].max(initial=0)) + 2
    return cells[:, 0] * stride + cells[:, 1], stride


def _most_in_cell(positions: npt.NDArray[np.float64], size: float) -> int:
    keys, _ = _cells(positions, size)
    return int(np.unique(keys, return_counts=True)[1].max(initial=0))


def _search_within(
    positions: npt.NDArray[np.float64],
    waiting: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int64],
    within: float,
    neighbours: npt.NDArray[np.int64],
    distances: npt.NDArray[np.float64],
) -> npt.NDArray[np.int64]:
    """Fill in the neighbours of the rows `waiting` within a distance. Return those with fewer than MOST."""
    both = np.union1d(waiting, candidates)
    keys, stride = _cells(positions[both], within)
    key_of = np.zeros(len(positions), np.int64)
    key_of[both] = keys
    rows = candidates[np.argsort(key_of[candidates], kind="stable")]
    keys = key_of[rows]
    asked = waiting[np.argsort(key_of[waiting], kind="stable")]
    for here in np.split(asked, np.flatnonzero(np.diff(key_of[asked])) + 1):
        if not len(here):
            continue
        key = key_of[here[0]]
        columns = [np.searchsorted(keys, (key + step - 1, key + step + 2)) for step in (-stride, 0, stride)]
        near = np.sort(np.concatenate([rows[first:last] for first, last in columns]))
        for part in np.array_split(here, math.ceil(len(here) * len(near) / CHUNK)):
            apart = np.linalg.norm(positions[part, None] - positions[None, near], axis=2)
            apart[apart > within] = np.inf
            own = np.searchsorted(near, part)
            apart[np.arange(len(part)), own] = -1.0  # first, whatever else is there
            nearest = np.argsort(apart, axis=1, kind="stable")[:, :MOST]
            sorted_ = np.take_along_axis(apart, nearest, axis=1)
            sorted_[:, 0] = 0.0
            found = np.isfinite(sorted_)
            neighbours[part, : nearest.shape[1]] = np.where(found, near[nearest], part[:, None])
            distances[part, : nearest.shape[1]] = sorted_
    lacking: npt.NDArray[np.bool_] = ~np.isfinite(distances[waiting, MOST - 1])
    return waiting[lacking]
