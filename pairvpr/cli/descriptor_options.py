"""Define the options of `pairvpr export` for a descriptor of another network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pairvpr.cli.log import log
from pairvpr.cli.options import Whole, grouped, take
from pairvpr.runtime.resize_rules import RULES

if TYPE_CHECKING:
    from pairvpr.export.descriptor_source import Descriptor

LARGEST_SIDE = 4096
_RULES = {rule.replace(", Pillow ", "-"): rule for rule in RULES}


def _parse_size(text: str) -> tuple[int, int]:
    """Return height and width of a size: a side, or HEIGHTxWIDTH, in pixels."""
    match = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", text)
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(1 <= side <= LARGEST_SIDE for side in size):
        raise click.BadParameter(f"{text}: give a side or HEIGHTxWIDTH, of 1 to {LARGEST_SIDE} pixels")
    return size


def _parse_mean(text: str, least: float = -10) -> tuple[float, ...]:
    """Return three numbers for red, green and blue, each at least `least`."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(least <= number <= 10 for number in numbers):
        raise click.BadParameter(f"{text}: give three numbers with commas between them, as 0.5,0.5,0.5")
    return numbers


def _parse_deviation(text: str) -> tuple[float, ...]:
    return _parse_mean(text, least=1e-6)


_OPTIONS = [
    click.option(
        "--descriptor",
        "spec",
        metavar="SPEC",
        help="Take descriptors from another network: torchhub:OWNER/REPO:ENTRY, FOLDER:ENTRY, MODULE:FUNCTION or "
        "FILE.onnx. It runs this code. With --checkpoint or --preset it finds the candidates to re-rank.",
    ),
    click.option(
        "--descriptor-size",
        "size",
        metavar="SIDE|HxW",
        type=_parse_size,
        help="Size of its pictures in pixels. Default: as its code or file tells.",
    ),
    click.option(
        "--descriptor-resize",
        "resize",
        type=click.Choice(list(_RULES)),
        help="Bring pictures to that size by scaling both sides, or one and cutting. Default: squash-bilinear.",
    ),
    click.option(
        "--descriptor-mean",
        "mean",
        metavar="R,G,B",
        type=_parse_mean,
        help="Mean of its pictures, for colours from 0 to 1. Default: as its code tells, else ImageNet's.",
    ),
    click.option(
        "--descriptor-std",
        "std",
        metavar="R,G,B",
        type=_parse_deviation,
        help="Deviation of its pictures. Default: as its code tells, else ImageNet's.",
    ),
    click.option(
        "--descriptor-dim",
        "dim",
        metavar="N",
        type=Whole(min=1),
        help="Reduce it to N numbers by the principal components of --calibration-images, more than N pictures.",
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
    dim: int | None

    def alone(self, checkpoint: str | None, preset: str | None) -> bool:
        """Return whether the descriptor is exported alone."""
        return self.spec is not None and checkpoint is None and preset is None

    def load(self, images: Path | None, progress: Callable[[str], None]) -> Descriptor | None:
        """Load the descriptor, and log the pictures that it takes and the loss of its reduction.

        images: the folder of pictures whose principal components reduce it, if `dim` is given.
        Raises ExportError, and SourceError for pictures that cannot be used.
        """
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
        if self.dim is None or images is None:
            return loaded
        from pairvpr.export.descriptor_reduction import reduce_descriptor

        reduced = reduce_descriptor(loaded, self.dim, images, progress)
        log.info("%s: %d of %d numbers: %s", self.spec, reduced.dim, loaded.dim, reduced.loss)
        return reduced


def _make_options(given: dict[str, Any]) -> DescriptorOptions:
    if given["spec"] is None:
        for name in ("size", "resize", "mean", "std", "dim"):
            if given[name] is not None:
                raise click.UsageError(f"--descriptor-{name} needs --descriptor")
    return take(DescriptorOptions, given)


descriptor_options = grouped(_OPTIONS, "descriptor", _make_options)
"""Give a command the options, passed to it together as `descriptor`."""
