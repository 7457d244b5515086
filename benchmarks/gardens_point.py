"""Recall on Gardens Point Walking through the runtime: a map of one traverse, queries from the others.

    python -m benchmarks.gardens_point DATA --out benchmarks/results/gardens_point_nano.json

DATA holds day_left, day_right and night_right; a match within two frames is correct (the published ground truth).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pairvpr.runtime import PlaceRecognizer, Recognition, load_model
from pairvpr.runtime.map_builder import add_pictures
from pairvpr.runtime.sources import open_source

TOLERANCE = 2  # frames
DATABASE, QUERIES = "day_left", ("day_right", "night_right")


def frame(name: str) -> int:
    """The number in a name as Image042.jpg."""
    return int(Path(name).stem.removeprefix("Image"))


def recall(ranked: Sequence[tuple[str, Sequence[str]]], n: int) -> float:
    """Recall@N in percent: queries with a correct match among the first n."""
    hits = [any(abs(frame(match) - frame(query)) <= TOLERANCE for match in names[:n]) for query, names in ranked]
    return round(100.0 * sum(hits) / len(hits), 1)


def evaluate(answers: Sequence[Recognition]) -> dict[str, Any]:
    """Recall@1 and @5 by descriptor alone and after re-ranking, and median milliseconds by step."""
    by_descriptor = [(a.query, [m.name for m in sorted(a.matches, key=lambda m: -m.similarity)]) for a in answers]
    re_ranked = [(a.query, [m.name for m in a.matches]) for a in answers]
    steps = answers[0].timings
    return {
        "queries": len(answers),
        "candidates": answers[0].compared,
        "descriptor": {f"recall@{n}": recall(by_descriptor, n) for n in (1, 5)},
        "re-ranked": {f"recall@{n}": recall(re_ranked, n) for n in (1, 5)},
        "milliseconds": {step: round(statistics.median(a.timings[step] for a in answers), 1) for step in steps},
    }


def main() -> None:
    """Build, query, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, help="Default: the default model.")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--every", type=int, default=1, help="Use every Nth query.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "map"
        start = time.perf_counter()
        model = load_model(args.model, "cpu")
        add_pictures(args.data / DATABASE, db, model, create=True)
        weights = model.bundle.info.weights
        results: dict[str, Any] = {
            "model": model.bundle.info.preset,
            "weights": weights.origin,
            "trained": weights.trained,
            "engine": model.engines.description,
            "map_seconds": round(time.perf_counter() - start, 1),
        }
        with PlaceRecognizer.open(db, top_k=args.top_k, device="cpu") as recognizer:
            info = recognizer.map.info()
            results["map"] = {"pictures": info.pictures, "bytes_per_picture": round(info.bytes_per_picture)}
            for traverse in QUERIES:
                with open_source(str(args.data / traverse)) as source:
                    answers = [recognizer.recognize_frame(f) for i, f in enumerate(source) if i % args.every == 0]
                results[f"{DATABASE} <- {traverse}"] = evaluate(answers)
    print(json.dumps(results, indent=1))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
