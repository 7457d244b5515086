"""Print text that may come from files: names, licences, messages. Control characters never reach a terminal."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
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


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which gets an s unless there is one of it: "1 tile", "2 tiles"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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


@contextmanager
def hide_native_lines(part: str) -> Iterator[None]:
    """Hide lines with `part` that libraries print on stderr during the block. Other lines are printed after it.

    It works on the process's stderr, because libraries in C++ do not know Python's.
    """
    if sys.stderr is None or not hasattr(os, "memfd_create"):  # started without stderr, or not on Linux
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.memfd_create("stderr"), "w+b") as printed:  # noqa: PTH123 (a descriptor)
        os.dup2(printed.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            printed.seek(0)
            for line in printed:
                if part.encode() not in line:
                    os.write(2, line)


def _is_escaped(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED
