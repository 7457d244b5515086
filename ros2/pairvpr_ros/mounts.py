"""The cameras' places on the robot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.geometry.transforms import Transform
from pairvpr.runtime.rig import to_base

Lookup = Callable[[str], "Transform | None"]


class Mounts:
    """Turns answers of any camera into poses of the base; the first camera is the one that the map was made with.

    known: the cameras' poses in the base, or None. lookup: finds the pose of a frame id; None if there is no tf.
    Without either, every camera counts as the first.
    """

    def __init__(self, known: Sequence[Transform] | None, lookup: Lookup | None) -> None:
        self._known, self._lookup = known, lookup
        self._found: dict[int, Transform] = {}

    def in_base(self, camera: int, frame_id: str, answer: Recognition) -> Recognition:
        """Return the answer with poses of the base; not accepted if the camera's pose is not known."""
        if self._known is not None:
            return to_base(answer, self._known[camera], self._known[0])
        if self._lookup is None:
            return answer
        own = self._lookup(frame_id)
        if own is not None:
            self._found[camera] = own
        if camera == 0:
            return answer
        if own is None or 0 not in self._found:
            missing = f"frame {frame_id!r}" if own is None else "image_0, which has sent no image"
            return replace(answer, accepted=None, reason=f"no transform from the base to the camera of {missing}")
        return to_base(answer, own, self._found[0])
