"""Where a map's pictures lie to each other, as far as driving from one to another goes."""

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
"""Spacings within which pictures are neighbours: who was unseen for longer may be anywhere."""
MOST = 64
"""Neighbours that a picture has at most, the nearest; what bounds memory and time."""
CHUNK = 1_000_000
"""Distances that are computed at once."""
APART = 1e6
"""Records between two drives whose order in time is all that is known."""


@dataclass(frozen=True)
class Layout:
    """n pictures and which of them are near each other.

    metric: whether distances are metres (poses or GPS positions), else pictures along the order of the drive.
    spacing: the usual distance between one and the next of a drive, above 0; seconds: the usual time, None where it is
    not known. neighbours (n, K) int64, distances (n, K) float64: the nearest within REACH spacings, the picture itself
    among them, K at most MOST; where there are fewer than K, the rest is itself at infinity.
    """

    metric: bool
    spacing: float
    seconds: float | None
    neighbours: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float64]

    @property
    def reach(self) -> float:
        """The distance within which there are neighbours."""
        return REACH * self.spacing

    @staticmethod
    def of(records: Sequence[Record]) -> Layout:
        """That of a map's records: by their places if all have one, in one frame of reference; else by their order.

        A drive is what came from one source, of a folder one subfolder, in the order in which it was added.
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
            return Layout._of(positions, order, seconds, metric=True)
        return Layout.along(order, len(records), seconds)

    @staticmethod
    def along(drives: Sequence[Sequence[int]], count: int, seconds: float | None = None) -> Layout:
        """That of `count` pictures of which only the order is known: rows of each drive, in its order."""
        positions = np.zeros((count, 2))
        for number, rows in enumerate(drives):
            positions[list(rows)] = np.stack([np.arange(len(rows)), np.full(len(rows), number * APART)], axis=1)
        return Layout._of(positions, drives, seconds, metric=False)

    @staticmethod
    def _of(
        positions: npt.NDArray[np.float64], drives: Sequence[Sequence[int]], seconds: float | None, metric: bool
    ) -> Layout:
        steps = [np.linalg.norm(np.diff(positions[list(rows)], axis=0), axis=1) for rows in drives]
        moved = np.concatenate([np.zeros(0), *steps])
        moved = moved[moved > 0]
        spacing = float(np.median(moved)) if len(moved) else 1.0
        return Layout(metric, spacing, seconds, *_nearest(positions, REACH * spacing))

    def __str__(self) -> str:
        if self.metric:
            return f"by places, {self.spacing:.1f} m apart"
        return "by the order of the map's pictures"


def _positions(records: Sequence[Record]) -> npt.NDArray[np.float64] | None:
    """Metres (n, 3), None where a picture has no place, or places are in several frames of reference."""
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
    """For each of n positions (n, 2 or 3) the nearest within `radius`, and their distances; see `Layout`."""
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
