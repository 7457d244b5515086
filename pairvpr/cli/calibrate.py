"""Define `pairvpr calibrate` and `pairvpr tune`. Imports stand in the bodies of commands, so that help is instant."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pairvpr.cli.errors import Command, Group, if_interrupted
from pairvpr.cli.log import log, say_busy, say_model
from pairvpr.cli.options import ABOVE_ZERO, COUNT, FORMAT_OPTION, PATH, Number, Whole
from pairvpr.cli.progress import Meters
from pairvpr.cli.source_options import source_options
from pairvpr.printing import json_line, print_line, print_lines

if TYPE_CHECKING:
    from pairvpr.runtime.sources.options import SourceOptions


images_option = click.option("--images", required=True, type=PATH, help="Your own pictures, as the robot sees them.")


@click.command("tune", cls=Command)
@click.option("--db", required=True, type=PATH, help="The map to answer from.")
@click.option("--images", required=True, type=PATH, help="Your own pictures, as the robot sees them; not the map's.")
@click.option(
    "--budget-ms",
    type=ABOVE_ZERO,
    help="Limit in milliseconds for 99 of 100 answers. Default: no limit, the fastest setting is chosen.",
)
@click.option(
    "--max-loss",
    type=Number(0, 1, min_open=True),
    default=0.003,
    show_default=True,
    help="Largest share of pictures with another first match than the exact answer's. It takes 2 / share pictures, and "
    "at least 40.",
)
@click.option(
    "--report", type=PATH, default=Path("tune.html"), show_default=True, help="Write a page with a plot to this file."
)
@FORMAT_OPTION
def tune(db: Path, images: Path, budget_ms: float | None, max_loss: float, report: Path, style: str) -> None:
    """Find the fastest setting for this device.

    The setting is written into the map, for answers on this device. Takes minutes.
    """
    from pairvpr.calibration.tune import tune as find
    from pairvpr.html.document import check_page, write_page
    from pairvpr.runtime.bundle import TUNING, Bundle
    from pairvpr.runtime.map import Map
    from pairvpr.viewing import tuning_page
    from pairvpr.viewing.calibration_results import block

    check_page(report)
    with Map.open(db) as map_:
        bundle = Bundle.open(map_.model_path)
        bundle.check_writable()
        say_model(bundle)
        say_busy()
        with if_interrupted("nothing was written, neither page nor setting"):
            tuned = find(map_, images, max_loss, budget_ms, Meters().update)
    if style == "jsonl":
        print_line(json_line({"bundle": str(bundle.path), **tuned.to_json()}))
    else:
        print_lines(tuning_page.table(tuned))
        print_lines(block(tuning_page.verdict(tuned), tuning_page.chosen_rows(tuned)))
    write_page(report, tuning_page.render(tuned))
    if tuned.chosen is not None:
        bundle.store_calibration(TUNING, tuned.tuning(tuned.chosen).to_json())
    print_line(f"page: {report}", err=style == "jsonl")


class CalibrateGroup(Group):
    """Accept `pairvpr calibrate [--accept] ...`, the spelling of version 0.1, with a warning that names the new one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the subcommand in front of the options of the old spelling."""
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            name = "threshold" if "--accept" in args else "cascade"
            args = [name, *(argument for argument in args if argument != "--accept")]
            old = "pairvpr calibrate --accept" if name == "threshold" else "pairvpr calibrate"
            log.warning("`%s` is now `pairvpr calibrate %s`; the old spelling ends with the next version", old, name)
        return super().parse_args(ctx, args)


class CalibrateCommand(Command):
    """Name the subcommand that an option belongs to."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options. Raises click.UsageError for an option of the other subcommand."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            for other in calibrate.commands.values():
                if any(error.option_name in parameter.opts for parameter in other.params):
                    raise click.UsageError(
                        f"{error.option_name} needs `pairvpr calibrate {other.name}`", ctx
                    ) from error
            raise


@click.group("calibrate", cls=CalibrateGroup)
def calibrate() -> None:
    """Calibrate answers on your own pictures."""


