"""Show a run while it goes on: each viewer is given every frame with its answer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from pairvpr.errors import PairVPRError, one_line
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.sources import Frame, Source
from pairvpr.viewing.run_page import reporting

log = logging.getLogger(__name__)


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

        def watch(option: str, file: Path, viewer: AbstractContextManager[Viewer]) -> None:
            viewers.append(stack.enter_context(_expendable(option, file, viewer)))

        if rerun is not None:
            try:
                from pairvpr.viewing.rerun_recording import recording
            except ImportError as error:
                raise PairVPRError(f'--rerun needs rerun-sdk ({error}): pip install "pairvpr[viz]"') from error
            watch("--rerun", rerun, recording(rerun, query, source, recognizer))
        if report is not None:
            watch("--report", report, reporting(report, query, source, recognizer))
        yield viewers


class _Expendable:
    """A viewer that is dropped with a warning when it fails, so that answers go on."""

    def __init__(self, option: str, file: Path, viewer: Viewer) -> None:
        self._option, self._file = option, file
        self._viewer: Viewer | None = viewer

    def add(self, frame: Frame, answer: Recognition) -> None:
        """See `Viewer`."""
        if self._viewer is None:
            return
        try:
            self._viewer.add(frame, answer)
        except Exception as error:  # of its library, of the disk, or of an odd name
            self.drop(error)

    def drop(self, error: Exception) -> None:
        """Log the failure and use the viewer no more."""
        self._viewer = None
        log.warning("%s %s: stopped (%s); answers go on without it", self._option, self._file, one_line(error))


@contextmanager
def _expendable(option: str, file: Path, viewer: AbstractContextManager[Viewer]) -> Iterator[Viewer]:
    """Yield a viewer that may fail. A failure to open it goes on, because it is known before the first answer."""
    opened = viewer.__enter__()
    expendable = _Expendable(option, file, opened)
    try:
        yield expendable
    except BaseException as error:
        with suppress(Exception):  # the run's own exception goes on
            viewer.__exit__(type(error), error, error.__traceback__)
        raise
    try:
        viewer.__exit__(None, None, None)
    except Exception as error:
        expendable.drop(error)
