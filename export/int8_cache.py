"""Keep measurements of INT8 exports in the user's cache, so that a second export with the same pictures reuses them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pairvpr.files import write_atomically
from pairvpr.machine import cache_folder
from pairvpr.printing import json_document
from pairvpr.runtime.bundle import sha256
from pairvpr.runtime.bundle_info import BundleInfo

FORMAT = 1
"""Raise it whenever the measurements or the layers' names change."""


@dataclass(frozen=True)
class Measured:
    """Measurements of a graph's linear layers, by name.

    ranges: largest absolute input.
    errors: relative error of the output.
    """

    ranges: dict[str, float]
    errors: dict[str, float]


def cache_file(info: BundleInfo, graph: str, pictures: Sequence[Path], *counts: int) -> Path:
    """Return the file of measurements, whose name is unique to the graph, preprocessing, exporter and pictures.

    info: of the float bundle.
    graph: its name.
    pictures: in the order in which they are run.
    counts: other numbers that decide how they are run.
    Raises OSError for a picture that cannot be read.
    """
    # The identity hashes weights and preprocessing. The names of layers depend on the exporter's version.
    key = [FORMAT, info.identity, graph, dict(info.made_with), counts, [sha256(picture) for picture in pictures]]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, allow_nan=False).encode()).hexdigest()
    return cache_folder() / f"int8-ranges-{digest[:32]}.json"


def load(file: Path, layers: Collection[str]) -> Measured | None:
    """Load a file of measurements. Return None if it is missing, damaged, or of other layers."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = Measured(content["ranges"], content["errors"])
        sizes = [*found.ranges.values(), *found.errors.values()]
        whole = found.ranges.keys() == found.errors.keys() == set(layers)
        return found if whole and all(math.isfinite(size) and size >= 0 for size in sizes) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # the caller measures again and replaces the file


def store(file: Path, measured: Measured) -> None:
    """Store measurements in one step. Raise OSError if the file cannot be written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(file) as partial:
        partial.write_text(json_document(vars(measured)), encoding="utf-8")
