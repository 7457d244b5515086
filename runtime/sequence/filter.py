"""From answers one by one to an answer that remembers: a Bayes filter over the pictures of a map and "not in it".

The filter is that of topological localisation: Doan et al., "Scalable Place Recognition Under Appearance Change for
Autonomous Driving" (ICCV 2019); Xu, Suenderhauf and Milford, "Probabilistic Visual Place Recognition for Hierarchical
Localization" (RA-L 2021), with the state off the map of Xu, Fischer, Suenderhauf and Milford, "Probabilistic
Appearance-Invariant Topometric Localization with New Place Awareness" (RA-L 2021). Sequences as such come from Milford
and Wyeth, "SeqSLAM" (ICRA 2012). Ours are the likelihood, made of pair scores, and the motion over unequal spacings.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.answer import Filtered, Recognition
from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Record
from pairvpr.runtime.sequence.observation import Evidence
from pairvpr.runtime.sequence.topology import Layout

if TYPE_CHECKING:
    from pairvpr.runtime.recognizer import PlaceRecognizer
    from pairvpr.runtime.sources import Frame

log = logging.getLogger(__name__)

CHANGE = 0.01
"""Chance between two pictures that the robot leaves the map, comes back to it, or is carried elsewhere in it."""
FASTER = 2.0
"""The robot is at most so many times as fast as the drive that made the map; without stamps, so many pictures on."""
DRIFT = 0.1
"""Error of odometry, a share of the distance."""
BESIDE = 2.0
"""Spacings around a picture within which the robot counts as being there."""


class SequenceFilter:
    """Takes the answers of one robot, in order, and adds to each where the robot is after all of them so far.

    filtered = SequenceFilter(vpr.map.records)
    answer = filtered(vpr.recognize(image), odometry)
    answer.sequence.name, answer.sequence.probability, answer.sequence.off_map

    It looks at no later answer. An answer costs time and memory in proportion to the map, whatever came before.
    """

    def __init__(self, records: Sequence[Record], layout: Layout | None = None) -> None:
        """records: of the map that answers, at least one. layout: where they lie; None finds out, see `Layout.of`.

        At first the robot is as likely in the map as not, and anywhere in it.
        """
        if not records:
            raise ValueError("a map without pictures: there is nowhere to be")
        self.layout = Layout.of(records) if layout is None else layout
        self.records = records
        self._rows = {record.name: row for row, record in enumerate(records)}
        self._belief = np.full(len(records), 1 / len(records))
        self._on = 0.5
        self._timestamp: float | None = None
        self._where: Pose | Gps | None = None
        self._begun = False

    def on(self, records: Sequence[Record]) -> SequenceFilter:
        """The same for another state of the map; what was thought of removed pictures is shared by all."""
        other = SequenceFilter(records)
        kept = np.array([self._rows.get(record.name, -1) for record in records])
        belief = np.where(kept < 0, 0.0, self._belief[kept])
        other._belief = belief + (1 - belief.sum()) / len(records)
        other._on = self._on
        other._timestamp, other._where, other._begun = self._timestamp, self._where, self._begun
        return other

    def __call__(self, answer: Recognition, where: Pose | Gps | None = None) -> Recognition:
        """The answer with `sequence`; one without a picture comes back as it is.

        where: the robot by its odometry, in any frame of reference; only the way from the last one counts, and only in
        a map of places. Without it the time between the answers does, else their number. Raises ValueError for an
        answer from another state of the map.
        """
        if answer.error is not None:
            return answer
        strange = next((match.name for match in answer.matches if match.name not in self._rows), None)
        if strange is not None:
            raise ValueError(f"{answer.query}: {strange!r} is no picture of the filter's map; see SequenceFilter.on")
        if self._begun:
            self._move(*self._step(answer.timestamp, where))
        self._timestamp, self._where, self._begun = answer.timestamp, where, True
        self._see(Evidence.of([match.score for match in answer.matches], len(self.records)), answer)
        return replace(answer, sequence=self._filtered())

    def _step(self, timestamp: float | None, where: Pose | Gps | None) -> tuple[float, float, float]:
        """How far the robot went since the last answer: at least, at most, and by how much that blurs."""
        layout = self.layout
        if layout.metric and where is not None and self._where is not None:
            distance = distance_between(where, self._where)
            if np.isfinite(distance):
                return distance, distance, layout.spacing + DRIFT * distance
        if layout.seconds is None or timestamp is None or self._timestamp is None:
            return 0.0, FASTER * layout.spacing, layout.spacing
        passed = timestamp - self._timestamp
        if passed < 0:
            return 0.0, np.inf, layout.spacing  # the source began anew
        return 0.0, FASTER * layout.spacing * passed / layout.seconds, layout.spacing

    def _move(self, least: float, most: float, blur: float) -> None:
        """Prediction: along the map as far as the step goes, and now and then away, back, or elsewhere in it."""
        layout, count = self.layout, len(self._belief)
        if most > layout.reach:  # unseen for longer than neighbours reach
            moved, stayed = np.full(count, 1 / count), 1.0
        else:
            weights = _kernel(layout.distances, least, most, blur)
            whole = weights.sum(axis=1)
            shares = np.divide(self._belief, whole, out=np.zeros(count), where=whole > 0)
            moved = (weights * shares[layout.neighbours]).sum(axis=1)
            stayed = float(self._belief[whole > 0].sum())  # the rest went where no picture is
        whole_moved = float(moved.sum())
        moved = moved / whole_moved if whole_moved > 0 else np.full(count, 1 / count)
        self._belief = (1 - CHANGE) * moved + CHANGE / count
        self._on = (1 - CHANGE) * self._on * stayed + CHANGE * (1 - self._on)

    def _see(self, evidence: Evidence, answer: Recognition) -> None:
        """Correction by what the answer says of each picture."""
        ratios = np.full(len(self._belief), evidence.elsewhere)
        ratios[[self._rows[match.name] for match in answer.matches]] = evidence.ratios
        belief = self._belief * ratios
        whole = float(belief.sum())
        self._belief = belief / whole
        self._on = self._on * whole / (self._on * whole + 1 - self._on)

    def _filtered(self) -> Filtered:
        row = int(np.argmax(self._belief))
        layout, record = self.layout, self.records[row]
        beside = layout.distances[row] <= BESIDE * layout.spacing
        there = float(self._belief[layout.neighbours[row][beside]].sum())
        return Filtered(record.name, self._on * min(there, 1.0), 1 - self._on, record.pose or record.gps)


class Follower:
    """A filter beside a recogniser that takes in what becomes of its map."""

    def __init__(self, recognizer: PlaceRecognizer) -> None:
        self._recognizer = recognizer
        self._filter = SequenceFilter(recognizer.map.records)
        log.info("sequence: %s", self._filter.layout)

    def __call__(self, answer: Recognition, frame: Frame) -> Recognition:
        """The recogniser's answer to the frame, with `sequence`; in the thread that refreshes."""
        records = self._recognizer.map.records
        if records is not self._filter.records:
            self._filter = self._filter.on(records)
        return self._filter(answer, frame.pose or frame.gps)


def _kernel(distances: npt.NDArray[np.float64], least: float, most: float, blur: float) -> npt.NDArray[np.float64]:
    """How likely a step of `least` to `most`, all equally likely, ends so far away (not scaled).

    blur: half the width of the triangle that each end is smeared over: a picture stands for the way around it.
    """
    if most - least < 1e-6 * blur:
        return np.maximum(0.0, 1 - np.abs(distances - least) / blur)
    return _below((distances - least) / blur) - _below((distances - most) / blur)


def _below(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The share of the triangle over -1 to 1 that lies below x."""
    x = np.clip(x, -1, 1)
    return np.where(x < 0, (1 + x) ** 2 / 2, 1 - (1 - x) ** 2 / 2)
