"""Describe a benchmark: database, queries, and the right answers to each query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import SourceError

Picture = tuple[str, Path]
"""A picture's name, unique within its side of a benchmark, and its file."""
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Positions:
    """The positions of both sides.

    database: (n, d). queries: (m, d). unit: "m" or "frames".
    """

    database: npt.NDArray[np.float64]
    queries: npt.NDArray[np.float64]
    unit: str

    def distances(self, query: int) -> npt.NDArray[np.float64]:
        """Return the distances (n,) of all database pictures from a query."""
        found: npt.NDArray[np.float64] = np.linalg.norm(self.database - self.queries[query], axis=1)
        return found

    def errors(self, matched: Indices) -> npt.NDArray[np.float64]:
        """Return the distance (m,) of each query's matched picture, whose database index is in `matched` (m,)."""
        found: npt.NDArray[np.float64] = np.linalg.norm(self.database[matched] - self.queries, axis=1)
        return found


@dataclass(frozen=True)
class Benchmark:
    """Pictures of known places, and queries to find among them.

    positives: for each query the indices of the database pictures that are right answers, ascending.
    protocol: the rule for right answers and for queries without any, with its publication.
    positions: positions of the pictures; None if they are not known.
    folders: the whole paths of database and queries; None for a published data set.

    Raises SourceError if a side is empty or has a name twice, or if no query has a right answer.
    """

    name: str
    database: tuple[Picture, ...]
    queries: tuple[Picture, ...]
    positives: tuple[Indices, ...]
    protocol: str
    positions: Positions | None = None
    folders: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if len(self.positives) != len(self.queries):
            raise ValueError(f"{len(self.queries)} queries need one array of positives each, not {len(self.positives)}")
        for side, pictures in (("database", self.database), ("queries", self.queries)):
            if not pictures:
                raise SourceError(f"{self.name}: no pictures among its {side}; check the folder")
            seen: set[str] = set()
            for name, path in pictures:
                if name in seen:
                    raise SourceError(f"{path}: the {side} of {self.name} name {name!r} twice; remove one of the two")
                seen.add(name)
        if not any(len(right) for right in self.positives):
            raise SourceError(
                f"{self.name}: none of its {len(self.queries)} queries has a right answer in the database; "
                "check that both sides show the same places"
            )


def within_radius(
    database: npt.NDArray[np.float64], queries: npt.NDArray[np.float64], radius: float
) -> tuple[Indices, ...]:
    """Return for each query the indices of the database positions at most `radius` metres away, ascending.

    database: (n, 2), queries: (m, 2), in metres.
    """
    by_east = np.argsort(database[:, 0], kind="stable")
    east = database[by_east, 0]
    margin = radius + 1e-3  # rounding must not narrow the window; the distance decides
    first = np.searchsorted(east, queries[:, 0] - margin)
    last = np.searchsorted(east, queries[:, 0] + margin, side="right")
    found = []
    for query, start, end in zip(queries, first, last, strict=True):
        window = by_east[start:end]
        distance = np.hypot(*(database[window] - query).T)
        found.append(np.sort(window[distance <= radius]).astype(np.int64))
    return tuple(found)


def within_frames(database: Sequence[int], queries: Sequence[int], tolerance: int) -> tuple[Indices, ...]:
    """Return for each query the indices of the database frames at most `tolerance` numbers away, ascending."""
    frames = np.asarray(database, np.int64)
    order = np.argsort(frames, kind="stable")
    wanted = np.asarray(queries, np.int64)
    first = np.searchsorted(frames[order], wanted - tolerance)
    last = np.searchsorted(frames[order], wanted + tolerance, side="right")
    return tuple(np.sort(order[start:end]).astype(np.int64) for start, end in zip(first, last, strict=True))
