"""Measure what opening and changing a large map costs: CPU seconds and peak memory, each in a process of its own.

    python -m benchmarks.map_change --records 100000 --out map_change.json

The descriptors are random and a picture has one token, so that the cost of the catalog shows. The model is the default
one: `map add` encodes one picture with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr.runtime.geometry.poses import Pose
from pairvpr.runtime.map import Map, MapWriter, Record
from pairvpr.runtime.map.tokens import StoredTokens

PYTHON = [sys.executable, "-m", "benchmarks.map_change"]
CLUSTER = 10_000
"""Pictures within a few metres, for the topology of the sequence filter."""


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--db", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print, or do one job in a process of its own."""
    args = arguments()
    if args.job == "build":
        build(args.db, args.records)
    elif args.job:
        print(json.dumps(JOBS[args.job](args.db), allow_nan=False))
    else:
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Build a map, run every job on a copy of it, and print the figures."""
    results: dict[str, Any] = {"records": args.records, "processors": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        db, picture = Path(folder) / "map", Path(folder) / "one"
        picture.mkdir()
        from PIL import Image

        from tests.scenes import draw_scene

        Image.fromarray(draw_scene(0, 0, (240, 320))).save(picture / "new.jpg")
        # A process counts the memory of the one that started it, so this one stays small.
        subprocess.run([*PYTHON, "--job", "build", "--db", db, "--records", str(args.records)], check=True)
        results["catalog_mb"] = round((db / "map.sqlite").stat().st_size / 1e6, 1)
        for job in JOBS:
            copy = Path(folder) / "copy"
            shutil.copytree(db, copy)
            results[job] = run([*PYTHON, "--job", job, "--db", copy])
            shutil.rmtree(copy)
        for name, command in {
            "map info": ["info"],
            "map remove": ["remove", "0000000.jpg"],
            "map add": ["add", picture],
            "map list": ["list"],
        }.items():
            results[name] = run([sys.executable, "-m", "pairvpr", "map", *command, "--db", db])
    print(json.dumps(results, indent=1, allow_nan=False))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


def build(db: Path, records: int) -> None:
    """Write a map of random pictures along a drive."""
    from pairvpr.runtime import load_model
    from pairvpr.runtime.mapping.builder import BuildOptions, open_writer

    random = np.random.default_rng(0)
    with open_writer(db, load_model(None, "cpu"), True, BuildOptions(token_type="int8", keep_tokens=1e-6)) as writer:
        dim, (count, width) = writer.meta.descriptor_dim, writer.meta.token_shape
        for number in range(records):
            descriptor = random.standard_normal(dim, np.float32)
            descriptor /= np.linalg.norm(descriptor)
            tokens = StoredTokens(np.full((count, width), number % 100, np.int8), np.ones(count, np.float32))
            pose, crcs = Pose(number * 0.5, 0.0, 0.0, (0.0, 0.0, 0.0, 1.0)), (zlib.crc32(descriptor), tokens.crc())
            name = f"{number:07}.jpg"
            writer.adopt(Record(0, name, "/drive", number / 10, pose, None, 0, 0, *crcs), descriptor, tokens)


def run(command: list[Any]) -> dict[str, Any]:
    """Run a command in a process. Return its CPU seconds and peak memory, or the figures that it printed itself."""
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, said
    process.returncode = 0
    figures = {"cpu_s": round(usage.ru_utime + usage.ru_stime, 2), "peak_mb": round(usage.ru_maxrss / 1024)}
    return {**figures, **json.loads(said)} if "--job" in command else figures


def _cpu(since: float) -> float:
    return round(time.process_time() - since, 3)


def open_map(db: Path) -> dict[str, float]:
    """Open the map."""
    began = time.process_time()
    Map.open(db).close()
    return {"cpu_s": _cpu(began)}


def refresh_removed(db: Path) -> dict[str, float]:
    """Refresh an open recognizer after another writer has removed a picture."""

    def remove() -> None:
        with MapWriter.edit(db) as writer:
            writer.remove([f"{7:07}.jpg"])

    return _refresh(db, remove)


def refresh_added(db: Path) -> dict[str, float]:
    """Refresh an open recognizer after another writer has added 256 pictures."""

    def add() -> None:
        random = np.random.default_rng(1)
        with MapWriter.edit(db) as writer:
            for number in range(256):
                descriptor = random.standard_normal(writer.meta.descriptor_dim, np.float32)
                descriptor /= np.linalg.norm(descriptor)
                tokens = StoredTokens(
                    np.zeros(writer.meta.token_shape, np.int8), np.ones(writer.meta.token_shape[0], np.float32)
                )
                crcs = (zlib.crc32(descriptor), tokens.crc())
                writer.adopt(Record(0, f"n{number}.jpg", "/n", None, None, None, 0, 0, *crcs), descriptor, tokens)

    return _refresh(db, add)


def _refresh(db: Path, change: Any) -> dict[str, float]:
    from pairvpr.runtime.recognizer import PlaceRecognizer

    with PlaceRecognizer.open(db, device="cpu") as recognizer:
        child = os.fork()
        if child == 0:
            change()
            os._exit(0)
        os.waitpid(child, 0)
        began = time.process_time()
        assert recognizer.refresh()
        return {"cpu_s": _cpu(began)}


def topology(_: Path) -> dict[str, float]:
    """Make the neighbour graph of pictures that were all taken within 4 m."""
    from pairvpr.runtime.sequence.topology import Topology

    random = np.random.default_rng(2)
    records = [
        Record(i, f"{i}.jpg", "/s", None, Pose(*random.uniform(0, 4, 3).tolist(), None), None, 1, i, 0, 0)
        for i in range(1, CLUSTER)
    ]
    began = time.process_time()
    Topology.from_records(records)
    return {"cpu_s": _cpu(began)}


JOBS = {
    "open": open_map,
    "refresh after one removal": refresh_removed,
    "refresh after 256 additions": refresh_added,
    "topology of 10000 pictures within 4 m": topology,
}


if __name__ == "__main__":
    main()
