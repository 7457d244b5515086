"""Answers to pictures of known places, as far as they can teach and test a decision.

Neighbouring frames of a drive are no independent trials: whoever recognises one recognises the next. So of a traverse
only pictures count that are a radius apart, and the places are cut into stretches, as in spatial cross-validation
(Roberts et al., Ecography 2017): what is learnt in some is tested in others. What remains is an assumption, that such
pictures are independent and like those to come; pictures of one place from several traverses count each.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pairvpr.calibration.cascade import SAME
from pairvpr.calibration.located import Locator, traverse
from pairvpr.errors import MapError
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Map
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.sources import Frame, Source

STRETCHES = 12
"""One in three to learn from, two to test on: the test is what takes many pictures."""

Progress = Callable[[str, int, "int | None"], None]
"""Told what is being done, how many are done and of how many (None: not known)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnsweredPicture:
    """A picture of a known place and the answer to it.

    score: of the best match. right: it lies within the radius. outside: nothing in the map does. own: the picture is
    of a traverse that the map was made of.
    """

    where: Pose | Gps
    traverse: str
    score: float
    right: bool
    outside: bool
    own: bool


def ask(
    recognizer: PlaceRecognizer, source: Source, located: Locator, radius: float, progress: Progress
) -> list[AnsweredPicture]:
    """The answers to the source's pictures, as far as these can be read, have a place and are no pictures of the map.

    Of each folder (a traverse) only pictures are taken that are at least `radius` from all taken before. Raises
    MapError where nothing in the map has a place in the frame of a picture's.
    """
    sources = {record.source for record in recognizer.map.records}
    taken: dict[str, list[Pose | Gps]] = defaultdict(list)
    asked: list[AnsweredPicture] = []
    without = same = 0
    for number, frame in enumerate(source, 1):
        progress("recognising pictures", number, source.length)
        if frame.picture is None:
            log.warning("skipped: %s", frame.error)
            continue
        where, drive = located.of_frame(frame), traverse(frame.name)
        if where is None:
            without += 1
            continue
        if not apart(where, taken[drive], radius):
            continue
        answer = recognizer.recognize_frame(frame)
        if max(match.similarity for match in answer.matches) >= SAME:  # a picture that a robot never meets again
            same += 1
            continue
        taken[drive].append(where)
        right, outside = _judge(answer, where, located, radius, recognizer.map)
        assert answer.best.score is not None  # all candidates were compared
        asked.append(AnsweredPicture(where, drive, answer.best.score, right, outside, _own(frame, source, sources)))
    if without:
        log.warning("%d pictures have no place and tell nothing", without)
    if same:
        log.warning("%d pictures are the map's own and tell nothing", same)
        asked = [replace(each, own=True) for each in asked]
    return asked


def apart(where: Pose | Gps, others: Sequence[Pose | Gps], radius: float) -> bool:
    """Whether a place lies at least `radius` from all others."""
    return all(distance_between(where, other) >= radius for other in others)


def stretches(wheres: Sequence[Pose | Gps], count: int) -> list[npt.NDArray[np.int64]]:
    """`count` stretches across the longest way through n places, as indices of these.

    All traverses are cut at the same places, so that no place is in two stretches but where they meet.
    """
    positions = np.array([_plane(where) for where in wheres])
    centred = positions - positions.mean(axis=0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    return np.array_split(np.argsort(along, kind="stable"), count)


def split(wheres: Sequence[Pose | Gps]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of n places: those to learn from and those to test on, in whole stretches."""
    learning = np.sort(np.concatenate(stretches(wheres, STRETCHES)[1::3]))
    return learning, np.setdiff1d(np.arange(len(wheres)), learning)


def _judge(answer: Recognition, where: Pose | Gps, located: Locator, radius: float, map_: Map) -> tuple[bool, bool]:
    """Whether the answer to a picture from `where` is right, which one of no known place is not, or none could be."""
    best = located.of_match(answer.best)
    right = best is not None and distance_between(where, best) <= radius
    nearest = 0.0 if right else min(distance_between(where, place) for place in located.known)
    if math.isinf(nearest):
        frame_of = where.frame if isinstance(where, Pose) else "wgs84"
        raise MapError(
            f"{map_.path}: none of its pictures has a place in {frame_of!r}, as {answer.query} has; give --poses in "
            "the map's frame"
        )
    return right, nearest > radius


def _plane(where: Pose | Gps) -> tuple[float, float, float]:
    if isinstance(where, Pose):
        return where.x, where.y, where.z
    return where.latitude, where.longitude * math.cos(math.radians(where.latitude)), 0.0


def _own(frame: Frame, source: Source, sources: set[str]) -> bool:
    """Whether the frame comes from a folder or file that the map was made of."""
    path = None if frame.path is None else frame.path.resolve()
    return source.origin in sources or (path is not None and not sources.isdisjoint(map(str, (path, *path.parents))))
