"""Search a map around the place where a robot is expected, and all of it if the robot may be elsewhere."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.prior import Prior
from pairvpr.runtime.sequence.filter import SequenceFilter
from pairvpr.runtime.sequence.topology import Topology

if TYPE_CHECKING:
    from pairvpr.runtime.recognizer import PlaceRecognizer
    from pairvpr.runtime.sources import Frame

log = logging.getLogger(__name__)

SURE = 0.8
"""Probability that the searched pictures hold. A robot that is less likely than this on the map is lost."""
MARGIN = 4.0
"""Distance in spacings, beyond the pictures that hold SURE, in which pictures are searched too."""
WHOLE = 10
"""Every WHOLE-th picture is searched in the whole map, to prove that the robot is where it is expected."""


def choose_rows(expected: npt.NDArray[np.float64], topology: Topology) -> npt.NDArray[np.int64] | None:
    """Return the rows (m,) of the map to search, ascending, or None for the whole map.

    They are the likeliest pictures that together hold the probability SURE, and all pictures within MARGIN spacings of
    one of these. The less certain the place is, the more pictures are searched. The whole map is searched if all
    pictures together hold less.

    expected: (n,) probability of being at each picture. The rest to 1 is the probability of being off the map.
    """
    order = np.argsort(-expected, kind="stable")
    held = np.cumsum(expected[order])
    if held[-1] < SURE:
        return None
    likely = order[: int(np.searchsorted(held, SURE)) + 1]
    beside = topology.distances[likely] <= MARGIN * topology.spacing
    rows = np.unique(topology.neighbours[likely][beside])
    return rows if len(rows) < len(expected) else None


class Follower:
    """Recognize the pictures of one robot in their order, with the place after all of them.

    ```python
    follower = Follower(recognizer, track=True)
    answer = follower.recognize_frame(frame)
    answer.sequence.name, answer.sequence.probability, answer.sequence.searched
    ```

    With tracking, most pictures are compared only with the pictures around the expected place (see `choose_rows`). A
    map of these pictures alone would give the same answer. The map may change between two pictures.
    """

    def __init__(self, recognizer: PlaceRecognizer, *, track: bool = False) -> None:
        self._recognizer, self._track = recognizer, track
        self._map = recognizer.map.records
        self._part: Prior | None = None  # the part of the map that the filter knows, None for all of it
        self._rows = np.arange(len(self._map))  # rows of the map that this part has
        self._filter = SequenceFilter(self._map)
        self._near = 0  # answers since the last search of the whole map
        log.info("sequence: %s", self._filter.topology)

    def recognize_frame(self, frame: Frame, prior: Prior | None = None) -> Recognition:
        """Return the answer to the next frame, with `sequence`. Call it in the thread that refreshes the map.

        prior: see `PlaceRecognizer.recognize`. Its names, sources and pictures are the whole map: the robot is there or
        off the map. Its position, heading and time of day restrict the search only. An answer has no `sequence` if the
        prior allows no picture.
        Raises what `PlaceRecognizer.recognize_frame` does.
        """
        part = None if prior is None else prior.part
        self._follow_map(part)
        if not len(self._rows):
            return self._recognizer.recognize_frame(frame, prior)
        records = self._filter.records
        searched = None
        if prior is not None and prior != part:
            searched = np.searchsorted(self._rows, self._recognizer.find_allowed(prior))
        around = self._find_rows(frame, searched) if self._track else None
        if around is not None:
            searched, prior = around, Prior(pictures=frozenset(records[row].name for row in around))
        answer = self._recognizer.recognize_frame(frame, prior)
        answer = self._filter.update(answer, frame.pose or frame.gps, searched)
        if not self._track or answer.sequence is None:
            return answer
        self._near = 0 if around is None else self._near + 1
        count = len(records) if searched is None else len(searched)
        return replace(answer, sequence=replace(answer.sequence, searched=count))

    def _follow_map(self, part: Prior | None) -> None:
        """Let the filter know this part of the map as it is now."""
        records = self._recognizer.map.records
        if records is self._map and part == self._part:
            return
        self._map, self._part = records, part
        self._rows = np.arange(len(records)) if part is None else self._recognizer.find_allowed(part)
        if len(self._rows):
            self._filter = self._filter.for_records(
                records if part is None else [records[row] for row in self._rows.tolist()]
            )

    def _find_rows(self, frame: Frame, allowed: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64] | None:
        """Return the filter's rows around the expected place, of those `allowed`; None if all are to be searched."""
        if self._near + 1 >= WHOLE:
            return None
        rows = choose_rows(self._filter.expect(frame.timestamp, frame.pose or frame.gps), self._filter.topology)
        if rows is None or allowed is None:
            return rows
        both = np.intersect1d(rows, allowed)
        return both if len(both) else None
