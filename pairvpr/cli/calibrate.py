"""Define `pairvpr calibrate` and `pairvpr tune`. Command bodies import what they need, so that help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pairvpr.runtime.cli.errors import Command, if_interrupted
from pairvpr.runtime.cli.log import say_model
from pairvpr.runtime.cli.progress import Meters
from pairvpr.runtime.cli.source_options import source_options

PATH = click.Path(path_type=Path)


@click.command("tune", cls=Command)
@click.option("--db", required=True, type=PATH, help="The map to answer from.")
@click.option("--images", required=True, type=PATH, help="Your own pictures, as the robot sees them; not the map's.")
@click.option(
    "--budget-ms",
    type=click.FloatRange(min=0, min_open=True),
    help="Milliseconds that 99 of 100 answers must keep. Default: as fast as can be.",
)
@click.option(
    "--max-loss",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.003,
    show_default=True,
    help="Share of pictures in which another match than the exact answer's may come first; 2 / share are needed.",
)
@click.option(
    "--report", type=PATH, default=Path("tune.html"), show_default=True, help="Write the page with the plot here."
)
def tune(db: Path, images: Path, budget_ms: float | None, max_loss: float, report: Path) -> None:
    """Find the fastest setting for this device.

    The setting is chosen for the map and written into it. This takes minutes.
    """
    from pairvpr.calibration.tune import tune as find
    from pairvpr.html.document import check_page, write_page
    from pairvpr.runtime.bundle import TUNING, Bundle
    from pairvpr.runtime.map import Map
    from pairvpr.viewing import tuning_page as tune_page

    check_page(report)
    with Map.open(db) as map_:
        bundle = Bundle.open(map_.model_path)
        bundle.check_writable()
        say_model(bundle)
        with if_interrupted("nothing was written, neither page nor setting"):
            tuned = find(map_, images, max_loss, budget_ms, Meters().update)
    click.echo(tune_page.table(tuned))
    click.echo(tune_page.verdict(tuned))
    write_page(report, tune_page.render(tuned))
    if tuned.chosen is not None:
        bundle.store_calibration(TUNING, tuned.tuning(tuned.chosen).to_json())
    click.echo(f"page: {report}")


@click.command("calibrate", cls=Command)
@click.option("--model", type=PATH, help="The bundle to calibrate, on a map of the pictures themselves.")
@click.option("--db", type=PATH, help="The map whose model to calibrate, on answers from this map.")
@click.option("--images", required=True, type=PATH, help="Your own pictures, as the robot sees them.")
@click.option(
    "--accept", is_flag=True, help="Find the score from which answers may be acted on; needs --db and places."
)
@click.option(
    "--precision-target",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="With --accept: the share of accepted answers that is to be right. Default: 0.99.",
)
@click.option(
    "--delta",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="With --accept: the chance that it is less after all. Default: 0.1.",
)
@click.option(
    "--radius",
    type=click.FloatRange(min=0, min_open=True),
    help="With --accept: a match is right within so many metres, or the map's units. Default: 25.",
)
@click.option(
    "--tolerance",
    type=click.IntRange(min=0),
    help="With --accept, in place of --radius: frames. The numbers in names are places then, as for `pairvpr eval`.",
)
@click.option("--poses", type=PATH, help="With --accept: poses, as for `map build`. Else: @UTM@ names, EXIF GPS.")
@click.option("--top-k", type=click.IntRange(min=1), help="With --accept: candidates, as `pairvpr-run` will take.")
@click.option("--exact", is_flag=True, default=None, help="With --accept: for `pairvpr-run --exact`.")
@source_options
def calibrate(model: Path | None, db: Path | None, images: Path, accept: bool, **how: Any) -> None:
    """Calibrate a model on your pictures.

    Without --accept: learn which candidates need no full comparison, and measure the effect on answers.
    With --accept, and after that: find the score from which answers can be accepted. Options of a source, as --topic
    and --every, need --accept.
    """
    from pairvpr.runtime.sources.options import DEFAULT

    asked = {name: value for name, value in how.items() if value not in (None, DEFAULT)}
    if accept:
        if db is None or model is not None:
            raise click.UsageError("--accept decides on answers from a map: give --db MAP")
        if "tolerance" in asked and not asked.keys().isdisjoint(("radius", "poses")):
            raise click.UsageError("--tolerance goes by numbers in names, --radius and --poses by places: give either")
        _calibrate_acceptance(db, images, **asked)
        return
    if (model is None) == (db is None):
        raise click.UsageError("give --model BUNDLE or --db MAP")
    if asked:
        raise click.UsageError("all options but --model, --db and --images go with --accept")
    from contextlib import ExitStack

    from pairvpr.calibration.cascade import calibrate_cascade, map_of
    from pairvpr.runtime.calibrated.cascade import KEY
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.model import load_model

    with ExitStack() as stack:
        map_ = None if db is None else stack.enter_context(Map.open(db))
        opened = load_model(model if map_ is None else map_.model_path)
        opened.bundle.check_writable()
        say_model(opened.bundle, opened.engines.description)
        meters = Meters().update
        map_ = map_ or stack.enter_context(map_of(images, opened, meters))
        cascade = calibrate_cascade(map_, opened, images, meters)
    opened.bundle.store_calibration(KEY, cascade.to_json())
    click.echo(f"{opened.bundle.path}: {cascade}")


def _calibrate_acceptance(
    db: Path,
    images: Path,
    precision_target: float | None = None,
    delta: float | None = None,
    radius: float | None = None,
    tolerance: int | None = None,
    **how: Any,
) -> None:
    from pairvpr.calibration.acceptance import DELTA, PRECISION, RADIUS, PrecisionTarget, calibrate_acceptance
    from pairvpr.runtime.calibrated.acceptance import FRAMES, KEY, METRES
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.model import load_model

    within = (radius or RADIUS, METRES) if tolerance is None else (tolerance, FRAMES)
    promise = PrecisionTarget(precision_target or PRECISION, delta or DELTA, *within)
    with Map.open(db) as map_:
        opened = load_model(map_.model_path)
        opened.bundle.check_writable()
        say_model(opened.bundle, opened.engines.description)
        acceptance = calibrate_acceptance(map_, opened, images, promise, Meters().update, **how)
    opened.bundle.store_calibration(KEY, acceptance.to_json())
    click.echo(f"{opened.bundle.path}: {acceptance}")
