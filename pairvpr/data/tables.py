"""Read CSV files of data sets row by row, because they may be larger than memory."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from pairvpr.errors import SourceError

LONGEST_FIELD = 1 << 24
"""Characters that a field may have. Python's own limit of 131,072 is reached by a landmark of 7,710 pictures."""


def read_table(file: Path, columns: Sequence[str], remedy: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of a CSV file with a header: file and line for messages, and the text of each of `columns`.

    remedy: what to do about a bad file, for messages.
    Raises SourceError if the file cannot be read, lacks a column, or has a row with more or fewer fields than the
    header.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = _next_row(reader) or []
            for name in columns:
                if name not in header:
                    raise SourceError(f"{file}: lacks the column {name!r}; {remedy}")
            places = [header.index(name) for name in columns]
            while (fields := _next_row(reader)) is not None:
                where = f"{file}, line {reader.line_num}"
                if len(fields) != len(header):
                    raise SourceError(f"{where}: has {len(fields)} fields, the header has {len(header)}; {remedy}")
                yield where, [fields[place] for place in places]
    except FileNotFoundError:
        raise SourceError(f"{file}: missing; {remedy}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{file}: cannot be read as CSV ({error}); {remedy}") from error


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """Return the next row, or None at the end.

    Python's limit of a field's length holds for the whole process, so it is raised for this row alone.
    """
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def start_of_month(year: int, month: int) -> float:
    """Return seconds since 1970 at the start of a month, UTC. Raise ValueError if there is no such month."""
    return datetime(year, month, 1, tzinfo=timezone.utc).timestamp()
