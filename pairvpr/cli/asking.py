"""How `pairvpr-run` asks for each frame: near where, and as one of a sequence or alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pairvpr.cli.log import log

if TYPE_CHECKING:
    from pairvpr.runtime.answer import Recognition
    from pairvpr.runtime.prior import Prior
    from pairvpr.runtime.recognizer import PlaceRecognizer
    from pairvpr.runtime.sequence.tracking import Follower
    from pairvpr.runtime.sources import Frame


class Asking:
    """Ask a recognizer for each frame of a run."""

    def __init__(
        self,
        radius: float | None = None,
        poses: Path | None = None,
        names: str | None = None,
        *,
        sequence: bool = False,
        track: bool = False,
    ) -> None:
        """Set up a run.

        radius: metres around the frame's own position in which the map is searched, None to leave positions aside.
        poses: a pose file of the frames, see `PlaceFinder`. Raises SourceError if it cannot be used.
        names: pattern of names in the map, or None.
        sequence: also estimate the place from all frames so far.
        track: the same, and search around the expected place.
        Raises UsageError for options that exclude each other.
        """
        from pairvpr.runtime.geometry.pose_files import PlaceFinder

        if poses is not None and radius is None:
            raise click.UsageError("--poses needs --near")
        if track and radius is not None:
            raise click.UsageError("--track and --near exclude each other")
        self._radius, self._names = radius, names
        self._sequence, self._track = sequence or track, track
        self._finder = PlaceFinder(poses)
        self._without = 0  # frames whose position is not known

    def begin(self, recognizer: PlaceRecognizer) -> PlaceRecognizer | Follower:
        """Return what frames are to be asked of."""
        if not self._sequence:
            return recognizer
        from pairvpr.runtime.sequence.tracking import Follower

        return Follower(recognizer, track=self._track)

    def ask(self, asked: PlaceRecognizer | Follower, frame: Frame) -> Recognition:
        """Return the answer to a frame."""
        return asked.recognize_frame(frame, self._find_prior(frame))

    def _find_prior(self, frame: Frame) -> Prior | None:
        """Return the prior of a frame, None if all of the map may be compared."""
        from pairvpr.runtime.geometry.poses import Place
        from pairvpr.runtime.prior import Prior

        if self._radius is not None:
            place = self._finder.find_place(frame.name, frame.path, Place(frame.pose, frame.gps, frame.timestamp))
            near = place.pose or place.gps
            if near is not None:
                return Prior(near, self._radius, self._names)
            self._without += 1
        return None if self._names is None else Prior(names=self._names)

    def warn(self, query: str, total: int) -> None:
        """Warn of frames without a position, among `total` frames of the source `query`."""
        if self._without:
            log.warning(
                "%s: %d of %d pictures have no pose or GPS position, so --near was left out for them",
                query,
                self._without,
                total,
            )
