"""Load two traverses of a robot with poses: a mapping drive, and a later drive that is recognised in it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pairvpr.errors import SourceError
from pairvpr.evaluation.benchmark import Benchmark, Picture, Positions
from pairvpr.runtime.geometry.geodesy import positions_in_metres
from pairvpr.runtime.geometry.pose_files import PlaceFinder
from pairvpr.runtime.geometry.poses import Gps, Place, Pose
from pairvpr.runtime.sources import Frame, open_source

FRAMES = "frames"

log = logging.getLogger(__name__)


def load_robot(mapping: Path, drive: Path, radius: float, work: Path, poses: Sequence[str | Path] = ()) -> Benchmark:
    """Load the benchmark of two drives; a mapping picture within `radius` metres of the query's place is right.

    mapping, drive: sources with poses, as for `pairvpr map build`: folders, bags, videos.
    poses: files of poses: none, one for both drives, or one for each.
    work: a folder for the frames of sources that are not picture files. They are written as PNG.
    Pictures without a place, and those that cannot be read, are left out with a warning.
    Raises SourceError if a drive has no pictures with places, or if the places of both are in different frames.
    """
    known, wheres = _load_side(mapping, poses[0] if poses else None, work / FRAMES / "mapping")
    asked, others = _load_side(drive, poses[-1] if poses else None, work / FRAMES / "drive")
    metres = positions_in_metres([*wheres, *others], f"{mapping} and {drive}")
    database, queries = metres[: len(wheres)], metres[len(wheres) :]
    positions = Positions(database, queries, "m")
    positives = tuple(
        np.flatnonzero(positions.distances(row) <= radius).astype(np.int64) for row in range(len(queries))
    )
    without = sum(not len(right) for right in positives)
    return Benchmark(
        f"{mapping.name} <- {drive.name}",
        tuple(known),
        tuple(asked),
        positives,
        f"Right is a mapping picture within {radius:g} m. Queries without one count as misses (here {without}).",
        positions=positions,
        folders=(str(mapping.resolve()), str(drive.resolve())),
    )


def _load_side(path: Path, poses: str | Path | None, frames: Path) -> tuple[list[Picture], list[Pose | Gps]]:
    """Return the pictures of a drive that have places, and these places."""
    finder = PlaceFinder(poses)
    pictures: list[Picture] = []
    wheres: list[Pose | Gps] = []
    without = 0
    with open_source(str(path)) as source:
        if source.live:
            raise SourceError(f"{path}: a live source cannot be evaluated; give a recorded drive")
        for frame in source:
            if frame.picture is None:
                log.warning("skipped: %s", frame.error)
                continue
            place = finder.find_place(frame.name, frame.path, Place(frame.pose, frame.gps, frame.timestamp))
            where = place.pose or place.gps
            if where is None:
                without += 1
                continue
            pictures.append((frame.name, frame.path or _keep(frame, frames / f"{len(pictures):06d}.png")))
            wheres.append(where)
    if not pictures:
        hint = "" if poses is None else f" ({finder.compare()})"
        raise SourceError(
            f"{path}: none of its pictures has a place{hint}; give --poses, @UTM@ names, EXIF GPS, or a bag with poses"
        )
    if without:
        log.warning("%s: %d pictures left out: they have no place", path, without)
    return pictures, wheres


def _keep(frame: Frame, file: Path) -> Path:
    """Write a frame's picture into a file, and return the file."""
    assert frame.picture is not None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        frame.picture.save(file, compress_level=1)
    except OSError as error:
        raise SourceError(f"{file}: cannot be written ({error.strerror or error}); choose another --work") from error
    return file
