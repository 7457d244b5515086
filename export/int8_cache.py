"""What earlier INT8 exports measured, kept for the user: pictures need not be run through the same model twice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pairvpr.files import write_atomically
from pairvpr.machine import cache_folder
from pairvpr.runtime.bundle import BundleInfo, sha256

FORMAT = 1
"""To be raised with every change of what is measured, and of the layers' names."""


@dataclass(frozen=True)
class Measured:
    """Largest absolute input and relative error of the output of a graph's linear layers, by name."""

    ranges: dict[str, float]
    errors: dict[str, float]


def cache_file(info: BundleInfo, graph: str, pictures: Sequence[Path], *counts: int) -> Path:
    """Where measurements are kept: a name that only the same graph, preprocessing, exporter and pictures have.

    info: of the float bundle. graph: its name. pictures: in the order they are run. counts: what else decides how they
    are run. Raises OSError for a picture that cannot be read.
    """
    # The identity hashes weights and preprocessing; exporters name layers, each in its own way.
    key = [FORMAT, info.identity, graph, dict(info.made_with), counts, [sha256(picture) for picture in pictures]]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"int8-ranges-{digest[:32]}.json"


def load(file: Path, layers: Collection[str]) -> Measured | None:
    """What is kept in a file; None where there is none, or what it holds is not of just these layers."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = Measured(content["ranges"], content["errors"])
        sizes = [*found.ranges.values(), *found.errors.values()]
        whole = found.ranges.keys() == found.errors.keys() == set(layers)
        return found if whole and all(math.isfinite(size) and size >= 0 for size in sizes) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # it is measured again, and kept in its place


def store(file: Path, measured: Measured) -> None:
    """Keep measurements, in one rename. Raises OSError where they cannot be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(file) as partial:
        partial.write_text(json.dumps(vars(measured)) + "\n", encoding="utf-8")
