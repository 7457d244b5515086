"""Define the options of the commands that add pictures to a map."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from pairvpr.cli.options import DIGEST_OPTION, PATH, Number, Whole, grouped, take
from pairvpr.cli.source_options import SOURCE_OPTIONS, make_source_options

if TYPE_CHECKING:
    from pairvpr.runtime.mapping.builder import BuildOptions


def _parse_part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise click.BadParameter(f"{text!r} is not I/N, as 3/64, with I from 1 to N")
    return int(found[1]), int(found[2])


SOURCE_ARGUMENT = click.argument("images", metavar="SOURCE")
_OPTIONS = [
    click.option(
        "--poses",
        type=PATH,
        help="A file of poses by picture name (CSV) or time stamp (TUM). Default: @UTM@ names, EXIF GPS.",
    ),
    click.option("--strict", is_flag=True, help="Stop at anything that is unreadable, left out or converted."),
    click.option(
        "--min-distance",
        type=Number(min=0),
        help="Keep a picture only if it is at least this many metres from the last one kept.",
    ),
    click.option(
        "--min-change",
        type=Number(0, 2),
        help="Keep a picture only if 1 - cosine(descriptor, last kept) is at least this.",
    ),
    click.option(
        "--thumbnails",
        metavar="PIXELS",
        type=Whole(0, 320),
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
        type=Number(0, 1, min_open=True),
        help="Merge a picture's tokens to this share, as 0.5. A smaller share saves memory and time and costs "
        "accuracy. Default: all.",
    ),
    click.option(
        "--part",
        metavar="I/N",
        type=_parse_part,
        help="Read only the I-th of N parts of the source, to build them side by side. Merge the maps in order.",
    ),
    DIGEST_OPTION,
]


def _make_build_options(given: dict[str, Any]) -> BuildOptions:
    from pairvpr.runtime.mapping.builder import BuildOptions

    return take(BuildOptions, given, source=make_source_options(given))


build_options = grouped([*_OPTIONS, *SOURCE_OPTIONS], "options", _make_build_options)
"""Give a command the options of adding pictures, passed to it together as `options`, a `BuildOptions`."""

new_map_options = grouped([*_OPTIONS, *_TOKEN_OPTIONS, *SOURCE_OPTIONS], "options", _make_build_options)
"""Give a command the options of `build_options` and those of a new map's tokens."""
