"""Measure how well answers keep a time budget, alone and beside busy processes.

    python -m benchmarks.deadline --budget-ms 300 --busy 2

Pictures are made by code. A batch that has begun is finished, so an answer may take the budget and one batch more.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pairvpr.runtime import PlaceRecognizer, load_model
from pairvpr.runtime.mapping.builder import add_pictures
from pairvpr.runtime.rerank import CostEstimate
from tests.scenes import draw_scene

SIZE = (240, 320)
WARM_UP = 5


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="Bundle; the default model's without one.")
    parser.add_argument("--budget-ms", type=float, default=300.0)
    parser.add_argument("--busy", type=int, default=2, help="Processes that compute beside it in the second part.")
    parser.add_argument("--places", type=int, default=100, help="Pictures of the map, all of them candidates.")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    model = load_model(args.model, "cpu", threads=args.threads)
    with tempfile.TemporaryDirectory() as folder:
        pictures, db = Path(folder) / "pictures", Path(folder) / "map"
        pictures.mkdir()
        for place in range(args.places):
            Image.fromarray(draw_scene(place, 0, SIZE)).save(pictures / f"p{place}.jpg")
        add_pictures(pictures, db, model, create=True)
        results = {
            "preset": model.bundle.info.preset,
            "engine": model.engines.description,
            "threads": args.threads,
            "processors": os.cpu_count(),
            "load_before": os.getloadavg()[0],
            "candidates": args.places,
            "budget_ms": args.budget_ms,
            "alone": measure(db, args),
        }
        busy = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(args.busy)]
        for process in busy:
            process.start()
        results[f"beside_{args.busy}_busy"] = measure(db, args)
        for process in busy:
            process.kill()
    print(json.dumps(results, indent=1, allow_nan=False))


def measure(db: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure milliseconds of answers by a clock outside of them and of batches, and candidates compared."""
    batches: list[float] = []

    class Noting(CostEstimate):
        def update(self, spent_ms: float, pairs: int) -> None:
            batches.append(spent_ms)
            super().update(spent_ms, pairs)

    totals, compared, last = [], [], []
    with PlaceRecognizer.open(db, model=args.model, threads=args.threads, budget_ms=args.budget_ms) as vpr:
        assert vpr._view.reranker is not None
        vpr._view.reranker._cost = Noting()
        for number in range(args.queries + WARM_UP):
            query = draw_scene(number % args.places, 1 + number // args.places, SIZE)
            start = time.perf_counter()
            answer = vpr.recognize(query)
            totals.append(1e3 * (time.perf_counter() - start))
            compared.append(answer.compared)
            last.append(batches[-1])
    totals, compared, last = (each[WARM_UP:] for each in (totals, compared, last))
    return {
        "queries": len(totals),
        "total_ms": {f"p{q}": round(float(np.percentile(totals, q)), 1) for q in (50, 95, 99, 100)},
        "over_budget": sum(total > args.budget_ms for total in totals),
        "over_budget_and_last_batch": sum(
            total > args.budget_ms + batch for total, batch in zip(totals, last, strict=True)
        ),
        "batch_ms": {f"p{q}": round(float(np.percentile(batches, q)), 1) for q in (50, 99, 100)},
        "compared": {f"p{q}": float(np.percentile(compared, q)) for q in (1, 50, 99)},
    }


def _compute() -> None:
    while True:
        np.linalg.norm(np.ones(10_000))


if __name__ == "__main__":
    main()