@calibrate.command("cascade", cls=CalibrateCommand)
@click.option("--model", type=PATH, help="The bundle to calibrate, on a temporary map of the pictures.")
@click.option("--db", type=PATH, help="The map whose model to calibrate, on answers from this map.")
@images_option
@FORMAT_OPTION
def calibrate_cascade(model: Path | None, db: Path | None, images: Path, style: str) -> None:
    """Learn which candidates to drop early.

    Compares your pictures with all their candidates, learns which candidates need no full comparison, and measures how
    often the best one is lost. Needs no labels.
    """
    if (model is None) == (db is None):
        raise click.UsageError("give either --model BUNDLE or --db MAP")

    from pairvpr.calibration.cascade import calibrate_cascade as learn
    from pairvpr.calibration.cascade import temporary_map
    from pairvpr.runtime.calibrated.cascade import KEY
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.model import load_model
    from pairvpr.viewing.calibration_results import cascade_rows

    with ExitStack() as stack:
        map_ = None if db is None else stack.enter_context(Map.open(db))
        opened = load_model(model if map_ is None else map_.model_path)
        opened.bundle.require_pair_classifier("`pairvpr calibrate cascade`")
        opened.bundle.check_writable()
        say_model(opened.bundle, opened.engines.description)
        meters = Meters().update
        map_ = map_ or stack.enter_context(temporary_map(images, opened, meters))
        cascade = learn(map_, opened, images, meters)
    opened.bundle.store_calibration(KEY, cascade.to_json())
    _print_result(opened.bundle.path, "cascade", cascade_rows(cascade), cascade.figures(), style)


@calibrate.command("threshold", cls=CalibrateCommand)
@click.option("--db", required=True, type=PATH, help="The map whose answers to calibrate.")
@click.option(
    "--images",
    required=True,
    multiple=True,
    type=PATH,
    help="A traverse of your own through known places, as the robot sees them. May be given several times.",
)
@click.option(
    "--precision-target",
    type=Number(0, 1, min_open=True, max_open=True),
    help="Share of accepted answers that must be right. Default: 0.99.",
)
@click.option(
    "--delta",
    type=Number(0, 1, min_open=True, max_open=True),
    help="Chance that the share is lower after all. Default: 0.1.",
)
@click.option(
    "--radius",
    type=ABOVE_ZERO,
    help="Largest distance of a right match, in metres or the map's units. Default: 25.",
)
@click.option(
    "--tolerance",
    type=Whole(min=0),
    metavar="FRAMES",
    help="Use the numbers in picture names as places, as `pairvpr eval` does: largest distance of a right match.",
)
@click.option(
    "--poses",
    multiple=True,
    type=PATH,
    help="Poses file, as for `map build`: for all traverses, or one for each. Default: @UTM@ names, EXIF GPS.",
)
@click.option(
    "--top-k",
    type=COUNT,
    help="Number of candidates of an answer. It becomes the map's default. Default: the model's.",
)
@click.option("--exact", is_flag=True, help="Calibrate exact answers. They become the map's default.")
@source_options
@FORMAT_OPTION
def calibrate_threshold(
    db: Path,
    images: tuple[Path, ...],
    precision_target: float | None,
    delta: float | None,
    radius: float | None,
    tolerance: int | None,
    poses: tuple[Path, ...],
    top_k: int | None,
    exact: bool,
    options: SourceOptions,
    style: str,
) -> None:
    """Find the score from which to accept answers.

    Asks the map pictures of known places and finds the lowest pair score from which the promised share of answers is
    right, or the lowest similarity if the model has no pair classifier. A new cascade makes a threshold invalid:
    calibrate the cascade first. Answers are kept in your cache, so that another radius or precision needs no new
    recognising.
    """
    if len(poses) not in (0, 1, len(images)):
        raise click.UsageError(f"give --poses once, or once for each of the {len(images)} --images")
    if tolerance is not None:
        for name, value in (("--radius", radius), ("--poses", poses or None)):
            if value is not None:
                raise click.UsageError(f"{name} goes by poses, --tolerance by numbers in names: give one of them")

    from pairvpr.calibration.acceptance import DELTA, PRECISION, RADIUS, PrecisionTarget, calibrate_acceptance
    from pairvpr.runtime.calibrated.acceptance import FRAMES, KEY, METRES
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.model import load_model
    from pairvpr.viewing.calibration_results import acceptance_rows

    within = (radius or RADIUS, METRES) if tolerance is None else (tolerance, FRAMES)
    target = PrecisionTarget(precision_target or PRECISION, delta or DELTA, *within)
    with Map.open(db) as map_:
        opened = load_model(map_.model_path)
        opened.bundle.check_writable()
        say_model(opened.bundle, opened.engines.description)
        acceptance = calibrate_acceptance(
            map_,
            opened,
            images,
            target,
            Meters().update,
            poses=poses,
            options=options,
            top_k=top_k,
            exact=exact,
            keep=True,
        )
    opened.bundle.store_calibration(KEY, acceptance.to_json())
    _print_result(opened.bundle.path, "acceptance threshold", acceptance_rows(acceptance), acceptance.to_json(), style)


def _print_result(bundle: Path, title: str, rows: list[tuple[str, str]], figures: dict[str, Any], style: str) -> None:
    """Print a result as a block of labelled lines, or as one line of JSON."""
    from pairvpr.viewing.calibration_results import block

    if style == "jsonl":
        print_line(json_line({"bundle": str(bundle), **figures}))
    else:
        print_lines(block(f"{bundle}: {title}", rows))
