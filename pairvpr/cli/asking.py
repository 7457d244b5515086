"""How `pairvpr-run` asks for each frame: in which part of the map, and as one of a sequence or alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pairvpr.cli.prior_options import PriorMaker, PriorOptions

if TYPE_CHECKING:
    from pairvpr.runtime.answer import Recognition
    from pairvpr.runtime.recognizer import PlaceRecognizer
    from pairvpr.runtime.sequence.tracking import Follower
    from pairvpr.runtime.sources import Frame


class Asking:
    """Ask a recognizer for each frame of a run."""

    def __init__(self, prior: PriorOptions, *, sequence: bool = False, track: bool = False) -> None:
        """Set up a run.

        prior: the part of the map to compare. Raises what `PriorMaker` does.
        sequence: also estimate the place from all frames so far.
        track: the same, and search around the expected place.
        Raises UsageError for options that exclude each other.
        """
        if track and prior.near is not None:
            raise click.UsageError("--track and --near exclude each other")
        self._priors = PriorMaker(prior)
        self._sequence, self._track = sequence or track, track

    def begin(self, recognizer: PlaceRecognizer, *, live: bool) -> PlaceRecognizer | Follower:
        """Return what frames are to be asked of. Raises MapError for a part of the map without pictures.

        live: whether the frames' source is.
        """
        self._priors.check(recognizer, live=live)
        if not self._sequence:
            return recognizer
        from pairvpr.runtime.sequence.tracking import Follower

        return Follower(recognizer, track=self._track)

    def ask(self, asked: PlaceRecognizer | Follower, frame: Frame) -> Recognition:
        """Return the answer to a frame."""
        return asked.recognize_frame(frame, self._priors.make(frame))

    def warn(self, query: str, total: int) -> None:
        """Warn of frames without a place or time, see `PriorMaker.warn`."""
        self._priors.warn(query, total)
