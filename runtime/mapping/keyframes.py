"""Which pictures of a drive a map needs: not ten thousand of one traffic light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.geometry.geodesy import metres
from pairvpr.runtime.geometry.poses import Gps, Place, Pose


@dataclass(frozen=True)
class Kept:
    """A picture that the map holds: where it was taken, and its descriptor (G,), as far as the selection needs them."""

    where: Pose | Gps | None
    descriptor: npt.NDArray[np.float32] | None


class Selection:
    """Keeps a picture if it is far enough from the last one that was kept, and looks different enough.

    min_distance: metres; a picture without a place is then left out. min_change: 1 less the cosine similarity of
    the descriptors, 0 to 2. None: not asked for. last: the last picture kept. left_out: how many were not.
    """

    def __init__(self, min_distance: float | None = None, min_change: float | None = None) -> None:
        self.min_distance = min_distance
        self.min_change = min_change
        self.last: Kept | None = None
        self.left_out = 0

    def takes(self, place: Place, descriptor: npt.NDArray[np.float32] | None) -> bool:
        """Whether the next picture is to be kept; its descriptor (G,) may be None without `min_change`."""
        candidate = Kept(place.pose or place.gps, descriptor)
        taken = self._far(candidate) and self._changed(candidate)
        if taken:
            self.last = candidate
        else:
            self.left_out += 1
        return taken

    def _far(self, candidate: Kept) -> bool:
        if self.min_distance is None:
            return True
        if candidate.where is None:
            return False
        if self.last is None or self.last.where is None:
            return True
        return metres(candidate.where, self.last.where) >= self.min_distance

    def _changed(self, candidate: Kept) -> bool:
        if self.min_change is None or self.last is None or self.last.descriptor is None:
            return True
        assert candidate.descriptor is not None, "min_change needs descriptors"
        return 1 - float(candidate.descriptor @ self.last.descriptor) >= self.min_change
