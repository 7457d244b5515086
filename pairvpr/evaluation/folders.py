"""Load benchmarks of two folders, whose pictures carry UTM positions or frame numbers in their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import SourceError
from pairvpr.evaluation.benchmark import Benchmark, Picture, within_frames, within_radius
from pairvpr.evaluation.traverses import frame_numbers
from pairvpr.runtime.geometry.pose_files import utm_pose
from pairvpr.runtime.sources import list_pictures

RADIUS = 25.0
"""Metres within which a database picture is right: the convention of Pitts30k, Tokyo 24/7, MSLS and others."""


def load_folders(database: str | Path, queries: str | Path, tolerance: int | None = None) -> Benchmark:
    """Load the benchmark of two folders of pictures.

    tolerance: match pictures by the numbers in their names, at most this many frames apart; None: match them by @UTM@
    positions.
    Raises SourceError for a folder without pictures and for names without a number or position.
    """
    sides = Path(database), Path(queries)
    return utm_folders(*sides) if tolerance is None else traverses(*sides, tolerance)


def utm_folders(database: Path, queries: Path, name: str | None = None) -> Benchmark:
    """Load two folders whose pictures are named `@UTM_east@UTM_north@...`; pictures within RADIUS are right.

    The rules are those of github.com/gmberton/VPR-methods-evaluation: the radius is inclusive, UTM zones are ignored,
    and recall is a share of all queries, so that a query without a right answer is a miss.
    """
    known, asked = list_pictures(database), list_pictures(queries)
    positives = within_radius(_positions(known), _positions(asked), RADIUS)
    without = sum(not len(right) for right in positives)
    return Benchmark(
        name or f"{database.name} <- {queries.name}",
        tuple(known),
        tuple(asked),
        positives,
        f"Right is a database picture within {RADIUS:.0f} m by UTM position. Queries without one count as misses "
        f"(here {without}), as in VPR-methods-evaluation.",
    )


def traverses(database: Path, queries: Path, tolerance: int) -> Benchmark:
    """Load two traverses of one way whose pictures carry the same frame numbers, as Gardens Point Walking.

    Pictures at most `tolerance` frames apart are right; Gardens Point uses 2.
    Raises SourceError for a picture without a frame number.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance {tolerance}: give 0 or more frames")
    known, asked = list_pictures(database), list_pictures(queries)
    positives = within_frames(frame_numbers(known), frame_numbers(asked), tolerance)
    without = sum(not len(right) for right in positives)
    return Benchmark(
        f"{database.name} <- {queries.name}",
        tuple(known),
        tuple(asked),
        positives,
        f"Right is a database picture whose frame number differs by at most {tolerance}. Queries without one count "
        f"as misses (here {without}).",
    )


def _positions(pictures: Sequence[Picture]) -> npt.NDArray[np.float64]:
    """Return east and north in metres (n, 2). Raises SourceError for a name without a position."""
    poses = [(utm_pose(name), path) for name, path in pictures]
    for pose, path in poses:
        if pose is None:
            raise SourceError(
                f"{path}: no position in its name; name pictures @UTM_east@UTM_north@..., or give --tolerance FRAMES "
                "if the number in the name counts frames"
            )
    return np.array([(pose.x, pose.y) for pose, _ in poses if pose is not None], np.float64)
