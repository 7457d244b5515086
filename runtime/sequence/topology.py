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
    """Return the nearest of n positions (n, 2 or 3) within `radius` for each, and their distances; see `Topology`."""
    count = len(positions)
    cells = np.floor((positions[:, :2] - positions[:, :2].min(axis=0, initial=np.inf)) / radius).astype(np.int64) + 1
    stride = cells[:, 1].max(initial=0) + 2
    keys = cells[:, 0] * stride + cells[:, 1]
    rows = np.argsort(keys, kind="stable")
    keys, starts = keys[rows], np.flatnonzero(np.diff(keys[rows], prepend=-1))
    neighbours = np.repeat(np.arange(count)[:, None], MOST, axis=1)
    distances = np.full((count, MOST), np.inf)
    for start, end in zip(starts, np.append(starts[1:], count), strict=True):
        key, here = keys[start], rows[start:end]
        columns = [np.searchsorted(keys, (key + step - 1, key + step + 2)) for step in (-stride, 0, stride)]
        near = np.concatenate([rows[first:last] for first, last in columns])
        for part in np.array_split(here, math.ceil(len(here) * len(near) / CHUNK)):
            apart = np.linalg.norm(positions[part, None] - positions[None, near], axis=2)
            apart[apart > radius] = np.inf
            nearest = np.argsort(apart, axis=1, kind="stable")[:, :MOST]
            sorted_ = np.take_along_axis(apart, nearest, axis=1)
            found = np.isfinite(sorted_)
            neighbours[part, : nearest.shape[1]] = np.where(found, near[nearest], part[:, None])
            distances[part, : nearest.shape[1]] = sorted_
    widest = int(np.isfinite(distances).sum(axis=1).max(initial=1))
    return neighbours[:, :widest].copy(), distances[:, :widest].copy()
