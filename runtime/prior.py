"""Restrict an answer to a part of the map: a robot mostly knows roughly where it is."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.geometry.clocks import hours_of_day
from pairvpr.runtime.geometry.geodesy import EARTH_RADIUS
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.geometry.rotations import angles_between
from pairvpr.runtime.map import Record


@dataclass(frozen=True)
class Prior:
    """State where in the map the answer can be. All given conditions hold together.

    near: pose or GPS position of the query, about. Map pictures of the other kind, or in another frame, are not near.
    radius: metres around `near`.
    turn: degrees by which the headings of a map picture and of `near`, a pose with an orientation, may differ. Two
    headings differ by the angle of the rotation between their orientations, whichever axis of robot or camera looks
    ahead. This is the difference of their yaws if the robot stays upright.
    hour: time of day in hours, UTC, from 0 to 24. Time stamps that do not count from 1970 have no time of day.
    hours: hours before and after `hour`.
    names: shell-style pattern of picture names, such as `floor3/*`. Letter case counts.
    sources: the same of the sources of pictures, as the map has them: folders and files by their whole path.
    pictures: names of map pictures. Names that the map lacks count for nothing.

    A map picture without position, orientation or time of day does not meet a condition on it.
    Raises ValueError for a prior that restricts nothing, and for numbers out of their ranges.
    """

    near: Pose | Gps | None = None
    radius: float = math.inf
    names: str | None = None
    pictures: frozenset[str] | None = None
    turn: float | None = None
    hour: float | None = None
    hours: float = 0.0
    sources: str | None = None

    def __post_init__(self) -> None:
        if all(each is None for each in (self.near, self.names, self.sources, self.pictures, self.hour)):
            raise ValueError("a prior needs near, names, sources, pictures or hour")
        if self.turn is not None:
            if not isinstance(self.near, Pose) or self.near.q is None:
                raise ValueError("turn needs a pose with an orientation in near")
            if not 0 < self.turn <= 180:
                raise ValueError(f"turn of {self.turn} degrees: give a number above 0, at most 180")
        bounded = self.near is None or (self.turn is not None and self.radius == math.inf)
        if not bounded and not 0 < self.radius < math.inf:
            raise ValueError(f"radius of {self.radius} m: give a number of metres above 0")
        if self.hour is not None and not (0 <= self.hour <= 24 and 0 < self.hours < 12):
            raise ValueError(
                f"{self.hours} hours around {self.hour}: give an hour from 0 to 24, and hours between 0 and 12"
            )

    @property
    def part(self) -> Prior | None:
        """Return the conditions that do not depend on the query: names, sources and pictures. None if there are none.

        They say which part of the map is the whole map for a robot.
        """
        if self.names is None and self.sources is None and self.pictures is None:
            return None
        return dataclasses.replace(self, near=None, radius=math.inf, turn=None, hour=None, hours=0.0)

    def __str__(self) -> str:
        parts = [] if self.radius == math.inf else [f"within {self.radius:g} m of {self.near}"]
        parts += [] if self.turn is None else [f"within {self.turn:g} degrees of the query's heading"]
        parts += [] if self.hour is None else [f"within {self.hours:g} hours of {_clock(self.hour)} UTC"]
        parts += [] if self.names is None else [f"named {self.names}"]
        parts += [] if self.sources is None else [f"of a source {self.sources}"]
        return ", ".join([*parts, *([] if self.pictures is None else [f"one of {len(self.pictures)} given pictures"])])


class PriorIndex:
    """Find the rows of a map that a prior allows. records: the map's pictures, in the order of their rows."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._names = [record.name for record in records]
        self._sources = [record.source for record in records]
        self._frames = np.array([None if each.pose is None else each.pose.frame for each in records], object)
        self._metres = np.array(
            [(math.nan,) * 3 if each.pose is None else (each.pose.x, each.pose.y, each.pose.z) for each in records],
            np.float64,
        ).reshape(-1, 3)
        self._orientations = np.array(
            [(each.pose is not None and each.pose.q) or (math.nan,) * 4 for each in records], np.float64
        ).reshape(-1, 4)
        self._degrees = np.array(
            [(math.nan,) * 2 if each.gps is None else (each.gps.latitude, each.gps.longitude) for each in records],
            np.float64,
        ).reshape(-1, 2)
        self._hours = hours_of_day([record.timestamp for record in records])

    def find_lack(self, prior: Prior) -> str | None:
        """Return what no picture of the map has and the prior needs, with the remedy. None if the map has all."""
        near = prior.near
        if isinstance(near, Gps) and not np.isfinite(self._degrees).any():
            return f"GPS positions, so none is near {near}; build the map with --poses"
        if isinstance(near, Pose):
            framed = self._frames == near.frame
            if not framed.any():
                return f"poses in {near.frame}, so none is near {near}; build the map with --poses"
            if prior.turn is not None and not np.isfinite(self._orientations[framed]).any():
                return f"an orientation in {near.frame}; build the map with poses that have one"
        if prior.hour is not None and not np.isfinite(self._hours).any():
            return "a time of day; build the map from pictures with time stamps that count from 1970"
        return None

    def rows(self, prior: Prior) -> npt.NDArray[np.int64]:
        """Return the allowed rows, ascending."""
        allowed = np.ones(len(self._names), bool)
        if prior.near is not None and prior.radius < math.inf:
            allowed &= self._distances(prior.near) <= prior.radius
        if prior.turn is not None and isinstance(prior.near, Pose) and prior.near.q is not None:
            turns = np.degrees(angles_between(self._orientations, prior.near.q))
            allowed &= (self._frames == prior.near.frame) & (turns <= prior.turn)
        if prior.hour is not None:
            apart = np.abs(self._hours - prior.hour) % 24
            allowed &= np.minimum(apart, 24 - apart) <= prior.hours
        if prior.pictures is not None:
            given = np.zeros(len(self._names), bool)
            given[[self._rows[name] for name in prior.pictures if name in self._rows]] = True
            allowed &= given
        rows = np.flatnonzero(allowed)
        for pattern, texts in ((prior.names, self._names), (prior.sources, self._sources)):
            if pattern is not None:
                rows = rows[[fnmatch.fnmatchcase(texts[row], pattern) for row in rows]]
        return rows

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


def _clock(hour: float) -> str:
    minutes = round(60 * hour) % 1440
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
