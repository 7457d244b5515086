"""Measure how much answers are delayed while another process changes the map, or stands still while it does.

    python -m benchmarks.refresh --records 10000 --out refresh.json

Each answer is asked for as `pairvpr-run` asks: the map is looked at about once a second, in a thread of its own. Phases
alternate, so that each is compared with rounds in which nothing happens.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sizes import PLACES, SIZE, build
from pairvpr.runtime import Model, PlaceRecognizer, load_model
from pairvpr.runtime.map import Map, MapWriter
from pairvpr.runtime.map_refresh import Refresher
from pairvpr.runtime.mapping.builder import open_writer
from tests.scenes import draw_scene

PAUSE = 1.0
"""Seconds between two changes of the map."""
LONG_AGO = 946_684_800.0
"""A time stamp of the catalog behind all others: the year 2000."""


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="Bundle; the default model's without one.")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="Of each phase in each round.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    model = load_model(args.model, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "map"
        features = model.encode([draw_scene(place, 0, SIZE) for place in range(PLACES)])
        build(db, model, features, args.records)
        spent: dict[str, list[float]] = {name: [] for name in PHASES}
        for _ in range(args.rounds):
            for name, change in PHASES.items():
                spent[name] += answer_beside(db, model, change, args)
    results: dict[str, Any] = {
        "engine": model.engines.description,
        "processors": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "records": args.records,
        "candidates": args.top_k,
        "answers_ms": {name: percentiles(each) for name, each in spent.items()},
    }
    text = json.dumps(results, indent=1, allow_nan=False)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def percentiles(spent: list[float]) -> dict[str, float]:
    """Return the number of answers and percentiles of their times."""
    return {
        "answers": len(spent),
        **{f"p{q}": round(float(np.percentile(spent, q)), 1) for q in (50, 95, 99, 100)},
    }


def answer_beside(db: Path, model: Model, change: Callable[[Path], None], args: argparse.Namespace) -> list[float]:
    """Return milliseconds of answers while another process runs `change`, from the look at the map to the answer."""
    picture = draw_scene(3, 1, SIZE)
    other = multiprocessing.get_context("spawn").Process(target=change, args=(db,))
    spent: list[float] = []
    with PlaceRecognizer.open(db, model=model.bundle.path, device="cpu", top_k=args.top_k) as vpr:
        refresher = Refresher(vpr)
        vpr.recognize(picture)
        other.start()
        until = time.monotonic() + args.seconds
        while time.monotonic() < until:
            began = time.perf_counter()
            refresher.poll()
            vpr.recognize(picture)
            spent.append(1000 * (time.perf_counter() - began))
    other.kill()
    other.join()
    return spent


def rest(db: Path) -> None:
    """Change nothing."""
    time.sleep(3600)


def remove(db: Path) -> None:
    """Remove one picture after another."""
    with Map.open(db) as map_:
        names = [record.name for record in map_.records]
    with MapWriter.edit(db) as writer:
        for name in names:
            writer.remove([name])
            time.sleep(PAUSE)


def add(db: Path) -> None:
    """Add one picture after another."""
    model = load_model(None, "cpu", threads=1)
    features = model.encode([draw_scene(PLACES, 0, SIZE)])
    for number in range(10_000):
        with open_writer(db, model, create=False) as writer:
            writer.add(name=f"new-{os.getpid()}-{number}.jpg", source="benchmark", features=features)
        time.sleep(PAUSE)


def stand_still(db: Path) -> None:
    """Stop inside a commit, with the catalog locked."""
    with closing(sqlite3.connect(db / "map.sqlite", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        os.kill(os.getpid(), signal.SIGSTOP)


def turn_back_the_clock(db: Path) -> None:
    """Give the catalog another old date again and again."""
    for step in range(10_000):
        os.utime(db / "map.sqlite", (LONG_AGO + step, LONG_AGO + step))
        time.sleep(PAUSE)


PHASES: dict[str, Callable[[Path], None]] = {
    "nothing happens": rest,
    "a picture is removed every second": remove,
    "a picture is added every second": add,
    "a writer stands still inside its commit": stand_still,
    "the catalog's date goes back": turn_back_the_clock,
}


if __name__ == "__main__":
    main()
