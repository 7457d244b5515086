"""Where the pictures of a calibration were taken, and those of the map: by their places, or by frame numbers."""

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
    """of_frame, of_match: where a picture that is asked was taken, and a match; None: not known. known: the map's."""

    of_frame: Callable[[Frame], Pose | Gps | None]
    of_match: Callable[[Match], Pose | Gps | None]
    known: Sequence[Pose | Gps]

    @staticmethod
    def from_places(map_: Map, poses: str | Path | None = None) -> Locator:
        """By poses and GPS positions; poses: a file of those of the pictures that are asked (see `PlaceFinder`).

        Raises MapError for a map without any.
        """
        finder = PlaceFinder(poses)
        known = [place for record in map_.records if (place := record.pose or record.gps)]
        if not known:
            raise MapError(
                f"{map_.path}: none of its pictures has a place; build it again with --poses or @UTM@ names, or "
                "give --tolerance FRAMES where the number in a name is a frame's"
            )

        def of_frame(frame: Frame) -> Pose | Gps | None:
            place = finder.find_place(frame.name, frame.path, Place(frame.pose, frame.gps, frame.timestamp))
            return place.pose or place.gps

        return Locator(of_frame, lambda match: match.pose, known)

    @staticmethod
    def from_frame_numbers(map_: Map, source: Source) -> Locator:
        """By the numbers in names, which say the same place in all traverses: of frames, so distances are too.

        Raises SourceError for names without, or twice in a traverse; MapError for a map that has places: answers from
        it would have them too, and a radius in frames says nothing of how far these are off.
        """
        if any(record.pose or record.gps for record in map_.records):
            raise MapError(f"{map_.path}: its pictures have places, which say more; leave out --tolerance")
        _check([(record.source, record.name) for record in map_.records])
        _check([(source.origin, name) for name in source.names or ()])

        def at(name: str) -> Pose:
            return Pose(float(frame_number(name, name)), 0, 0, frame="frame numbers")

        return Locator(
            lambda frame: at(frame.name), lambda match: at(match.name), [at(record.name) for record in map_.records]
        )


def traverse(name: str) -> str:
    """What a picture's traverse is called: its folder."""
    return str(PurePosixPath(name).parent)


def _check(pictures: Sequence[tuple[str, str]]) -> None:
    """Raise SourceError unless each traverse of the pictures (source, name) has a frame number of its own for each."""
    traverses: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for source, name in pictures:
        traverses[source, traverse(name)].append((name, f"{source}: {name}"))
    for each in traverses.values():
        frame_numbers(each)
