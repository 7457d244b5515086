"""Hold the types and options that commands share, and hand groups of options over as one object."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Command = Callable[..., None]
Options = TypeVar("Options")


class Number(click.FloatRange):
    """A finite number in a range."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number. `click.FloatRange` lets NaN pass, which is in no range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Whole(click.IntRange):
    """A whole number in a range."""

    name = "whole number"


PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
ABOVE_ZERO = Number(min=0, min_open=True)
COUNT = Whole(min=1)

DB_OPTION = click.option("--db", required=True, type=PATH, help="The map's folder.")
FORMAT_OPTION = click.option(
    "--format",
    "style",
    type=click.Choice(["text", "jsonl"]),
    default="text",
    show_default=True,
    help="Print text, or JSON lines for programs.",
)
DIGEST_OPTION = click.option(
    "--model-digest", metavar="SHA256", help="Refuse a model of another digest. `pairvpr map info` shows a digest."
)


def grouped(
    options: Sequence[Callable[[Command], Command]], parameter: str, make: Callable[[dict[str, Any]], object]
) -> Callable[[Command], Command]:
    """Return a decorator that gives a command `options`, passed to it together as `parameter`.

    make: takes the values of the options out of all given values, see `take`, and returns the object.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_options(**given: Any) -> None:
            made = make(given)
            command(**given, **{parameter: made})

        decorated: Command = with_options
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def take(kind: type[Options], given: dict[str, Any], **more: object) -> Options:
    """Take the values of the fields of `kind`, a dataclass, out of `given`. Return them and `more` as a `kind`."""
    names = {field.name for field in dataclasses.fields(kind)} & given.keys()  # type: ignore[arg-type]
    return kind(**{name: given.pop(name) for name in names}, **more)
