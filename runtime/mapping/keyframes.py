"""Select the keyframes of a drive, so that a stop at a traffic light adds one picture and not ten thousand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.geometry.poses import Gps, Place, Pose


@dataclass(frozen=True)
class Keyframe:
    """Hold a map picture's position and descriptor (G,). A value that is not known or not needed is None."""

    position: Pose | Gps | None
    descriptor: npt.NDArray[np.float32] | None


class KeyframeSelector:
    """Select a picture that is far enough from the last keyframe and looks different enough.

    min_distance: metres to the last keyframe. A picture without a position is then rejected. None turns the rule off.
    min_change: 1 - cosine similarity to the last keyframe's descriptor, 0 to 2. None turns the rule off.
    last: the last keyframe.
    left_out: number of rejected pictures.
    """

    def __init__(self, min_distance: float | None = None, min_change: float | None = None) -> None:
        self.min_distance = min_distance
        self.min_change = min_change
        self.last: Keyframe | None = None
        self.left_out = 0

    def select(self, place: Place, descriptor: npt.NDArray[np.float32] | None) -> bool:
        """Return whether the next picture becomes a keyframe. Its descriptor (G,) is needed with `min_change` only."""
        candidate = Keyframe(place.pose or place.gps, descriptor)
        selected = self._is_far(candidate) and self._is_changed(candidate)
        if selected:
            self.last = candidate
        else:
            self.left_out += 1
        return selected

    def _is_far(self, candidate: Keyframe) -> bool:
        if self.min_distance is None:
            return True
        if candidate.position is None:
            return False
        if self.last is None or self.last.position is None:
            return True
        return distance_between(candidate.position, self.last.position) >= self.min_distance

    def _is_changed(self, candidate: Keyframe) -> bool:
        if self.min_change is None or self.last is None or self.last.descriptor is None:
            return True
        assert candidate.descriptor is not None, "min_change needs descriptors"
        return 1 - float(candidate.descriptor @ self.last.descriptor) >= self.min_change
