"""`pairvpr map loops`: a map that grows, and the loops that its pictures close. Bodies import what they need."""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from pairvpr.cli.maps import (
    FOLDER,
    change_option,
    db_option,
    distance_option,
    poses_option,
    strict_option,
)
from pairvpr.errors import SourceError
from pairvpr.runtime.cli.log import log, say_model
from pairvpr.runtime.cli.progress import Meter
from pairvpr.runtime.cli.source_options import source_options

if TYPE_CHECKING:
    from pairvpr.runtime.mapping.loop_closing import Closure
    from pairvpr.runtime.model import Model


@click.command("loops")
@click.argument("source")
@db_option
@click.option("--model", type=FOLDER, help="The bundle of a new map. Default: the default model.")
@click.option(
    "--threshold",
    required=True,
    metavar="SCORE|MAP",
    help="The pair score that closes a loop, or a map of the same model that `calibrate --accept` gave one.",
)
@click.option(
    "--exclude",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="What was added in the last so many seconds closes no loop.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Candidates to compare. Default: the model's.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Append edges to this file, not to stdout."
)
@poses_option
@strict_option
@distance_option
@change_option
@source_options
def map_loops(
    source: str,
    db: Path,
    model: Path | None,
    threshold: str,
    exclude: float,
    top_k: int | None,
    out: Path | None,
    min_distance: float | None,
    min_change: float | None,
    **how: Any,
) -> None:
    """Add the pictures of SOURCE to a map, new or not, and write a JSON line for each that closes a loop.

    A picture is looked for among all that were added before, except in the last seconds, and then added.
    """
    if not math.isfinite(exclude):
        raise click.UsageError(f"--exclude {exclude}: give a number of seconds")
    from pairvpr.runtime.mapping.builder import add_pictures
    from pairvpr.runtime.mapping.keyframes import Selection
    from pairvpr.runtime.mapping.loop_closing import LoopCloser, Threshold

    opened = _model(db, model)
    say_model(opened.bundle, opened.engines.description)
    closes = Threshold.of(threshold, opened.bundle.identity)
    log.info("%s", closes)
    loops = 0
    with _appended(out) as stream, LoopCloser(opened, closes, exclude, top_k) as closer:

        def write(closure: Closure) -> None:
            nonlocal loops
            loops += 1
            click.echo(closure.to_json(), file=stream)

        closer.report = write
        report = add_pictures(
            source,
            db,
            opened,
            create=True,
            selection=Selection(min_distance, min_change),
            progress=Meter("pictures"),
            witness=closer,
            **how,
        )
    for line in report.skipped:
        click.echo(f"skipped: {line}", err=True)
    click.echo(
        f"{db}: {report.added} pictures added, {loops} loops closed, {report.already} already there, "
        f"{len(report.skipped)} could not be read, {report.left_out} left out by --min-distance or --min-change",
        err=True,
    )


def _model(db: Path, given: Path | None) -> Model:
    """The map's own model, or for a new map the one that is given."""
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.model import load_model

    if given is not None or not (db / "map.sqlite").exists():
        return load_model(given)
    with Map.open(db) as places:
        own = places.model_path
    return load_model(own)


def _appended(out: Path | None) -> nullcontext[IO[str]] | IO[str]:
    """Where edges go, line by line: a run that goes on after an interruption must not lose the earlier ones."""
    if out is None:
        return nullcontext(sys.stdout)
    try:
        return out.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise SourceError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
