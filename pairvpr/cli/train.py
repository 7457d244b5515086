"""The commands `pairvpr train` and `pairvpr town`. Imports stand in the bodies of functions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

from pairvpr.cli.errors import Command, Group
from pairvpr.cli.log import release_log
from pairvpr.cli.options import PATH, Whole
from pairvpr.cli.progress import Meter
from pairvpr.errors import TrainingError
from pairvpr.printing import print_line

if TYPE_CHECKING:
    from pairvpr.training import RunResult


@click.group("train", cls=Group)
def train_group() -> None:
    """Train the network, or resume an interrupted run.

    The same command resumes: it continues from the last checkpoint of the folder `out`.
    """


config_option = click.option("--config", required=True, type=PATH, help="TOML file of the run's settings.")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a setting, as train.lr=1e-4."
)


@train_group.command("stage-one")
@config_option
@set_option
def train_stage_one(config: Path, overrides: tuple[str, ...]) -> None:
    """Teach the decoder to rebuild masked pictures.

    Stage one of the paper: siamese masked image modelling on pairs of pictures of the same place.
    """
    training = _training()
    settings = training.stage_one_config(config, overrides)
    _say_run(training.train_stage_one(settings, lambda told: print_line(str(told), err=True)))


@train_group.command("stage-two")
@config_option
@set_option
@click.option("--teacher", help="Stage-two checkpoint to learn from. Same as --set teacher.checkpoint=FILE.")
def train_stage_two(config: Path, overrides: tuple[str, ...], teacher: str | None) -> None:
    """Train descriptor and pair classifier together.

    With --teacher, the network also learns from a trained one (distillation).
    """
    training = _training()
    taught = (
        () if teacher is None else (f"teacher.checkpoint={json.dumps(teacher, ensure_ascii=False, allow_nan=False)}",)
    )
    settings = training.stage_two_config(config, (*overrides, *taught))
    _say_run(training.train_stage_two(settings, lambda told: print_line(str(told), err=True)))


def _training() -> ModuleType:
    try:
        from pairvpr import training
    except ImportError as error:
        raise TrainingError(
            f'training needs packages that are missing ({error}); run pip install "pairvpr[train]"'
        ) from error
    release_log()
    return training


def _say_run(result: RunResult) -> None:
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks
        done = "finished" if result.finished else "stopped; the same command resumes"
        print_line(f"{result.checkpoint / 'network.safetensors'}: step {result.step}, {done}")


@click.command("town", cls=Command)
@click.argument("out", type=PATH)
@click.option(
    "--streets", default=200, show_default=True, type=Whole(1), help="Streets to draw, with three places each."
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=Whole(0),
    help="Number of the town. Towns of different numbers share no street.",
)
@click.option(
    "--visits",
    default=6,
    show_default=True,
    type=Whole(2),
    help="Pictures of each place. Not used by --evaluation.",
)
@click.option(
    "--evaluation",
    is_flag=True,
    help="Write OUT/database and OUT/queries for `pairvpr eval`, in place of training data.",
)
def town(out: Path, streets: int, seed: int, visits: int, evaluation: bool) -> None:
    """Draw the pictures of a made-up town.

    The pictures are written into the folder OUT. The same command resumes after an interruption, and more --streets
    extend the town.
    """
    _training()
    from pairvpr.data.town import write_evaluation, write_town

    meter = Meter("streets").update
    if evaluation:
        write_evaluation(out, streets, seed, meter)
    else:
        write_town(out, streets, seed, visits, meter)
    print_line(f"{out}: {streets} streets, {3 * streets} places")
