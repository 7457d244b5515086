"""Locate the pictures of a calibration and of the map, by poses and GPS or by frame numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pairvpr.errors import MapError
from pairvpr.evaluation.traverses import frame_number, frame_numbers
from pairvpr.runtime.answer import Match
from pairvpr.runtime.geometry.pose_files import PlaceFinder
from pairvpr.runtime.geometry.poses import Gps, Place, Pose
from pairvpr.runtime.map import Map
from pairvpr.runtime.sources import Frame, Source


@dataclass(frozen=True)
class Locator:
    """Look up the places of queries and matches.

    of_frame: returns the place of a query, or None.
    of_match: returns the place of a match, or None.
    known: places of the map's pictures.
    """

    of_frame: Callable[[Frame], Pose | Gps | None]
    of_match: Callable[[Match], Pose | Gps | None]
    known: Sequence[Pose | Gps]

    @staticmethod
    def from_places(map_: Map, poses: str | Path | None = None) -> Locator:
        """Locate by poses and GPS positions.

        poses: file with the poses of the queries (see `PlaceFinder`).
        Raises MapError for a map without places.
        """
        finder = PlaceFinder(poses)
        known = [place for record in map_.records if (place := record.pose or record.gps)]
        if not known:
            raise MapError(
                f"{map_.path}: none of its pictures has a place; build it again with --poses or @UTM@ names, or give "
                "--tolerance FRAMES if the numbers in the names are frame numbers"
            )

        def of_frame(frame: Frame) -> Pose | Gps | None:
            place = finder.find_place(frame.name, frame.path, Place(frame.pose, frame.gps, frame.timestamp))
            return place.pose or place.gps

        return Locator(of_frame, lambda match: match.pose, known)

    @staticmethod
    def from_frame_numbers(map_: Map, source: Source) -> Locator:
        """Locate by the frame numbers in names, which mark the same place in all traverses. Distances are in frames.

        Raises SourceError for a name without a number and for a number that a traverse has twice. Raises MapError for
        a map with places: its answers have poses, and a radius in frames says nothing about their error.
        """
        if any(record.pose or record.gps for record in map_.records):
            raise MapError(f"{map_.path}: its pictures have places, which are more precise; leave out --tolerance")
        _check([(record.source, record.name) for record in map_.records])
        _check([(source.origin, name) for name in source.names or ()])

        def at(name: str) -> Pose:
            return Pose(float(frame_number(name, name)), 0, 0, frame="frame numbers")

        return Locator(
            lambda frame: at(frame.name), lambda match: at(match.name), [at(record.name) for record in map_.records]
        )


def traverse_name(name: str) -> str:
    """Return the name of a picture's traverse, which is its folder."""
    return str(PurePosixPath(name).parent)


def _check(pictures: Sequence[tuple[str, str]]) -> None:
    """Raise SourceError unless the pictures (source, name) of each traverse have distinct frame numbers."""
    traverses: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for source, name in pictures:
        traverses[source, traverse_name(name)].append((name, f"{source}: {name}"))
    for each in traverses.values():
        frame_numbers(each)
