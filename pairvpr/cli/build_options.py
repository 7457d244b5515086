"""Define the options of the commands that add pictures to a map."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from pairvpr.cli.recognizer_options import DIGEST_OPTION
from pairvpr.cli.source_options import source_options

FOLDER = click.Path(path_type=Path)


def _read_part(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", value)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise click.BadParameter(f"{value!r} is not I/N, as 3/64, with I from 1 to N")
    return int(found[1]), int(found[2])


db_option = click.option("--db", required=True, type=FOLDER, help="The map's folder.")

_OPTIONS = [
    click.option(
        "--poses",
        type=FOLDER,
        help="A file of poses by picture name (CSV) or time stamp (TUM). Default: @UTM@ names, EXIF GPS.",
    ),
    click.option("--strict", is_flag=True, help="Stop at anything that is unreadable, left out or converted."),
    click.option(
        "--min-distance",
        type=click.FloatRange(min=0),
        help="Keep a picture only if it is at least this many metres from the last one kept.",
    ),
    click.option(
        "--min-change",
        type=click.FloatRange(0, 2),
        help="Keep a picture only if 1 - cosine(descriptor, last kept) is at least this.",
    ),
    click.option(
        "--thumbnails",
        metavar="PIXELS",
        type=click.IntRange(0, 320),
        default=160,
        show_default=True,
        help="Longest side of the thumbnails that pages of the map and of runs show. 0 stores none.",
    ),
]

_TOKEN_OPTIONS = [
    click.option(
        "--tokens",
        "token_type",
        type=click.Choice(["float16", "int8"]),
        help="Store tokens in this format. Default: int8 if the model's reference pictures keep their scores.",
    ),
    click.option(
        "--keep-tokens",
        type=click.FloatRange(0, 1, min_open=True),
        help="Merge a picture's tokens to this share, as 0.5. A smaller share saves memory and time and costs "
        "accuracy. Default: all.",
    ),
    click.option(
        "--part",
        metavar="I/N",
        callback=_read_part,
        help="Read only the I-th of N parts of the source, to build them side by side. Merge the maps in order.",
    ),
    DIGEST_OPTION,
]


def build_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of adding pictures, passed to it together as `options`, a `BuildOptions`."""
    return _with_options(command, _OPTIONS)


def new_map_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `build_options` and those of a new map's tokens."""
    return _with_options(command, [*_OPTIONS, *_TOKEN_OPTIONS])


def _with_options(
    command: Callable[..., None], decorators: Sequence[Callable[[Callable[..., None]], Callable[..., None]]]
) -> Callable[..., None]:
    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        from pairvpr.runtime.mapping.builder import BuildOptions

        source_part = given.pop("options")
        names = {field.name for field in dataclasses.fields(BuildOptions)} & given.keys() - {"source"}
        chosen = {name: given.pop(name) for name in names}  # `source` itself is the command's argument
        command(**given, options=BuildOptions(source=source_part, **chosen))

    decorated = source_options(with_options)
    for option in reversed(decorators):
        decorated = option(decorated)
    return decorated
