"""Estimate the position of a robot from all its answers so far, with a discrete Bayes filter over a map's pictures.

One further state stands for "off the map". The filter is the one of topological localisation:

- Doan et al., "Scalable Place Recognition Under Appearance Change for Autonomous Driving" (ICCV 2019)
- Xu, Suenderhauf and Milford, "Probabilistic Visual Place Recognition for Hierarchical Localization" (RA-L 2021)
- Xu, Fischer, Suenderhauf and Milford, "Probabilistic Appearance-Invariant Topometric Localization with New Place
  Awareness" (RA-L 2021), for the state off the map
- Milford and Wyeth, "SeqSLAM" (ICRA 2012), for recognition by sequences

The motion over unequal spacings is new.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.answer import Filtered, Recognition
from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Record
from pairvpr.runtime.sequence.observation import Observation, Spread, read_values
from pairvpr.runtime.sequence.topology import Topology

CHANGE = 0.01
"""Probability, from one picture to the next, that the robot leaves the map, returns to it, or is carried elsewhere."""
FASTER = 2.0
"""Highest speed of the robot, as a multiple of the speed of the drive that made the map.

Without timestamps: the most map pictures that the robot passes from one answer to the next.
"""
DRIFT = 0.1
"""Error of odometry, as a share of the distance."""
BESIDE = 2.0
"""Distance from a picture, in spacings, within which the robot counts as being at it."""
AROUND = 4.0
"""Distance from the best match, in spacings, beyond which a picture shows another place. Its neighbours show a part of
the same place and score like it."""
FEWEST = 3
"""Fewest scores of other places that have a spread."""
ENOUGH = 30
"""Scores of other places that suffice for a spread. If an answer has fewer, those of earlier answers are added."""


class SequenceFilter:
    """Add to each answer of one robot, in their order, the position estimated from all answers so far.

    ```python
    sequence = SequenceFilter(vpr.map.records)
    answer = sequence.update(vpr.recognize(image), odometry)
    answer.sequence.name, answer.sequence.probability, answer.sequence.off_map
    ```

    Later answers are not used. An update takes time and memory in proportion to the map's size.
    """

    def __init__(self, records: Sequence[Record], topology: Topology | None = None) -> None:
        """Begin with the robot as likely in the map as off it, and equally likely at each picture.

        records: pictures of the map that answers, at least one.
        topology: their neighbour graph. None makes it with `Topology.from_records`.
        Raises ValueError for no records.
        """
        if not records:
            raise ValueError("a sequence filter needs a map with pictures")
        self.topology = Topology.from_records(records) if topology is None else topology
        self.records = records
        self._rows = {record.name: row for row, record in enumerate(records)}
        self._belief = np.full(len(records), 1 / len(records))
        self._on = 0.5
        self._timestamp: float | None = None
        self._where: Pose | Gps | None = None
        self._begun = False
        self._others: list[npt.NDArray[np.float64]] = []  # scores of other places by answer, the last one first
        self._whole = False  # an answer of the whole map has been taken in

    def for_records(self, records: Sequence[Record]) -> SequenceFilter:
        """Return this filter for another state of the map. All pictures share the belief in those removed."""
        other = SequenceFilter(records)
        kept = np.array([self._rows.get(record.name, -1) for record in records])
        belief = np.where(kept < 0, 0.0, self._belief[kept])
        other._belief = belief + (1 - belief.sum()) / len(records)
        other._on = self._on
        other._timestamp, other._where, other._begun = self._timestamp, self._where, self._begun
        other._others, other._whole = self._others, self._whole
        return other

    def expect(self, timestamp: float | None = None, where: Pose | Gps | None = None) -> npt.NDArray[np.float64]:
        """Return the probability (n,) of being at each picture of the map at the next answer, before it is known.

        The rest to 1 is the probability of being off the map.
        timestamp: of the next answer. where: see `update`.
        """
        belief, on = self._predict(timestamp, where)
        return belief * on

    def update(
        self,
        answer: Recognition,
        where: Pose | Gps | None = None,
        searched: npt.NDArray[np.int64] | None = None,
    ) -> Recognition:
        """Take an answer in and return it with `sequence`. An answer with an error is returned unchanged.

        searched: rows of the map that were searched, if not all were. The answer says nothing against the others.
        where: position of the robot by odometry, in any frame of reference. Only the distance from the last one is
        used, and only if the map's pictures have positions. Without it, the time between answers or their number is
        used.
        Raises ValueError for an answer from another state of the map.
        """
        if answer.error is not None:
            return answer
        strange = next((match.name for match in answer.matches if match.name not in self._rows), None)
        if strange is not None:
            raise ValueError(
                f"{answer.query}: {strange!r} is no picture of the filter's map; see SequenceFilter.for_records"
            )
        self._belief, self._on = self._predict(answer.timestamp, where)
        self._timestamp, self._where, self._begun = answer.timestamp, where, True
        self._correct(answer, searched)
        return replace(answer, sequence=self._filtered())

    def __call__(self, answer: Recognition, where: Pose | Gps | None = None) -> Recognition:
        """Call `update`: the old spelling, which goes with the next version."""
        warnings.warn("call SequenceFilter.update in place of the filter itself", DeprecationWarning, stacklevel=2)
        return self.update(answer, where)

    def _step(self, timestamp: float | None, where: Pose | Gps | None) -> tuple[float, float, float]:
        """Return the least and greatest distance since the last answer, and the blur of either (see `_kernel`)."""
        topology = self.topology
        if topology.metric and where is not None and self._where is not None:
            distance = distance_between(where, self._where)
            if np.isfinite(distance):
                return distance, distance, topology.spacing + DRIFT * distance
        if topology.seconds is None or timestamp is None or self._timestamp is None:
            return 0.0, FASTER * topology.spacing, topology.spacing
        passed = timestamp - self._timestamp
        if passed < 0:
            return 0.0, np.inf, topology.spacing  # the source has started again
        return 0.0, FASTER * topology.spacing * passed / topology.seconds, topology.spacing

    def _predict(self, timestamp: float | None, where: Pose | Gps | None) -> tuple[npt.NDArray[np.float64], float]:
        """Return the belief moved along the map to the next answer, and the probability of being on the map.

        There is a small probability of leaving, returning and jumping. Before the first answer nothing moves.
        """
        if not self._begun:
            return self._belief, self._on
        least, most, blur = self._step(timestamp, where)
        topology, count = self.topology, len(self._belief)
        if most > topology.reach:  # the robot may have left the neighbourhood
            moved, stayed = np.full(count, 1 / count), 1.0
        else:
            weights = _kernel(topology.distances, least, most, blur)
            whole = weights.sum(axis=1)
            shares = np.divide(self._belief, whole, out=np.zeros(count), where=whole > 0)
            moved = (weights * shares[topology.neighbours]).sum(axis=1)
            stayed = float(self._belief[whole > 0].sum())  # the rest has left the pictures of the map
        whole_moved = float(moved.sum())
        moved = moved / whole_moved if whole_moved > 0 else np.full(count, 1 / count)
        belief = (1 - CHANGE) * moved + CHANGE / count
        return belief, (1 - CHANGE) * self._on * stayed + CHANGE * (1 - self._on)

    def _correct(self, answer: Recognition, searched: npt.NDArray[np.int64] | None) -> None:
        """Weight the belief by the likelihood of the answer at each picture.

        At a picture that was not searched, an answer is as likely as off the map: it can only be wrong.
        """
        rows = np.array([self._rows[match.name] for match in answer.matches], np.int64)
        self._whole |= searched is None
        if searched is None or not self._whole:  # around an expected place are too few other places
            self._take_others(answer, rows)
        others = np.concatenate([np.zeros(0), *self._others])
        spread = Spread.from_values(others) if len(others) >= FEWEST else None
        count = len(self._belief) if searched is None else len(searched)
        observation = Observation.from_answer(answer, count, spread)
        ratios = np.ones(len(self._belief))
        ratios[slice(None) if searched is None else searched] = observation.elsewhere
        ratios[rows] = observation.ratios
        belief = self._belief * ratios
        whole = float(belief.sum())
        self._belief = belief / whole
        self._on = self._on * whole / (self._on * whole + 1 - self._on)

    def _take_others(self, answer: Recognition, rows: npt.NDArray[np.int64]) -> None:
        """Keep the scores of the candidates, at `rows` (k,) of the map, that show another place than the best one."""
        if not len(rows):
            return
        topology, values = self.topology, read_values(answer)
        around = topology.neighbours[rows[0]][topology.distances[rows[0]] <= AROUND * topology.spacing]
        others = values[~np.isin(rows, around) & ~np.isnan(values)]
        kept, count = [others], len(others)
        for earlier in self._others:
            if count < ENOUGH and len(earlier):
                kept.append(earlier)
                count += len(earlier)
        self._others = kept

    def _filtered(self) -> Filtered:
        row = int(np.argmax(self._belief))
        topology, record = self.topology, self.records[row]
        beside = topology.distances[row] <= BESIDE * topology.spacing
        there = float(self._belief[topology.neighbours[row][beside]].sum())
        return Filtered(record.name, self._on * min(there, 1.0), 1 - self._on, record.pose or record.gps)


def _kernel(distances: npt.NDArray[np.float64], least: float, most: float, blur: float) -> npt.NDArray[np.float64]:
    """Return the unscaled likelihood that a step, uniform from `least` to `most`, ends at each distance.

    blur: half the width of the triangle that smooths each end, because a picture stands for the way around it.
    """
    if most - least < 1e-6 * blur:
        return np.maximum(0.0, 1 - np.abs(distances - least) / blur)
    return _below((distances - least) / blur) - _below((distances - most) / blur)


def _below(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the share of the triangle over -1 to 1 that lies below x."""
    x = np.clip(x, -1, 1)
    return np.where(x < 0, (1 + x) ** 2 / 2, 1 - (1 - x) ** 2 / 2)
