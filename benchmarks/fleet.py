"""Compare a fleet's answers with those of one map, and the CPU time of both.

    python -m benchmarks.fleet --queries 200 --out fleet.json

The map has made-up features. A tenth of its pictures are equal. Each way answers in a process of its own. CPU time is
counted over that process and all below it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr.runtime import FleetRecognizer, PlaceRecognizer
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.features import Features
from pairvpr.runtime.fleet.publishing import adopt
from pairvpr.runtime.geometry.poses import Gps
from pairvpr.runtime.map import MapWriter
from pairvpr.runtime.model import default_bundle

PER_SEGMENT = 50
WAYS = {"map": None, "fleet, 1 shard": (1, None), "fleet, 4 shards": (4, None), "fleet, 4 shards, Ray": (4, "local")}


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--batch-size", type=int, help="pairs per pass; 1 gives scores that are equal in every bit")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--top-k", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure all ways, or answer in one of them in a process of its own."""
    args = arguments()
    if args.way:
        print(json.dumps(answer(args), allow_nan=False))
        return
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), args.pictures)
        results = {"pictures": args.pictures, "queries": args.queries, "batch_size": args.batch_size}
        rows = [row for top_k in (20, 100) for row in compare(args, Path(folder), top_k)]
    for row in rows:
        print(json.dumps(row, allow_nan=False))
    if args.out:
        args.out.write_text(json.dumps({**results, "rows": rows}, indent=1, allow_nan=False) + "\n")


def compare(args: argparse.Namespace, home: Path, top_k: int) -> list[dict[str, Any]]:
    """Return a row for each way: CPU and elapsed milliseconds a query, and how many answers equal those of the map."""
    rows, expected = [], None
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.fleet", "--way", way, "--home", home, "--top-k", str(top_k)]
        command += ["--queries", str(args.queries)]
        command += [] if args.batch_size is None else ["--batch-size", str(args.batch_size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        answers = found.pop("answers")
        expected = expected or answers
        pairs = list(zip(answers, expected, strict=True))
        equal = sum(one == other for one, other in pairs)
        names = sum({each[0] for each in one} == {each[0] for each in other} for one, other in pairs)
        scores, wanted = ([{each[0]: each[1] for each in one} for one in some] for some in (answers, expected))
        apart = max(
            abs(one[name] - other[name])
            for one, other in zip(scores, wanted, strict=True)
            for name in one.keys() & other.keys()
        )
        figures = {"equal": equal, "same_candidates": names, "largest_score_difference": apart}
        rows.append({"top_k": top_k, "way": way, **found, **figures})
    return rows


def answer(args: argparse.Namespace) -> dict[str, Any]:
    """Answer all queries in one way. Return the CPU and elapsed milliseconds of a query, and the answers."""
    options = {"top_k": args.top_k, "device": "cpu", "threads": 1, "batch_size": args.batch_size}
    setting = WAYS[args.way]
    opened: PlaceRecognizer
    if setting is None:
        opened = PlaceRecognizer.open(args.home / "map", **options)
    else:
        opened = FleetRecognizer.open(args.home / "fleet", shards=setting[0], address=setting[1], **options)
    random = np.random.default_rng(1)
    size = opened.model.picture_size
    pictures = [random.integers(0, 255, (*size, 3), np.uint8) for _ in range(args.queries)]
    with opened as recognizer:
        recognizer.recognize(pictures[0])
        began, elapsed = cpu_seconds(), os.times().elapsed
        found = [recognizer.recognize(picture) for picture in pictures]
        spent, passed = cpu_seconds() - began, os.times().elapsed - elapsed
    answers = [[dataclasses.astuple(match)[:4] for match in each.matches] for each in found]
    return {
        "cpu_ms": round(1e3 * spent / len(pictures), 2),
        "ms": round(1e3 * passed / len(pictures), 2),
        "answers": answers,
    }


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of all below it: shards, and Ray's own processes."""
    parents, ticks = {}, {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended
            if folder.name.isdecimal():
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(fields[1])
                ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
    counted = [os.getpid()]
    for pid in counted:
        counted += [child for child, parent in parents.items() if parent == pid]
    return sum(ticks[pid] for pid in counted) / os.sysconf("SC_CLK_TCK")


def fill(home: Path, pictures: int) -> None:
    """Make one map, and a fleet of it."""
    build_map(home / "map", range(pictures))
    adopt([home / "map"], home / "fleet")


def build_map(path: Path, numbers: Iterable[int]) -> None:
    """Make a map of made-up pictures with these numbers. Every tenth picture has the same features."""
    bundle = Bundle.open(default_bundle())
    dims = bundle.info.dims
    with MapWriter.open(
        path,
        identity=bundle.identity,
        descriptor_dim=dims.descriptor,
        token_shape=(dims.tokens, dims.token_dim),
        install_model=bundle.install,
    ) as writer:
        for number in numbers:
            random = np.random.default_rng(number if number % 10 else 0)
            descriptor = random.standard_normal((1, dims.descriptor), np.float32)
            tokens = random.standard_normal((1, dims.tokens, dims.token_dim), np.float32)
            writer.add(
                name=f"{number:06d}.jpg",
                source="made up",
                gps=Gps(48 + number / 10_000, 11),
                features=Features(descriptor / np.linalg.norm(descriptor), tokens),
            )
            if number % PER_SEGMENT == PER_SEGMENT - 1:
                writer.commit()


if __name__ == "__main__":
    main()
