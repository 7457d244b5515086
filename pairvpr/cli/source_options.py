"""The command-line options of a source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pairvpr.cli.options import ABOVE_ZERO, COUNT, PATH, Number, grouped, take
from pairvpr.errors import SourceError

if TYPE_CHECKING:
    from pairvpr.runtime.sources.options import SourceOptions


def _parse_crop(text: str) -> tuple[int, int, int, int]:
    from pairvpr.runtime.sources.options import read_crop

    try:
        return read_crop(text)
    except SourceError as error:
        raise click.BadParameter(str(error)) from error


SOURCE_OPTIONS = [
    click.option(
        "--topic",
        help="Topic of a bag's images. Default: its only image topic. pairvpr-run takes several, with commas.",
    ),
    click.option("--pose-topic", help="Topic of a bag's poses or GPS positions. Default: its only one."),
    click.option("--every", type=COUNT, default=1, help="Take every N-th frame."),
    click.option("--start", metavar="SECONDS", type=Number(min=0), default=0.0, help="Skip the first SECONDS."),
    click.option(
        "--duration",
        metavar="SECONDS",
        type=ABOVE_ZERO,
        help="Stop SECONDS after the start.",
    ),
    click.option(
        "--max-fps",
        metavar="RATE",
        type=ABOVE_ZERO,
        help="Take at most RATE frames per second of the source's time.",
    ),
    click.option(
        "--undistort",
        type=PATH,
        help="Remove the lens distortion given in a ROS camera_info YAML or EuRoC sensor.yaml.",
    ),
    click.option(
        "--rotate",
        type=click.Choice([0, 90, 180, 270]),
        default=0,
        help="Turn pictures clockwise by this many degrees, after --undistort.",
    ),
    click.option(
        "--crop",
        metavar="X,Y,WIDTH,HEIGHT",
        type=_parse_crop,
        help="Keep this part of a picture, in pixels, after --rotate.",
    ),
]


def make_source_options(given: dict[str, Any]) -> SourceOptions:
    """Take the values of the options out of all given values."""
    from pairvpr.runtime.sources.options import SourceOptions

    return take(SourceOptions, given)


source_options = grouped(SOURCE_OPTIONS, "options", make_source_options)
"""Give a command the options of a source, passed to it together as `options`, a `SourceOptions`."""
