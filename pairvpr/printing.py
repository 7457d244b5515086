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
    return "".join(
        json.dumps(character, allow_nan=False)[1:-1] if _is_escaped(character) else character for character in text
    )


def json_document(value: Any) -> str:
    """Return a value as the indented JSON of a file. Raises ValueError for NaN and infinity, which are not JSON."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def print_line(text: str, *, err: bool = False, file: IO[str] | None = None) -> None:
    """Print one line on stdout, on stderr, or to a file, with unprintable characters escaped."""
    click.echo(printable(text), err=err, file=file)


def print_lines(text: str, *, err: bool = False) -> None:
    """Print the lines of a text on stdout or on stderr, each as `print_line` does."""
    for line in text.split("\n"):
        print_line(line, err=err)


def _is_escaped(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED
