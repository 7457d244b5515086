"""Write answers as lines on stdout or in a file, or as ROS messages in an MCAP file."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

from pairvpr.errors import SourceError
from pairvpr.printing import print_line, printable
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.outputs.mcap import EXTENSION, open_mcap
from pairvpr.runtime.outputs.ros_messages import AnswerMessages
from pairvpr.runtime.sources import Frame
from pairvpr.runtime.sources.bags import is_bag

Put = Callable[[Frame, Recognition], None]


@contextmanager
def open_output(out: Path | None, style: str, matches: int, queries: Sequence[str]) -> Iterator[Put]:
    """Yield a function that writes the answer for a frame to `out`, or to stdout if `out` is None.

    out: a file that is appended to, so that a run after a restart keeps the earlier answers. A name ending in .mcap
    gets ROS messages, whatever the style, in a numbered file beside an earlier one.
    style: "text", "jsonl" or "pairs".
    matches: number of matches listed.
    queries: the sources of the run, which are never overwritten.
    Raises SourceError if `out` cannot be written.
    """
    if out is not None and any(_is_read(out, Path(query)) for query in queries):
        raise SourceError(f"{out}: --query reads it; choose another --out")
    if out is not None and out.suffix.lower() == EXTENSION:
        with open_mcap(out, AnswerMessages(", ".join(queries), matches)) as file:
            yield file.add
        return
    with open_lines(out) as stream:

        def put(frame: Frame, answer: Recognition) -> None:
            for line in FORMATS[style](answer, matches):
                print_line(line, file=stream)

        yield put


def format_json(answer: Recognition, matches: int) -> list[str]:
    """Format an answer as one line of JSON."""
    return [answer.to_json(matches)]


def format_pairs(answer: Recognition, matches: int) -> list[str]:
    """Format an answer as hloc reads pairs of pictures: a line "QUERY MATCH" for each match.

    A picture that could not be read has no line. Raises SourceError for a name with white space, which such a file
    cannot hold.
    """
    lines = [f"{answer.query} {match.name}" for match in answer.matches[:matches]]
    for line in lines:
        if len(line.split()) != 2 or line != printable(line):
            raise SourceError(f"{line!r}: a file of pairs has names without spaces; rename it or use --format jsonl")
    return lines


def format_text(answer: Recognition, matches: int) -> list[str]:
    """Format an answer as text: the best match on one line, the others below it."""
    query = printable(answer.query)
    if answer.error is not None:
        return [printable(f"{answer.query}: {answer.error}")]
    lines = []
    for match in answer.matches[:matches]:
        kind = "predicted score" if match.stage == "prefix" else "score"
        score = "not compared" if match.score is None else f"{kind} {match.score:+.3f}"
        lines.append(f"{printable(match.name)}  {score}  similarity {match.similarity:.3f}{_at(match.pose)}")
    head = f"{query} -> {lines[0]}"
    compared = f"{answer.compared} compared" if answer.complete else f"only {answer.compared} compared"
    tail = f"  ({compared} in {answer.timings['total']:.0f} ms)"
    if answer.confidence is not None:
        tail = f"  {answer.reason}, confidence {answer.confidence:.3f}{tail}"
    between: list[str] = []
    if (place := answer.sequence) is not None:
        sure = f"probability {place.probability:.3f}, off the map {place.off_map:.3f}"
        between = [f"  sequence: {printable(place.name)}  {sure}{_at(place.pose)}"]
    return [head, *("    " + line for line in lines[1:]), *between, tail]


FORMATS = {"text": format_text, "jsonl": format_json, "pairs": format_pairs}
"""How `pairvpr-run --format` writes an answer: the lines for it and for the number of matches listed."""


def _at(pose: Pose | Gps | None) -> str:
    return "" if pose is None else printable(f"  at {pose}")


def _is_read(out: Path, query: Path) -> bool:
    """Return whether `out` is the source itself, or a file of a bag that is a folder."""
    try:
        if not out.exists() or not query.exists():
            return False
        return out.samefile(query) or (query.is_dir() and is_bag(query) and out.parent.samefile(query))
    except OSError:  # a camera or an address
        return False


def open_lines(out: Path | None) -> nullcontext[IO[str]] | IO[str]:
    """Open a file that lines are appended to, so that a run after a restart keeps the earlier lines. None is stdout.

    Raises SourceError if it cannot be written.
    """
    if out is None:
        return nullcontext(sys.stdout)
    try:
        stream = out.open("ab+")
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")  # a run that was killed may leave half a line
        return io.TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace", line_buffering=True)
    except OSError as error:
        raise SourceError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
