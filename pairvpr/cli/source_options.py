"""The command-line options of a source."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import click

from pairvpr.errors import SourceError

Crop = tuple[int, int, int, int]


def _read_crop(_: click.Context, __: click.Parameter, value: str | None) -> Crop | None:
    if value is None:
        return None
    from pairvpr.runtime.sources.options import read_crop

    try:
        return read_crop(value)
    except SourceError as error:
        raise click.BadParameter(str(error)) from error


_SOURCE_OPTIONS = [
    click.option("--topic", help="Topic of a bag's images. Default: its only image topic."),
    click.option("--pose-topic", help="Topic of a bag's poses or GPS positions. Default: its only one."),
    click.option("--every", type=click.IntRange(min=1), default=1, help="Take every N-th frame."),
    click.option(
        "--start", metavar="SECONDS", type=click.FloatRange(min=0), default=0.0, help="Skip the first SECONDS."
    ),
    click.option(
        "--duration",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        help="Stop SECONDS after the start.",
    ),
    click.option(
        "--max-fps",
        metavar="RATE",
        type=click.FloatRange(min=0, min_open=True),
        help="Take at most RATE frames per second of the source's time.",
    ),
    click.option(
        "--undistort",
        type=click.Path(path_type=Path),
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
        callback=_read_crop,
        help="Keep this part of a picture, in pixels, after --rotate.",
    ),
]


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a source. The command receives them as one `SourceOptions`, named `options`."""

    @functools.wraps(command)
    def with_options(
        *,
        topic: str | None,
        pose_topic: str | None,
        every: int,
        start: float,
        duration: float | None,
        max_fps: float | None,
        undistort: Path | None,
        rotate: int,
        crop: Crop | None,
        **others: object,
    ) -> None:
        from pairvpr.runtime.sources.options import SourceOptions

        command(
            **others,
            options=SourceOptions(
                topic=topic,
                pose_topic=pose_topic,
                every=every,
                start=start,
                duration=duration,
                max_fps=max_fps,
                undistort=undistort,
                rotate=rotate,
                crop=crop,
            ),
        )

    for option in reversed(_SOURCE_OPTIONS):
        with_options = option(with_options)
    return with_options
