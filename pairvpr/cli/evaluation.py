"""`pairvpr eval`: measure recognition on two folders, two drives, or a published data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from pairvpr.cli.errors import Command
from pairvpr.cli.log import log, say_busy, say_model
from pairvpr.cli.options import ABOVE_ZERO, COUNT, PATH, Whole
from pairvpr.cli.progress import Meters
from pairvpr.printing import print_line, print_lines

if TYPE_CHECKING:
    from pairvpr.evaluation import Benchmark


@click.command("eval", cls=Command)
@click.argument("database", type=PATH, required=False)
@click.argument("queries", type=PATH, required=False)
@click.option(
    "--dataset", help="A published benchmark instead, as msls-val or pitts30k. An unknown name lists all of them."
)
@click.option("--root", type=PATH, help="The folder of --dataset.")
@click.option(
    "--tolerance",
    type=Whole(min=0),
    metavar="N",
    help="Match by the numbers in names, at most N frames apart, not by @UTM@.",
)
@click.option("--model", type=PATH, help="The bundle to measure. Default: the default model.")
@click.option("--checkpoint", help="A checkpoint to measure instead, as `pairvpr export` takes it.")
@click.option("--top-k", type=COUNT, help="Candidates to re-rank. Default: the model's.")
@click.option("--exact", is_flag=True, help="Compare every candidate in full, even with a calibrated cascade.")
@click.option("--sequence", is_flag=True, help="Also filter the answers as a sequence; needs --tolerance or --robot.")
@click.option("--robot", is_flag=True, help="Take DATABASE and QUERIES as drives with poses: folders, bags or videos.")
@click.option(
    "--radius",
    type=ABOVE_ZERO,
    help="With --robot: largest distance of a right match, in metres. Default: 25.",
)
@click.option(
    "--poses",
    multiple=True,
    type=PATH,
    help="With --robot: poses file, as for `map build`: for both drives, or one for each.",
)
@click.option("--name", help="Title of the page and the figures. Default: the names of both folders.")
@click.option("--report", type=PATH, help="Write a page, figures and predictions into this folder.")
@click.option("--work", type=PATH, help="Keep the map in this folder, and go on with it after an interruption.")
def eval_(
    database: Path | None,
    queries: Path | None,
    dataset: str | None,
    root: Path | None,
    tolerance: int | None,
    model: Path | None,
    checkpoint: str | None,
    top_k: int | None,
    exact: bool,
    sequence: bool,
    robot: bool,
    radius: float | None,
    poses: tuple[Path, ...],
    name: str | None,
    report: Path | None,
    work: Path | None,
) -> None:
    """Measure recognition on two folders.

    Queries of the folder QUERIES are searched for in a map of the folder DATABASE, or both sides come from --dataset.
    With --robot both are drives with poses, and a table says how many places are recognised and how many are wrong.
    """
    if model is not None and checkpoint is not None:
        raise click.UsageError("--model and --checkpoint exclude each other")
    if sequence and tolerance is None and not robot:
        raise click.UsageError(
            "--sequence needs --tolerance or --robot: both folders must be traverses, frame by frame"
        )
    _check_robot(robot, radius, poses, {"--tolerance": tolerance, "--dataset": dataset, "--root": root})
    from pairvpr.evaluation import check_report_folder, evaluate, sequence_warning, summary, write_report
    from pairvpr.export.load import open_model

    with ExitStack() as stack:
        if report is not None:
            check_report_folder(report)
        if robot:
            benchmark = _load_robot(database, queries, radius, poses, work or Path(_temporary(stack)))
        else:
            benchmark = _load_benchmark(database, queries, dataset, root, tolerance)
        benchmark = benchmark if name is None else replace(benchmark, name=name)
        opened = stack.enter_context(open_model(model, checkpoint))
        say_model(opened.bundle, opened.engines.description)
        say_busy()
        evaluation = evaluate(
            benchmark, opened, top_k=top_k, exact=exact, sequence=sequence, work_dir=work, progress=Meters().update
        )
        print_lines(summary(evaluation, recognised=robot))
        if (warning := sequence_warning(evaluation)) is not None:
            log.warning(warning)
        if (decided := evaluation.figures().decisions) is not None and decided.warning is not None:
            log.warning("%s: %s", benchmark.name, decided.warning)
        if report is not None:
            print_line(f"page: {write_report(evaluation, report)}")


def _temporary(stack: ExitStack) -> str:
    return stack.enter_context(TemporaryDirectory(prefix="pairvpr-eval-"))


def _check_robot(robot: bool, radius: float | None, poses: Sequence[Path], others: Mapping[str, object]) -> None:
    """Raise click.UsageError for options that do not go with --robot, or need it."""
    for option, own in (("--radius", radius), ("--poses", poses or None)):
        if own is not None and not robot:
            raise click.UsageError(f"{option} needs --robot")
    for option, value in others.items():
        if value is not None and robot:
            raise click.UsageError(f"{option} does not go with --robot, which takes places from poses")
    if len(poses) > 2:
        raise click.UsageError("give --poses once, or once for each of the two drives")


def _load_robot(
    database: Path | None, queries: Path | None, radius: float | None, poses: Sequence[Path], work: Path
) -> Benchmark:
    from pairvpr.evaluation.folders import RADIUS
    from pairvpr.evaluation.robot import load_robot

    if database is None or queries is None:
        raise click.UsageError("--robot needs two drives: pairvpr eval --robot MAPPING DRIVE")
    return load_robot(database, queries, radius or RADIUS, work, poses)


def _load_benchmark(
    database: Path | None, queries: Path | None, dataset: str | None, root: Path | None, tolerance: int | None
) -> Benchmark:
    """Load the benchmark that the options name. Raises click.UsageError for options that do not fit together."""
    from pairvpr.evaluation import load_dataset, load_folders

    if database is not None and queries is not None and dataset is None and root is None:
        return load_folders(database, queries, tolerance)
    if database is not None or queries is not None or dataset is None or root is None:
        raise click.UsageError("give DATABASE and QUERIES, or --dataset NAME and --root DIR")
    if tolerance is not None:
        raise click.UsageError("--tolerance needs DATABASE and QUERIES; a data set has its own rule")
    return load_dataset(dataset, root)
