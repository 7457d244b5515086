"""The command-line options of a recognizer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
MATCHES_OPTION = click.option(
    "--matches", type=click.IntRange(min=1), default=10, show_default=True, help="Number of matches to list."
)
DIGEST_OPTION = click.option(
    "--model-digest", metavar="SHA256", help="Refuse a model of another digest. `pairvpr map info` shows a digest."
)


@dataclass(frozen=True)
class RecognizerOptions:
    """How to open a recognizer; see `PlaceRecognizer.open`."""

    db: Path
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

    def open(self) -> PlaceRecognizer:
        """Open the recognizer. Raises the errors of `PlaceRecognizer.open`."""
        from pairvpr.runtime.recognizer import PlaceRecognizer

        return PlaceRecognizer.open(
            self.db,
            model=self.model,
            top_k=self.top_k,
            rerank=not self.no_rerank,
            device=self.device,
            precision=self.precision,
            batch_size=self.batch_size,
            budget_ms=self.budget_ms,
            exact=self.exact,
            strict=self.strict,
            model_digest=self.model_digest,
        )


DB_OPTION = click.option("--db", required=True, type=click.Path(path_type=Path), help="The map's folder.")
_OPTIONS = [
    click.option("--model", type=click.Path(path_type=Path), help="Use another bundle of the map's model."),
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
        type=click.IntRange(min=1),
        help="Pairs per pass. Default: as tuned for the map, else by the free memory.",
    ),
    DIGEST_OPTION,
    click.option("--strict", is_flag=True, help="Stop at a damaged picture of the map, instead of leaving it out."),
]
NAMES = frozenset(RecognizerOptions.__dataclass_fields__)


def recognizer_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a recognizer. It receives them as one `RecognizerOptions`, named `recognizer`.

    The command adds DB_OPTION itself, which comes first in its help.
    """

    @functools.wraps(command)
    def with_options(
        *,
        db: Path,
        model: Path | None,
        device: str,
        precision: str | None,
        top_k: int | None,
        no_rerank: bool,
        exact: bool | None,
        budget_ms: float | None,
        batch_size: int | None,
        strict: bool,
        model_digest: str | None,
        **others: object,
    ) -> None:
        recognizer = RecognizerOptions(
            db, model, device, precision, top_k, no_rerank, exact, budget_ms, batch_size, strict, model_digest
        )
        command(**others, recognizer=recognizer)

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options
