"""Print text that may come from files: names, licences, messages. Control characters never reach a terminal."""

from __future__ import annotations

import json
import unicodedata
from typing import IO, Any

import click

_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that are escaped: controls, invisible marks (they can reorder a line), surrogates, line ends."""


def printable(text: str) -> str:
    """Return the text as one line in which unprintable characters are escaped as in Python's texts."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii") if _is_escaped(character) else character
        for character in text
    )


def json_line(value: Any) -> str:
    """Return a value as one line of JSON in which unprintable characters are escaped.

    Raises ValueError for NaN and infinity, which are not JSON.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if text.isprintable():
        return text
    return "".join(json.dumps(character)[1:-1] if _is_escaped(character) else character for character in text)


def print_line(text: str, *, err: bool = False, file: IO[str] | None = None) -> None:
    """Print one line on stdout, on stderr, or to a file, with unprintable characters escaped."""
    click.echo(printable(text), err=err, file=file)


def _is_escaped(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED
