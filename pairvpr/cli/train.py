"""What of `pairvpr` has to do with learning: `pairvpr train` and `pairvpr town`. Bodies import what they need."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

from pairvpr.errors import TrainingError
from pairvpr.runtime.cli.errors import Command, Group
from pairvpr.runtime.cli.log import release_log
from pairvpr.runtime.cli.progress import Meter

if TYPE_CHECKING:
    from pairvpr.training import RunResult

FILE = click.Path(path_type=Path)


@click.group("train", cls=Group)
def train_group() -> None:
    """Train the network; run the same command again to go on after an interruption."""


config_option = click.option("--config", required=True, type=FILE, help="A TOML configuration.")
set_option = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a setting.")


@train_group.command("stage-one")
@config_option
@set_option
def train_stage_one(config: Path, overrides: tuple[str, ...]) -> None:
    """Place-aware siamese masked image modelling."""
    training = _training()
    settings = training.stage_one_config(config, overrides)
    _say_run(training.train_stage_one(settings, lambda told: click.echo(told, err=True)))


@train_group.command("stage-two")
@config_option
@set_option
@click.option("--teacher", help="Learn from this checkpoint of stage two as well; --set teacher.checkpoint=FILE.")
def train_stage_two(config: Path, overrides: tuple[str, ...], teacher: str | None) -> None:
    """Descriptor and pair classifier together; with a teacher, distillation."""
    training = _training()
    taught = () if teacher is None else (f"teacher.checkpoint={json.dumps(teacher, ensure_ascii=False)}",)
    settings = training.stage_two_config(config, (*overrides, *taught))
    _say_run(training.train_stage_two(settings, lambda told: click.echo(told, err=True)))


def _training() -> ModuleType:
    try:
        from pairvpr import training
    except ImportError as error:
        raise TrainingError(f'training needs more packages ({error}); run pip install "pairvpr[train]"') from error
    release_log()
    return training


def _say_run(result: RunResult) -> None:
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks
        done = "finished" if result.finished else "stopped; the same command goes on"
        click.echo(f"{result.checkpoint / 'network.safetensors'}: step {result.step}, {done}")


@click.command("town", cls=Command)
@click.argument("out", type=FILE)
@click.option("--streets", default=200, show_default=True, type=click.IntRange(1), help="Three places each.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Another town for each number.")
@click.option("--visits", default=6, show_default=True, type=click.IntRange(2), help="Pictures of each place.")
@click.option("--evaluation", is_flag=True, help="Write OUT/database and OUT/queries for `pairvpr eval` instead.")
def town(out: Path, streets: int, seed: int, visits: int, evaluation: bool) -> None:
    """Draw the pictures of a made-up town into OUT; run again to go on after an interruption, or for more streets."""
    _training()
    from pairvpr.data.town import write_evaluation, write_town

    meter = Meter("streets").update
    if evaluation:
        write_evaluation(out, streets, seed, meter)
    else:
        write_town(out, streets, seed, visits, meter)
    click.echo(f"{out}: {streets} streets, {3 * streets} places")
