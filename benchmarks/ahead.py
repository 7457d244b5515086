"""Measure building a map with the next pictures read in threads beside the encoder, and one after the other.

    python -m benchmarks.ahead PICTURES --rounds 5 --out ahead.json

Both ways alternate. The maps must be equal in every bit of every descriptor.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import numpy.typing as npt

from pairvpr.runtime import Model, load_model
from pairvpr.runtime.map import Map
from pairvpr.runtime.mapping import builder

T = TypeVar("T")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--model", type=Path, help="Bundle; the default model's without one.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[0], help="Of the encoder; 0 takes its default.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    results: dict[str, Any] = {"processors": os.cpu_count(), "load_before": os.getloadavg()[0], "engines": []}
    for threads in args.threads:
        model = load_model(args.model, args.device, threads=threads or None)
        results["engines"].append({"threads": threads, **compare(args.pictures, model, args.rounds)})
    text = json.dumps(results, indent=1, allow_nan=False)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def compare(pictures: Path, model: Model, rounds: int) -> dict[str, Any]:
    """Return milliseconds a picture of both ways, and how many times as fast reading ahead is."""
    spent: dict[str, list[float]] = {"one after the other": [], "read ahead": []}
    known: npt.NDArray[np.float32] | None = None
    for number in range(rounds + 1):
        for way, times in spent.items():
            milliseconds, descriptors = build(pictures, model, ahead=way == "read ahead")
            if known is not None and not np.array_equal(known, descriptors):
                raise SystemExit("the descriptors differ")
            known = descriptors
            if number:  # the first round warms up
                times.append(milliseconds)
    first, second = spent.values()
    assert known is not None
    return {
        "engine": model.engines.description,
        "pictures": len(known),
        "ms_per_picture": {way: round(statistics.median(times), 2) for way, times in spent.items()},
        "times_as_fast": round(statistics.median(a / b for a, b in zip(first, second, strict=True)), 3),
        "in_each_round": [round(a / b, 3) for a, b in zip(first, second, strict=True)],
        "equal_descriptors": True,
    }


def build(pictures: Path, model: Model, *, ahead: bool) -> tuple[float, npt.NDArray[np.float32]]:
    """Build a map. Return milliseconds a picture, and the descriptors."""

    @contextmanager
    def at_once(items: Iterator[T], depth: int = 1) -> Iterator[Iterator[T]]:
        yield items

    with tempfile.TemporaryDirectory() as folder:
        reading = mock.patch.object(builder, "read_ahead", builder.read_ahead if ahead else at_once)
        began = time.perf_counter()
        with reading:
            builder.build_map(pictures, Path(folder) / "map", model=model)
        spent = time.perf_counter() - began
        with Map.open(Path(folder) / "map") as map_:
            return 1e3 * spent / len(map_), map_.descriptors.copy()


if __name__ == "__main__":
    main()
