"""Define the options of `pairvpr export` for a descriptor of another network."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from pairvpr.cli.log import log
from pairvpr.runtime.resize_rules import RULES

if TYPE_CHECKING:
    from pairvpr.export.descriptor_source import Descriptor

LARGEST_SIDE = 4096
_RULES = {rule.replace(", Pillow ", "-"): rule for rule in RULES}


def _parse_size(_: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Return height and width of a size: a side, or HEIGHTxWIDTH, in pixels."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", value)
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(1 <= side <= LARGEST_SIDE for side in size):
        raise click.BadParameter(f"{value}: give a side or HEIGHTxWIDTH, of 1 to {LARGEST_SIDE} pixels", param=option)
    return size


def _parse_colours(_: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Return three numbers for red, green and blue."""
    if value is None:
        return None
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    least = 1e-6 if option.name == "descriptor_std" else -10
    if len(numbers) != 3 or not all(least <= number <= 10 for number in numbers):
        raise click.BadParameter(f"{value}: give three numbers with commas between them, as 0.5,0.5,0.5", param=option)
    return numbers


_OPTIONS = [
    click.option(
        "--descriptor",
        metavar="SPEC",
        help="Take descriptors from another network: torchhub:OWNER/REPO:ENTRY, FOLDER:ENTRY, MODULE:FUNCTION or "
        "FILE.onnx. It runs this code. With --checkpoint or --preset it finds the candidates to re-rank.",
    ),
    click.option(
        "--descriptor-size",
        metavar="SIDE|HxW",
        callback=_parse_size,
        help="Size of its pictures in pixels. Default: as its code or file tells.",
    ),
    click.option(
        "--descriptor-resize",
        type=click.Choice(list(_RULES)),
        help="Bring pictures to that size by scaling both sides, or one and cutting. Default: squash-bilinear.",
    ),
    click.option(
        "--descriptor-mean",
        metavar="R,G,B",
        callback=_parse_colours,
        help="Mean of its pictures, for colours from 0 to 1. Default: as its code tells, else ImageNet's.",
    ),
    click.option(
        "--descriptor-std",
        metavar="R,G,B",
        callback=_parse_colours,
        help="Deviation of its pictures. Default: as its code tells, else ImageNet's.",
    ),
]


@dataclass(frozen=True)
class DescriptorOptions:
    """Hold the options. spec: None without a descriptor."""

    spec: str | None
    size: tuple[int, int] | None
    resize: str | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def alone(self, checkpoint: str | None, preset: str | None) -> bool:
        """Return whether the descriptor is exported alone."""
        return self.spec is not None and checkpoint is None and preset is None

    def load(self) -> Descriptor | None:
        """Load the descriptor, and log the pictures that it takes. Raises ExportError."""
        if self.spec is None:
            return None
        from pairvpr.export.descriptor_source import Stated, load_descriptor

        rule = None if self.resize is None else _RULES[self.resize]
        loaded = load_descriptor(self.spec, Stated(self.size, rule, self.mean, self.std))
        picture = loaded.picture
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (picture.mean, picture.std))
        log.info(
            "%s: %d numbers, of pictures of %dx%d (%s), mean %s, deviation %s; other values: --descriptor-size, "
            "--descriptor-resize, --descriptor-mean, --descriptor-std",
            self.spec,
            loaded.dim,
            picture.height,
            picture.width,
            picture.resize,
            mean,
            std,
        )
        return loaded


def descriptor_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options, passed to it together as `descriptor`."""

    @functools.wraps(command)
    def with_options(
        *,
        descriptor: str | None,
        descriptor_size: tuple[int, int] | None,
        descriptor_resize: str | None,
        descriptor_mean: tuple[float, ...] | None,
        descriptor_std: tuple[float, ...] | None,
        **others: object,
    ) -> None:
        given = {"size": descriptor_size, "resize": descriptor_resize, "mean": descriptor_mean, "std": descriptor_std}
        for name, value in given.items():
            if value is not None and descriptor is None:
                raise click.UsageError(f"--descriptor-{name} needs --descriptor")
        options = DescriptorOptions(descriptor, descriptor_size, descriptor_resize, descriptor_mean, descriptor_std)
        command(**others, descriptor=options)

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options
