"""Implement `pairvpr map loops`: extend a map and report the loops that its pictures close."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pairvpr.cli.build_options import SOURCE_ARGUMENT, build_options
from pairvpr.cli.log import log, say_model
from pairvpr.cli.options import ABOVE_ZERO, COUNT, DB_OPTION, FILE, PATH
from pairvpr.cli.progress import Meter
from pairvpr.printing import print_line

if TYPE_CHECKING:
    from pairvpr.runtime.mapping.builder import BuildOptions
    from pairvpr.runtime.mapping.closure import Closure, Threshold
    from pairvpr.runtime.measure import Measure
    from pairvpr.runtime.model import Model


@click.command("loops")
@SOURCE_ARGUMENT
@DB_OPTION
@click.option("--model", type=PATH, help="Build a new map with this bundle. Default: the default model.")
@click.option(
    "--threshold",
    required=True,
    metavar="SCORE|MAP",
    help="Close a loop from this pair score on (this similarity, for a model without a pair classifier), or from the "
    "calibrated threshold of this map of the same model.",
)
@click.option(
    "--exclude",
    metavar="SECONDS",
    type=ABOVE_ZERO,
    default=30.0,
    show_default=True,
    help="Ignore pictures added within the last SECONDS.",
)
@click.option(
    "--top-k",
    type=COUNT,
    help="Compare this many candidates. Default: as the threshold was calibrated, else the model's.",
)
@click.option(
    "--out",
    type=FILE,
    help="Append the loops to this file, instead of printing them to stdout.",
)
@build_options
def map_loops(
    images: str,
    db: Path,
    model: Path | None,
    threshold: str,
    exclude: float,
    top_k: int | None,
    out: Path | None,
    options: BuildOptions,
) -> None:
    """Add pictures to a map and report loops.

    Each picture of SOURCE is compared with the pictures that were added before the last seconds, and then added to the
    map. A JSON line is written for each picture that closes a loop. The map is made if it is missing. With a threshold
    that was calibrated in metres a loop has an information matrix; otherwise it is a loop candidate.
    """
    from pairvpr.runtime.mapping.builder import add_pictures
    from pairvpr.runtime.mapping.closure import Threshold
    from pairvpr.runtime.mapping.loop_closing import LoopCloser
    from pairvpr.runtime.outputs.writers import open_lines

    opened = _model(db, model, options.model_digest)
    say_model(opened.bundle, opened.engines.description)
    closes = Threshold.from_text(threshold, opened.bundle.identity)
    log.info(_describe(closes, opened.bundle.info.measure))
    loops = 0
    with open_lines(out) as stream, LoopCloser(opened, closes, exclude, top_k) as closer:

        def write(closure: Closure) -> None:
            nonlocal loops
            loops += 1
            print_line(closure.to_json(), file=stream)

        closer.report = write
        report = add_pictures(
            images, db, opened, options, create=True, progress=Meter("pictures").update, loop_closer=closer
        )
    for line in report.skipped:
        print_line(f"skipped: {line}", err=True)
    print_line(
        f"{db}: {report.added} pictures added, {loops} loops closed, {report.already} already there, "
        f"{len(report.skipped)} could not be read, {report.left_out} left out by --min-distance or --min-change",
        err=True,
    )


@click.command("graph")
@DB_OPTION
@click.option(
    "--loops",
    type=FILE,
    help="The loops that `map loops --out` wrote, for a .g2o file.",
)
@click.option(
    "--out",
    required=True,
    type=FILE,
    help="The file to write: graph.g2o has poses and loops, poses.tum has poses by time.",
)
def map_graph(db: Path, loops: Path | None, out: Path) -> None:
    """Write poses and loops for SLAM tools.

    A .g2o file has a vertex for each picture with a pose, numbered as in `map list` from 0, and the loops between them.
    It has no odometry edges. A .tum file has the poses alone.
    """
    if out.suffix not in (".g2o", ".tum"):
        raise click.UsageError(f"--out {out}: give a name that ends in .g2o or .tum")
    if out.suffix == ".tum" and loops is not None:
        raise click.UsageError("--loops needs a .g2o file: a .tum file has poses alone")
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.mapping.pose_graph import read_edges, write_g2o, write_tum

    edges = [] if loops is None else read_edges(loops)
    with Map.open(db) as map_:
        written = write_tum(map_, out) if out.suffix == ".tum" else write_g2o(map_, edges, out)
    parts = [f"{out}: {written.poses} poses"]
    if loops is not None:
        parts += [
            f"{written.loops} loops",
            f"{written.candidates} loop candidates without a relative pose left out",
            f"{written.missing} loops of pictures without a pose left out",
        ]
    print_line(", ".join([*parts, f"{written.without} pictures left out"]))


def _describe(threshold: Threshold, measure: Measure) -> str:
    """Return the line that reports the threshold in use."""
    if threshold.acceptance is None:
        return (
            f"closing loops from a {measure} of {threshold.score:g} on (given, not calibrated: no precision is known)"
        )
    return (
        f"closing loops from a {measure} of {threshold.score:.3f} on (calibrated for {threshold.origin}: its "
        "precision does not hold for this map, because a growing map has more pictures that look alike)"
    )


def _model(db: Path, given: Path | None, digest: str | None) -> Model:
    """Load the given model, or else the model of an existing map, or else the default model. Check its digest first."""
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.model import load_model

    if given is not None or not (db / "map.sqlite").exists():
        return load_model(given, digest=digest)
    with Map.open(db) as map_:
        own, digest = map_.model_path, digest or map_.model_digest
    return load_model(own, digest=digest)
