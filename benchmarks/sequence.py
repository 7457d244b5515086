"""Measure the constants of the sequence filter, on a drive through the made-up town in its worst weather.

    pairvpr town data/test --streets 168 --seed 2 --evaluation
    python -m benchmarks.sequence data/test --places 90 --top-k 50

Streets follow each other, with three places in each. The query of a place is its worst picture. The figures: Recall@1
with and without the filter; how soon the filter notices that it is off the map, on the same drive with a stretch
whose right candidates are taken away; the log likelihood ratio of a pair score, fitted (logistic regression) and
counted; and the cost of a step in maps of many pictures. `pairvpr eval --sequence` measures the gain on real traverses.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.data.town.dataset import APART
from pairvpr.evaluation import Evaluation, evaluate, load_folders
from pairvpr.evaluation.benchmark import Benchmark
from pairvpr.runtime import Match, Pose, Recognition, SequenceFilter, load_model
from pairvpr.runtime.geometry.utm_names import utm_pose
from pairvpr.runtime.map import Record
from pairvpr.runtime.sequence.topology import Topology

WORST = ("night", "fog", "snow", "dusk", "rain", "overcast", "day")
AWAY = slice(15, 30)
"""Pictures of the drive whose right candidates are taken away."""
EDGES = (-np.inf, -15, -10, -6, -4, -2, 0, 2, 4, 6, 8, 12, np.inf)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("town", type=Path, help="A town of `pairvpr town --evaluation`.")
    parser.add_argument("--model", type=Path, help="Bundle; the default model's without one.")
    parser.add_argument("--places", type=int, default=90)
    parser.add_argument("--top-k", type=int, default=50)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    benchmark = drive(load_folders(args.town / "database", args.town / "queries"), args.places)
    model = load_model(args.model, "cpu")
    found = evaluate(benchmark, model, top_k=args.top_k, exact=True)
    answers = zip(found.re_ranked[:, : args.top_k], benchmark.positives, strict=True)
    right = np.array([np.isin(candidates, positives) for candidates, positives in answers])
    there, alone, _ = follow(found, args.top_k, right, slice(0, 0))
    _, _, off_map = follow(found, args.top_k, right, AWAY)
    results = {
        "preset": model.bundle.info.preset,
        "engine": model.engines.description,
        "database": len(benchmark.database),
        "queries": len(benchmark.queries),
        "top_k": args.top_k,
        "recall_at_1": {"single": alone, "sequence": there},
        "off_map": {"away": [AWAY.start, AWAY.stop], "probability": [round(each, 3) for each in off_map]},
        **likelihood(found.scores[:, : args.top_k], right),
        "latency": latency(),
    }
    print(json.dumps(results, indent=1, allow_nan=False))


def drive(town: Benchmark, places: int) -> Benchmark:
    """Return the town's database in the order of its streets, with the worst query of each of the first places."""
    positions = [utm_pose(name) for name, _ in town.database]
    order = sorted(
        range(len(positions)),
        key=lambda i: (round(positions[i].x / APART), positions[i].y),  # type: ignore[union-attr]
    )
    rank = {old: new for new, old in enumerate(order)}
    worst: dict[int, tuple[int, int]] = {}
    for query, (name, _) in enumerate(town.queries):
        for place in town.positives[query]:
            asked = (WORST.index(name.partition("/")[0]), query)
            worst[rank[place]] = min(asked, worst.get(rank[place], asked))
    chosen = [worst[place][1] for place in sorted(worst)[:places]]
    return dataclasses.replace(
        town,
        database=tuple(town.database[i] for i in order),
        queries=tuple(town.queries[i] for i in chosen),
        positives=tuple(np.sort([rank[place] for place in town.positives[i]]) for i in chosen),
    )


def follow(
    found: Evaluation, top_k: int, right: npt.NDArray[np.bool_], away: slice
) -> tuple[float, float, list[float]]:
    """Return Recall@1 of the filter and of the answers alone, and the filter's probabilities of being off the map."""
    names = [name for name, _ in found.benchmark.database]
    records = [Record(row + 1, name, "town", None, None, None, 1, row, 0, 0) for row, name in enumerate(names)]
    sequence = SequenceFilter(records, Topology.from_order([range(len(names))], len(names)))
    gone = np.zeros_like(right)
    gone[away] = right[away]
    hits = alone = 0
    off_map = []
    for number, (rows, scores) in enumerate(zip(found.re_ranked[:, :top_k], found.scores, strict=True)):
        kept = [rank for rank in range(top_k) if not gone[number, rank]]
        matches = tuple(Match(names[rows[rank]], float(scores[rank]), 0.0, "full") for rank in kept)
        place = sequence.update(Recognition("", matches=matches)).sequence
        assert place is not None
        off_map.append(place.off_map)
        positives = found.benchmark.positives[number]
        hits += names.index(place.name) in positives
        alone += rows[kept[0]] in positives
    return hits / len(right), alone / len(right), off_map


def likelihood(scores: npt.NDArray[np.float32], right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return the log likelihood ratio over the score: a fitted line, and counts by bins."""
    x, y = scores.ravel().astype(float), right.ravel().astype(float)
    odds = np.log(y.mean() / (1 - y.mean()))
    design, line = np.stack([x, np.ones_like(x)], axis=1), np.zeros(2)
    for _ in range(100):  # Newton's method
        p = 1 / (1 + np.exp(-design @ line))
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-6 * np.eye(2)
        line -= np.linalg.solve(hessian, design.T @ (p - y))
    bins = []
    for low, high in pairwise(EDGES):
        inside = (x >= low) & (x < high)
        same, other = float(y[inside].sum()), float((1 - y[inside]).sum())
        ratio = ((same + 0.5) / (y.sum() + 1)) / ((other + 0.5) / ((1 - y).sum() + 1))
        bins.append(
            {"from": max(low, -99.0), "same": same, "other": other, "log_ratio": round(float(np.log(ratio)), 2)}
        )
    return {
        "pairs": len(x),
        "right_among_candidates": float(right.any(axis=1).mean()),
        "log_ratio": {"slope": round(line[0], 3), "bias": round(line[1] - odds, 3), "bins": bins},
    }


def latency() -> list[dict[str, float]]:
    """Measure processor time: seconds to begin, and milliseconds of a step with 100 candidates, a place every metre."""
    measured = []
    for count in (200, 2_000, 20_000):
        poses = [Pose(row % 1000, row // 1000 * 50.0, 0.0) for row in range(count)]
        records = [Record(row + 1, f"{row}", "", None, pose, None, 1, row, 0, 0) for row, pose in enumerate(poses)]
        start = time.process_time()
        sequence = SequenceFilter(records)
        began = time.process_time() - start
        spent = []
        for number in range(20):
            answer = Recognition("", matches=tuple(Match(f"{number + i}", -i / 10, 0.0, "full") for i in range(100)))
            start = time.process_time()
            sequence.update(answer)
            spent.append(1e3 * (time.process_time() - start))
        measured.append({"pictures": count, "begin_s": round(began, 3), "step_ms": round(float(np.median(spent)), 2)})
    return measured


if __name__ == "__main__":
    main()
