"""Restrict an answer to a part of the map: a robot mostly knows roughly where it is."""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.geometry.geodesy import EARTH_RADIUS
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Record


@dataclass(frozen=True)
class Prior:
    """State where in the map the answer can be.

    near: pose or GPS position of the query, about. Map pictures of the other kind, or in another frame, are not near.
    radius: metres around `near`.
    names: shell-style pattern of picture names, such as `floor3/*`. Letter case counts.
    pictures: names of map pictures. Names that the map lacks count for nothing.

    Raises ValueError for a prior that restricts nothing, and for a radius that is not a positive number.
    """

    near: Pose | Gps | None = None
    radius: float = math.inf
    names: str | None = None
    pictures: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.near is None and self.names is None and self.pictures is None:
            raise ValueError("a prior needs near, names or pictures")
        if self.near is not None and not 0 < self.radius < math.inf:
            raise ValueError(f"radius of {self.radius} m: give a number of metres above 0")

    def __str__(self) -> str:
        parts = [] if self.near is None else [f"within {self.radius:g} m of {self.near}"]
        parts += [] if self.names is None else [f"named {self.names}"]
        return ", ".join([*parts, *([] if self.pictures is None else [f"one of {len(self.pictures)} given pictures"])])


class PriorIndex:
    """Find the rows of a map that a prior allows. records: the map's pictures, in the order of their rows."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._names = [record.name for record in records]
        self._frames = np.array([None if each.pose is None else each.pose.frame for each in records], object)
        self._metres = np.array(
            [(math.nan,) * 3 if each.pose is None else (each.pose.x, each.pose.y, each.pose.z) for each in records],
            np.float64,
        ).reshape(-1, 3)
        self._degrees = np.array(
            [(math.nan,) * 2 if each.gps is None else (each.gps.latitude, each.gps.longitude) for each in records],
            np.float64,
        ).reshape(-1, 2)

    def knows(self, position: Pose | Gps) -> bool:
        """Return whether any picture of the map has a position of the same kind and frame."""
        if isinstance(position, Pose):
            return bool((self._frames == position.frame).any())
        return bool(np.isfinite(self._degrees).any())

    def rows(self, prior: Prior) -> npt.NDArray[np.int64]:
        """Return the allowed rows, ascending."""
        allowed = np.ones(len(self._names), bool)
        if prior.near is not None:
            allowed &= self._distances(prior.near) <= prior.radius
        if prior.pictures is not None:
            given = np.zeros(len(self._names), bool)
            given[[self._rows[name] for name in prior.pictures if name in self._rows]] = True
            allowed &= given
        rows = np.flatnonzero(allowed)
        if prior.names is None:
            return rows
        return rows[[fnmatch.fnmatchcase(self._names[row], prior.names) for row in rows]]

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        """Return the row of each name, made when pictures are first given."""
        return {name: row for row, name in enumerate(self._names)}

    def _distances(self, position: Pose | Gps) -> npt.NDArray[np.float64]:
        """Return metres (n,) to each picture as `distance_between` does, infinite for pictures without a distance."""
        if isinstance(position, Pose):
            metres = np.linalg.norm(self._metres - (position.x, position.y, position.z), axis=1)
            return np.where(self._frames == position.frame, metres, math.inf)
        south, north = math.radians(position.latitude), np.radians(self._degrees[:, 0])
        across = np.radians(self._degrees[:, 1] - position.longitude)
        half = np.sin((north - south) / 2) ** 2 + math.cos(south) * np.cos(north) * np.sin(across / 2) ** 2
        metres = 2 * EARTH_RADIUS * np.arcsin(np.minimum(np.sqrt(half), 1.0))
        return np.where(np.isfinite(metres), metres, math.inf)
