"""The command-line options of a source."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pairvpr.errors import SourceError


def _read_crop(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int, int, int] | None:
    if value is None:
        return None
    from pairvpr.runtime.sources.options import read_crop

    try:
        return read_crop(value)
    except SourceError as error:
        raise click.BadParameter(str(error)) from error


_SOURCE_OPTIONS = [
    click.option("--topic", help="A bag's images. Default: its only image topic."),
    click.option("--pose-topic", help="A bag's poses or GPS positions. Default: its only topic of these."),
    click.option("--every", type=click.IntRange(min=1), default=1, help="Take each N-th frame."),
    click.option("--start", type=click.FloatRange(min=0), default=0.0, help="Begin so many seconds into it."),
    click.option("--duration", type=click.FloatRange(min=0, min_open=True), help="End after so many seconds."),
    click.option("--max-fps", type=click.FloatRange(min=0, min_open=True), help="At most so many frames a second."),
    click.option(
        "--undistort",
        type=click.Path(path_type=Path),
        help="Undo the lens's distortion: a ROS camera_info YAML or EuRoC sensor.yaml.",
    ),
    click.option(
        "--rotate",
        type=click.Choice([0, 90, 180, 270]),
        default=0,
        help="Turn pictures clockwise by so many degrees, after --undistort.",
    ),
    click.option("--crop", metavar="X,Y,W,H", callback=_read_crop, help="Cut this part out, after --rotate."),
]


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a source, which reach it together as `options`."""

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        from pairvpr.runtime.sources.options import SourceOptions

        chosen = {field.name: given.pop(field.name) for field in dataclasses.fields(SourceOptions)}
        command(**given, options=SourceOptions(**chosen))

    for option in reversed(_SOURCE_OPTIONS):
        with_options = option(with_options)
    return with_options
