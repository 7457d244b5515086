"""Measure what opening, changing and searching a large map costs: CPU seconds and peak memory, each in its own process.

    python -m benchmarks.map_change --records 100000 --out map_change.json

The descriptors are those of a made-up drive, see `drive`, and a picture has one token, so that the cost of the catalog
shows. The model is the default one: `map add` encodes one picture with it.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.geometry.poses import Pose
from pairvpr.runtime.map import Map, MapWriter, Record
from pairvpr.runtime.map.tokens import StoredTokens
from pairvpr.runtime.search import FaissIndex

PYTHON = [sys.executable, "-m", "benchmarks.map_change"]
QUERIES, ROUND, TOP = 60, 10, 100
"""Queries of the searches, those of a turn, and candidates of each."""
BLOCK = 4096  # descriptors that are made at once
LATENT = 128
"""Dimensions in which descriptors of places vary. Participation ratio of the default model's: about 190."""
CLUSTER = 10_000
"""Pictures within a few metres, for the topology of the sequence filter."""


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument(
        "--db", type=Path, help="Map for all jobs, built here if it is missing, and not changed by them."
    )
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
    # Copies are links, so they lie beside the map.
    with tempfile.TemporaryDirectory(dir=None if args.db is None else args.db.parent) as folder:
        db, copy, picture = args.db or Path(folder) / "map", Path(folder) / "copy", Path(folder) / "one"
        picture.mkdir()
        from PIL import Image

        from tests.scenes import draw_scene

        Image.fromarray(draw_scene(0, 0, (240, 320))).save(picture / "new.jpg")
        # A process counts the memory of the one that started it, so this one stays small.
        if not db.exists():
            subprocess.run([*PYTHON, "--job", "build", "--db", db, "--records", str(args.records)], check=True)
        results["catalog_mb"] = round((db / "map.sqlite").stat().st_size / 1e6, 1)
        commands: dict[str, list[Any]] = {job: [*PYTHON, "--job", job] for job in JOBS}
        for name, words in {
            "map info": ["info"],
            "map remove": ["remove", "0000000.jpg"],
            "map add": ["add", picture],
            "map list": ["list"],
        }.items():
            commands[name] = [sys.executable, "-m", "pairvpr", "map", *words]
        for name, command in commands.items():
            shutil.copytree(db, copy, copy_function=_link)  # files of a map are replaced and never written in place
            results[name] = run([*command, "--db", copy])
            shutil.rmtree(copy)
            print(f"{name}: {json.dumps(results[name], allow_nan=False)}", file=sys.stderr, flush=True)
    print(json.dumps(results, indent=1, allow_nan=False))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


def build(db: Path, records: int) -> None:
    """Write a map of random pictures along a drive."""
    from pairvpr.runtime import load_model
    from pairvpr.runtime.mapping.builder import BuildOptions, open_writer

    with open_writer(db, load_model(None, "cpu"), True, BuildOptions(token_type="int8", keep_tokens=1e-6)) as writer:
        dim, (count, width) = writer.meta.descriptor_dim, writer.meta.token_shape
        tokens = StoredTokens(np.zeros((count, width), np.int8), np.ones(count, np.float32))
        for number, descriptor in enumerate(drive(records, dim)):
            pose, crcs = Pose(number * 0.5, 0.0, 0.0, (0.0, 0.0, 0.0, 1.0)), (zlib.crc32(descriptor), tokens.crc())
            name = f"{number:07}.jpg"
            writer.adopt(Record(0, name, "/drive", number / 10, pose, None, 0, 0, *crcs), descriptor, tokens)


def drive(records: int, dim: int, revisit: bool = False) -> Iterator[npt.NDArray[np.float32]]:
    """Yield descriptors (dim,) of a drive past places that change slowly.

    The state of a place has LATENT numbers and keeps 98 % of the state before. A picture adds noise of half the length.
    Neighbours have a similarity of about 0.8.

    revisit: yield descriptors of other pictures of the same places.
    """
    random, noise = np.random.default_rng(0), np.random.default_rng(2 if revisit else 1)
    projection = random.standard_normal((LATENT, dim), np.float32) / np.float32(LATENT**0.5)
    state = random.standard_normal(LATENT, np.float32)
    for first in range(0, records, BLOCK):
        states = np.float32(0.2) * random.standard_normal((min(BLOCK, records - first), LATENT), np.float32)
        for row in states:
            row += np.float32(0.98) * state
            state = row
        found = states @ projection + np.float32(0.5) * noise.standard_normal((len(states), dim), np.float32)
        yield from found / np.linalg.norm(found, axis=1, keepdims=True)


def _link(source: str, target: str) -> None:
    """Link a file, or copy the catalog, in which SQLite writes."""
    if source.endswith("map.sqlite"):
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def run(command: list[Any]) -> dict[str, Any]:
    """Run a command in a process. Return its CPU seconds and peak memory, or the figures that it printed itself."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True, env=environment)
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


def search(db: Path) -> dict[str, Any]:
    """Search the map exactly in both precisions and by inverted lists, in turns, with descriptors of a second drive."""
    from pairvpr.runtime.mapping.map_index import make_lists

    began = time.process_time()
    entry = make_lists(db)
    figures: dict[str, Any] = {"making lists, cpu_s": _cpu(began), "lists": entry.to_json()}
    with Map.open(db) as map_:
        lists, descriptors = map_.read_lists(), map_.descriptors
        chosen = np.linspace(0, len(map_) - 1, QUERIES).round().astype(int)
        again = drive(len(map_), descriptors.shape[1], revisit=True)
        queries = np.stack([descriptor for row, descriptor in enumerate(again) if row in set(chosen.tolist())])
        spent: dict[str, list[float]] = {}
        found: dict[str, list[set[int]]] = {}
        wanted = [row // ROUND for row in range(QUERIES)]
        indices: dict[str, FaissIndex] = {}
        for name, options in {"float32": {}, "float16": {}, "lists": {"lists": lists}}.items():
            precision = "float32" if name == "float32" else "float16"
            began = time.process_time()
            indices[name] = FaissIndex(descriptors, precision, **options)
            figures[f"{name}: index, cpu_s"] = _cpu(began)
        for turn in sorted(set(wanted)):
            for name, index in indices.items():
                for query in queries[np.array(wanted) == turn]:
                    began = time.process_time()
                    rows = index.search(query[None], TOP)[1]
                    spent.setdefault(name, []).append(1e3 * (time.process_time() - began))
                    found.setdefault(name, []).append(set(rows.tolist()))
    for name, times in spent.items():
        figures[f"{name}: search, cpu_ms"] = round(float(np.median(times)), 2)
    for name in ("float16", "lists"):
        shares = [len(a & b) / TOP for a, b in zip(found[name], found["float32"], strict=True)]
        figures[f"{name}: share of the nearest {TOP}"] = round(float(np.mean(shares)), 4)
        own = [int(row) in rows for row, rows in zip(chosen, found[name], strict=True)]
        figures[f"{name}: share of own places"] = round(float(np.mean(own)), 4)
    return figures


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
    "search": search,
    "topology of 10000 pictures within 4 m": topology,
}


if __name__ == "__main__":
    main()
