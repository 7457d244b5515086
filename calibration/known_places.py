"""Ask a map pictures of known places, and split the answers into a part to learn from and a part to test on.

Neighbouring frames of a drive are not independent trials: if one is recognised, so is the next. Therefore only
pictures a radius apart count within a traverse. The places are cut into stretches, as in spatial cross-validation
(Roberts et al., Ecography 2017); some stretches are for learning, the others for testing. Two assumptions remain: such
pictures are independent, and they resemble later queries. Pictures of one place from several traverses count each.
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
from pairvpr.calibration.kept_answers import KeptAnswers
from pairvpr.calibration.locator import Locator, traverse_name
from pairvpr.errors import MapError
from pairvpr.runtime.answer import Match
from pairvpr.runtime.calibrated.score_monitor import Reading
from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Map
from pairvpr.runtime.sources import Frame, Source
from pairvpr.spread import cut_along

STRETCHES = 12
"""One in three is for learning, two are for testing: the test needs many pictures."""

Progress = Callable[[str, int, "int | None"], None]
"""Called with the step, the number done, and the total (None: not known)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnsweredPicture:
    """Hold the place of a picture and the answer to the picture.

    where: place of the picture.
    traverse: folder of the picture.
    reading: the numbers of the answer.
    right: whether the best match lies within the radius.
    outside: whether no map picture lies within the radius.
    own: whether the picture belongs to a traverse that the map was built from.
    off: distance of the best match from the picture's place, in the unit of the radius; None if it has no place.
    """

    where: Pose | Gps
    traverse: str
    reading: Reading
    right: bool
    outside: bool
    own: bool
    off: float | None = None

    @property
    def score(self) -> float:
        """Return the number that the threshold applies to."""
        return self.reading.value


def ask(
    map_: Map,
    source: Source,
    locator: Locator,
    radius: float,
    progress: Progress,
    kept: KeptAnswers,
    name_traverse: Callable[[str], str],
) -> list[AnsweredPicture]:
    """Return the answers to the source's pictures.

    kept: asks the map, or knows the answer from an earlier calibration.
    name_traverse: returns the name to show for a picture's folder.

    Pictures that cannot be read, that have no place, or that are the map's own are left out with a warning. From each
    folder (a traverse) only pictures at least `radius` from all earlier ones are taken.
    Raises MapError if no map picture has a place in a query's coordinate frame.
    """
    sources = {record.source for record in map_.records}
    taken: dict[str, list[Pose | Gps]] = defaultdict(list)
    answered: list[AnsweredPicture] = []
    without = same = 0
    for number, frame in enumerate(source, 1):
        progress("asking pictures", number, source.length)
        if frame.picture is None:
            log.warning("skipped: %s", frame.error)
            continue
        where, drive = locator.of_frame(frame), traverse_name(frame.name)
        if where is None:
            without += 1
            continue
        if not is_apart(where, taken[drive], radius):
            continue
        answer = kept.ask(frame)
        if answer.highest >= SAME:  # a picture that a robot never meets again
            same += 1
            continue
        taken[drive].append(where)
        off, outside = _judge(answer.best, frame.name, where, locator, radius, map_)
        right, own = off is not None and off <= radius, _is_own(frame, source, sources)
        answered.append(AnsweredPicture(where, name_traverse(drive), answer.reading, right, outside, own, off))
    if without:
        log.warning("%d pictures left out: they have no place", without)
    if same:
        log.warning("%d pictures left out: they are in the map themselves", same)
        answered = [replace(each, own=True) for each in answered]
    return answered


def is_apart(where: Pose | Gps, others: Sequence[Pose | Gps], radius: float) -> bool:
    """Return whether a place lies at least `radius` from all others."""
    return all(distance_between(where, other) >= radius for other in others)


def cut_stretches(wheres: Sequence[Pose | Gps], count: int) -> list[npt.NDArray[np.int64]]:
    """Cut n places into `count` stretches along their principal axis. Return the indices of each stretch.

    All traverses are cut at the same places, so stretches overlap only at their ends.
    """
    return cut_along(np.array([_plane(where) for where in wheres]), count)


def split_places(wheres: Sequence[Pose | Gps]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the indices of the places to learn from and to test on, in whole stretches."""
    learning = np.sort(np.concatenate(cut_stretches(wheres, STRETCHES)[1::3]))
    return learning, np.setdiff1d(np.arange(len(wheres)), learning)


def _judge(
    best: Match, query: str, where: Pose | Gps, locator: Locator, radius: float, map_: Map
) -> tuple[float | None, bool]:
    """Return the distance of the best match, None if it has no place, and whether no map picture is within the radius.

    A place in another frame is none.
    """
    place = locator.of_match(best)
    off = math.inf if place is None else distance_between(where, place)
    nearest = 0.0 if off <= radius else min(distance_between(where, known) for known in locator.known)
    if math.isinf(nearest):
        raise MapError(
            f"{map_.path}: none of its pictures has a place in frame {where.frame!r}, the frame of {query}; give "
            "--poses in the map's frame"
        )
    return None if math.isinf(off) else off, nearest > radius


def _plane(where: Pose | Gps) -> tuple[float, float, float]:
    if isinstance(where, Pose):
        return where.x, where.y, where.z
    return where.latitude, where.longitude * math.cos(math.radians(where.latitude)), 0.0


def _is_own(frame: Frame, source: Source, sources: set[str]) -> bool:
    """Return whether the frame comes from a folder or file that the map was built from."""
    path = None if frame.path is None else frame.path.resolve()
    return source.origin in sources or (path is not None and not sources.isdisjoint(map(str, (path, *path.parents))))
