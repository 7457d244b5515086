"""Warn once of each kind of value that was dropped, guessed or converted in the files of the user.

In `remark_scope(strict=True)` a remark is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from pairvpr.errors import SourceError

log = logging.getLogger(__name__)


@dataclass
class _Scope:
    strict: bool = False
    counts: bool = True
    said: set[str] = field(default_factory=set)
    tallies: list[Tally] = field(default_factory=list)


# Outside of any scope no end is known at which a count could be said.
_scope: ContextVar[_Scope] = ContextVar("_scope", default=_Scope(counts=False))  # noqa: B039  shared on purpose


@contextmanager
def remark_scope(strict: bool = False) -> Iterator[None]:
    """Say each remark once within the block, and each tally at its end.

    strict: raise SourceError at the first remark.
    """
    scope = _Scope(strict)
    token = _scope.set(scope)
    try:
        yield
        for tally in scope.tallies:
            tally.say()
    finally:
        _scope.reset(token)


def remark(text: str) -> None:
    """Log a remark on an input as a warning, once. Raise SourceError in a strict scope.

    text: one line that names the file and its treatment.
    """
    scope = _scope.get()
    if scope.strict:
        raise SourceError(f"{text}; --strict stops here")
    if text not in scope.said:
        scope.said.add(text)
        log.warning("%s", text)


class Tally:
    """Count inputs of one kind, for one remark at the end of the scope.

    text: the inputs in the plural and their treatment, as "GPS positions without a fix are left out".
    """

    def __init__(self, text: str) -> None:
        self.count = 0
        self._text = text
        self._first = ""

    def add(self, example: str) -> None:
        """Count one input. Raise SourceError in a strict scope.

        example: the input's name.
        """
        self.count += 1
        if self.count > 1:
            return
        self._first = example
        scope = _scope.get()
        if scope.strict or not scope.counts:
            remark(f"{self._text}; first: {example}")
        else:
            scope.tallies.append(self)

    def say(self) -> None:
        """Log the count."""
        remark(f"{self.count} {self._text}; first: {self._first}")
