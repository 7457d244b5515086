"""`pairvpr tune`. The body imports what it needs."""

from __future__ import annotations

from pathlib import Path

import click

from pairvpr.runtime.console import Command, Meters, say_model

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
    """Find the fastest setting on this device for this map, and write it into the map. Takes minutes."""
    from pairvpr.calibration import tune_page
    from pairvpr.calibration.tune import tune as find
    from pairvpr.runtime.bundle import TUNING, Bundle
    from pairvpr.runtime.map import Map

    tune_page.check_writable(report)
    with Map.open(db) as places:
        bundle = Bundle.open(places.model_path)
        bundle.check_writable()
        say_model(bundle)
        tuned = find(places, images, max_loss, budget_ms, Meters())
    click.echo(tune_page.table(tuned))
    click.echo(tune_page.verdict(tuned))
    tune_page.write_page(tuned, report)
    if tuned.chosen is not None:
        bundle.store_calibration(TUNING, tuned.tuning(tuned.chosen).to_json())
    click.echo(f"page: {report}")
