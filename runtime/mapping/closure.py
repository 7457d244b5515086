"""Represent a closed loop, and the threshold that closes loops."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pairvpr.errors import MapError
from pairvpr.printing import json_line
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.calibrated.acceptance import METRES, Acceptance
from pairvpr.runtime.geometry.poses import Pose
from pairvpr.runtime.geometry.rotations import IDENTITY
from pairvpr.runtime.map import Map
from pairvpr.runtime.outputs.covariance import Floor, promised_deviation

FORMAT = 1
INFORMATION = 21
"""Numbers in the upper triangle of a 6 x 6 matrix."""


@dataclass(frozen=True)
class Threshold:
    """Hold the pair score from which a loop is closed, or the similarity if the model has no pair classifier.

    score: the lowest pair score or similarity of a loop.
    acceptance: the calibration that the score comes from, None for a score that the user chose.
    origin: the map that was calibrated. A growing map has no threshold of its own, because a calibration holds for a
    finished map, and more pictures look alike in a larger map.
    """

    score: float
    acceptance: Acceptance | None = None
    origin: str | None = None

    @staticmethod
    def from_text(text: str, identity: str) -> Threshold:
        """Read a threshold from a number, or from a calibrated map.

        text: a finite pair score or similarity, or the folder of a map that `pairvpr calibrate threshold` gave a
        threshold.
        identity: the model that the map must belong to.

        Raises MapError or BundleError.
        """
        try:
            score = float(text)
        except ValueError:
            pass
        else:
            if not math.isfinite(score):
                raise MapError(f"--threshold {text}: give a finite number")
            return Threshold(score)
        with Map.open(text, descriptors=False) as map_:
            acceptance = Acceptance.find_in(Bundle.open(map_.model_path))
            if map_.identity != identity:
                raise MapError(
                    f"--threshold {text}: made with model {map_.identity[:12]}, whose scores do not compare with "
                    f"the scores of {identity[:12]}; name a map of the same model, or give a score"
                )
        if acceptance is None:
            raise MapError(
                f"--threshold {text}: this map has no threshold; calibrate one (`pairvpr calibrate threshold`), or "
                "give a score"
            )
        return Threshold(acceptance.threshold, acceptance, text)


@dataclass(frozen=True)
class Closure:
    """Report that the picture `name` shows the same place as the earlier picture `earlier`.

    timestamp: seconds.
    earlier_timestamp: seconds, None if the map stores no time for the earlier picture.
    score: the pair score, None if the model has no pair classifier.
    similarity: the cosine similarity of the descriptors.
    threshold: the threshold that the score reached.
    by_poses: pose of the picture seen from the earlier one, by the poses of both; None unless both have a pose with an
    orientation in one frame.

    No geometry is estimated from the pictures. A threshold that was calibrated in metres says that they were taken
    within its radius. The loop then has the relative pose zero and an information matrix. Otherwise it is a candidate.
    """

    name: str
    timestamp: float
    earlier: str
    earlier_timestamp: float | None
    score: float | None
    similarity: float
    threshold: Threshold
    by_poses: Pose | None = None

    @property
    def deviations(self) -> tuple[float, float] | None:
        """Return the standard deviations of the relative pose in metres and radians, None for a candidate."""
        acceptance = self.threshold.acceptance
        if acceptance is None or acceptance.unit != METRES:
            return None
        return promised_deviation(acceptance), Floor().rotation

    @property
    def information(self) -> list[float] | None:
        """Return the upper triangle of the information matrix by rows: x, y, z in metres, rotations in radians."""
        if self.deviations is None:
            return None
        position, rotation = (deviation**-2 for deviation in self.deviations)
        matrix = np.diag([position] * 3 + [rotation] * 3)
        found: list[float] = matrix[np.triu_indices(6)].tolist()
        return found

    @property
    def confidence(self) -> float | None:
        """Return the calibrated probability that the loop is right, None without a calibration."""
        acceptance = self.threshold.acceptance
        value = self.similarity if self.score is None else self.score
        return None if acceptance is None else acceptance.confidence(value)

    def to_json(self) -> str:
        """Return one line of JSON, format 1."""
        confidence, information = self.confidence, self.information
        by_poses = None if self.by_poses is None else _pose_json(self.by_poses)
        return json_line(
            {
                "format": FORMAT,
                "kind": "loop candidate" if information is None else "loop",
                "from": self.name,
                "from_timestamp": self.timestamp,
                "to": self.earlier,
                "to_timestamp": self.earlier_timestamp,
                "score": None if self.score is None else round(self.score, 6),
                "similarity": round(self.similarity, 6),
                "threshold": round(self.threshold.score, 6),
                "confidence": None if confidence is None else round(confidence, 6),
                "calibrated_on": self.threshold.origin,
                "relative_pose": None if information is None else _pose_json(Pose(0, 0, 0, IDENTITY)),
                "information": information,
                "by_poses": by_poses,
            },
        )


def _pose_json(pose: Pose) -> dict[str, object]:
    """Return a relative pose, which has no frame, as JSON."""
    return {name: value for name, value in pose.as_json().items() if name != "frame"}
