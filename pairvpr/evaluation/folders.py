"""Load benchmarks of two folders, whose pictures carry UTM positions or frame numbers in their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import SourceError
from pairvpr.evaluation.benchmark import Benchmark, Indices, Picture, Positions, within_frames, within_radius
from pairvpr.evaluation.traverses import doubt_numbers, doubt_sides, frame_numbers
from pairvpr.runtime.geometry.utm_names import is_degrees, utm_pose
from pairvpr.runtime.remarks import remark
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
    where = _positions(known), _positions(asked)
    positives = within_radius(*where, RADIUS)
    without = sum(not len(right) for right in positives)
    title = name or f"{database.name} <- {queries.name}"
    degrees = any(is_degrees(each) for each, _ in (*known, *asked))
    doubts = ["numbers in names look like degrees, but are read as metres"] if degrees else []
    return Benchmark(
        title,
        tuple(known),
        tuple(asked),
        positives,
        f"Right is a database picture within {RADIUS:.0f} m by UTM position. Queries without one count as misses "
        f"(here {without}), as in VPR-methods-evaluation." + warn_of_doubts(title, doubts, positives, len(known)),
        positions=Positions(*where, "m"),
        folders=_paths(database, queries),
    )


def traverses(database: Path, queries: Path, tolerance: int) -> Benchmark:
    """Load two traverses of one way whose pictures carry the same frame numbers, as Gardens Point Walking.

    Pictures at most `tolerance` frames apart are right; Gardens Point uses 2.
    Raises SourceError for a picture without a frame number.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance {tolerance}: give 0 or more frames")
    known, asked = list_pictures(database), list_pictures(queries)
    frames, asked_frames = frame_numbers(known), frame_numbers(asked)
    positives = within_frames(frames, asked_frames, tolerance)
    without = sum(not len(right) for right in positives)
    title = f"{database.name} <- {queries.name}"
    doubts = [
        doubt_numbers(name for name, _ in known),
        doubt_numbers(name for name, _ in asked),
        doubt_sides(frames, asked_frames, tolerance),
    ]
    return Benchmark(
        title,
        tuple(known),
        tuple(asked),
        positives,
        f"Right is a database picture whose frame number differs by at most {tolerance}. Queries without one count "
        f"as misses (here {without})." + warn_of_doubts(title, doubts, positives, len(known)),
        positions=Positions(
            np.array(frames, np.float64)[:, None], np.array(asked_frames, np.float64)[:, None], "frames"
        ),
        folders=_paths(database, queries),
    )


def warn_of_doubts(title: str, doubts: Iterable[str | None], positives: Sequence[Indices], count: int) -> str:
    """Remark on reasons to doubt the right answers, and return them as sentences for the protocol.

    positives: the right answers to each query. If every picture of the database (count) is right for every query, the
    figures measure nothing, which is a reason too.
    """
    reasons = list(dict.fromkeys(doubt for doubt in doubts if doubt is not None))
    if count > 1 and all(len(right) == count for right in positives):
        reasons.append("every database picture is right for every query, so that the figures measure nothing")
    for reason in reasons:
        remark(f"{title}: {reason}")
    return "".join(f" WARNING: {reason}." for reason in reasons)


def _paths(database: Path, queries: Path) -> tuple[str, str]:
    return str(database.resolve()), str(queries.resolve())


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
