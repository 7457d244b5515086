"""Show a run while it goes on: each viewer is given every frame with its answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from pairvpr.errors import PairVPRError
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.sources import Frame, Source
from pairvpr.viewing.run_page import reporting


class Viewer(Protocol):
    """A receiver of a run's answers, in order."""

    def add(self, frame: Frame, answer: Recognition) -> None:
        """Add the answer for a frame, or the error of a frame that could not be read."""
        ...


@contextmanager
def watching(
    report: Path | None, rerun: Path | None, query: str, source: Source, recognizer: PlaceRecognizer
) -> Iterator[list[Viewer]]:
    """Yield the viewers that were asked for. Their files are written on leaving, also after an error.

    report: the file of a page for browsers. rerun: the file of a recording for Rerun's viewer.
    Raises PairVPRError if a file cannot be written or Rerun is not installed.
    """
    with ExitStack() as stack:
        viewers: list[Viewer] = []
        if rerun is not None:
            try:
                from pairvpr.viewing.rerun_recording import recording
            except ImportError as error:
                raise PairVPRError(f'--rerun needs rerun-sdk ({error}): pip install "pairvpr[viz]"') from error
            viewers.append(stack.enter_context(recording(rerun, query, source, recognizer)))
        if report is not None:
            viewers.append(stack.enter_context(reporting(report, query, source, recognizer)))
        yield viewers
