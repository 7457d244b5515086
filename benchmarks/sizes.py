"""Measure answers on maps of any size: whole answers, the search's share, cold start and memory of `pairvpr-run`.

    python -m benchmarks.sizes --records 1000 10000 100000 --out sizes.json

Each record is stored on its own. The records repeat the features of a hundred pictures drawn by code, with descriptors
moved a little; the cost does not depend on the pictures. The command runs in a process of its own, as a user's would.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pairvpr.runtime import Features, Model, load_model
from pairvpr.runtime.map import Map
from pairvpr.runtime.mapping.builder import open_writer
from tests.scenes import draw_scene

PLACES = 100
SIZE = (240, 320)
MOVED = 0.02
"""Standard deviation of the noise added to each number of a descriptor."""
WARM_UP = 5


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="Bundle; the default model's without one.")
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--starts", type=int, default=5, help="Fresh processes for the cold start.")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    model = load_model(args.model, "cpu")
    results: dict[str, Any] = {
        "preset": model.bundle.info.preset,
        "engine": model.engines.description,
        "processors": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "maps": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        queries = Path(folder) / "queries"
        queries.mkdir()
        for number in range(args.queries):
            view = draw_scene(number % PLACES, 1 + number // PLACES, SIZE)
            Image.fromarray(view).save(queries / f"{number:04}.jpg")
        features = model.encode([draw_scene(place, 0, SIZE) for place in range(PLACES)])
        for records in args.records:
            db = Path(folder) / f"map-{records}"
            build(db, model, features, records)
            results["maps"][records] = measure(db, queries, args.starts)
            print(json.dumps({records: results["maps"][records]}, allow_nan=False), file=sys.stderr)
    print(json.dumps(results, indent=1, allow_nan=False))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


def build(db: Path, model: Model, features: Features, records: int) -> None:
    """Build a map of `records` records."""
    random = np.random.default_rng(0)
    with open_writer(db, model, create=True) as writer:
        for number in range(records):
            which = number % len(features)
            moved = features.descriptors[which] + random.normal(scale=MOVED, size=features.descriptors.shape[1])
            descriptor = (moved / np.linalg.norm(moved)).astype(np.float32)
            writer.add(
                name=f"{number:06}.jpg",
                source="benchmark",
                features=Features(descriptor[None], features.tokens[which : which + 1]),
            )


def measure(db: Path, queries: Path, starts: int) -> dict[str, Any]:
    """Return milliseconds of answers by their own timings, seconds to the first one in fresh processes, megabytes."""
    first = sorted(queries.iterdir())[0]
    cold = [ask(db, first)["seconds_to_first"] for _ in range(starts)]
    asked = ask(db, queries)
    timings = asked["timings"][WARM_UP:]
    totals = np.array([each["total"] for each in timings])
    search = np.array([each["search"] for each in timings])
    with Map.open(db) as map_:
        size = map_.info().bytes
    return {
        "map_mb": round(size / 1e6, 1),
        "queries": len(totals),
        "total_ms": {f"p{q}": round(float(np.percentile(totals, q)), 1) for q in (50, 95, 99, 100)},
        "search_ms": {f"p{q}": round(float(np.percentile(search, q)), 3) for q in (50, 99)},
        "search_share": round(float(np.median(search / totals)), 5),
        "cold_start_s": {"median": round(float(np.median(cold)), 2), "max": round(max(cold), 2)},
        "resident_mb": asked["resident_mb"],
        "peak_mb": asked["peak_mb"],
    }


def ask(db: Path, query: Path) -> dict[str, Any]:
    """Run the command on a picture or a folder; return seconds to the first line, all timings, and memory in MB."""
    command = [sys.executable, "-m", "pairvpr.cli.run", "--db", db, "--query", query, "--format", "jsonl"]
    began = time.perf_counter()
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        timings, seconds = [], 0.0
        memory: dict[str, float] = {}
        for line in running.stdout:
            seconds = seconds or time.perf_counter() - began
            timings.append(json.loads(line)["timings"])
            memory = _memory(running.pid) or memory
        _, told = running.communicate()
    if running.returncode:
        raise SystemExit(f"pairvpr-run ended with {running.returncode}: {told.strip()}")
    return {"seconds_to_first": seconds, "timings": timings, **memory}


def _memory(pid: int) -> dict[str, float]:
    """Return resident and highest resident memory of a process; nothing once it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    found = {name: value for name, _, value in (line.partition(":") for line in lines)}
    if "VmRSS" not in found:
        return {}
    return {
        key: round(int(found[name].split()[0]) * 1024 / 1e6, 1)
        for key, name in (("resident_mb", "VmRSS"), ("peak_mb", "VmHWM"))
    }


if __name__ == "__main__":
    main()
