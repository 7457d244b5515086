"""The command-line options of a recognizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pairvpr.cli.options import COUNT, DIGEST_OPTION, PATH, grouped, take
from pairvpr.runtime.engines.open import DEVICES, PRECISIONS

if TYPE_CHECKING:
    from pairvpr.runtime.recognizer import PlaceRecognizer

LOG_OPTION = click.option(
    "--log",
    "log_style",
    type=click.Choice(["text", "jsonl"]),
    default="text",
    show_default=True,
    help="Lines on stderr: plain, or JSON with time, level, logger and message.",
)
MATCHES_OPTION = click.option("--matches", type=COUNT, default=10, show_default=True, help="Number of matches to list.")


@dataclass(frozen=True)
class RecognizerOptions:
    """How to open the recognizer of a map or of a fleet; see `PlaceRecognizer.open`."""

    model: Path | None
    device: str
    precision: str | None
    top_k: int | None
    no_rerank: bool
    exact: bool | None
    budget_ms: float | None
    batch_size: int | None
    strict: bool
    model_digest: str | None
    db: Path | None = None
    fleet: Path | None = None
    shards: int = 1
    replicas: int = 1
    address: str | None = None

    def open(self) -> PlaceRecognizer:
        """Open the recognizer. Raises the errors of `PlaceRecognizer.open`."""
        from pairvpr.runtime.recognizer import PlaceRecognizer

        if (self.db is None) == (self.fleet is None):
            raise click.UsageError("give either --db, a map, or --fleet")
        given = dict(vars(self))
        rerank, in_fleet = (
            not given.pop("no_rerank"),
            {name: given.pop(name) for name in ("shards", "replicas", "address")},
        )
        db, fleet = given.pop("db"), given.pop("fleet")
        if fleet is None:
            return PlaceRecognizer.open(db, rerank=rerank, **given)
        from pairvpr.runtime.fleet.recognizer import FleetRecognizer

        return FleetRecognizer.open(fleet, rerank=rerank, **in_fleet, **given)


_OPTIONS = [
    click.option("--model", type=PATH, help="Use another bundle of the map's model."),
    click.option(
        "--device",
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        help="auto: as tuned for the map (`pairvpr tune`), else the first of TensorRT, CUDA and CPU that works.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        help="Default: as tuned for the map, else the best of the bundle for the device.",
    ),
    click.option(
        "--top-k",
        type=int,
        help="Number of candidates to re-rank. Default: as the threshold was calibrated, else the model's.",
    ),
    click.option("--no-rerank", is_flag=True, help="Answer by global descriptors alone."),
    click.option(
        "--exact/--cascade",
        default=None,
        help="Compare every candidate in full, or drop unlikely ones early. Default: as calibrated or tuned.",
    ),
    click.option(
        "--budget-ms",
        metavar="MS",
        type=float,
        help="Answer within MS milliseconds. Candidates beyond that are not compared.",
    ),
    click.option(
        "--batch-size",
        type=COUNT,
        help="Pairs per pass. Default: as tuned for the map, else by the free memory.",
    ),
    DIGEST_OPTION,
    click.option("--strict", is_flag=True, help="Stop at a damaged picture of the map, instead of leaving it out."),
]
NAMES = frozenset(RecognizerOptions.__dataclass_fields__)


recognizer_options = grouped(_OPTIONS, "recognizer", lambda given: take(RecognizerOptions, given))
"""Give a command the options of a recognizer, passed to it together as `recognizer`. The command needs DB_OPTION."""
