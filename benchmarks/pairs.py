"""Pair scoring and encoding through the runtime against plain PyTorch eager, in alternation, same threads.

    python -m benchmarks.pairs --preset speed --out benchmarks/results/pairs.json

Speed alone: the weights are seeded. Both sides do all that a pair needs, from float32 tokens in memory to scores; the
medians of the rounds and the ratios round by round are reported, and the largest difference between the scores.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks import reference
from pairvpr.demo.scenes import draw_scene
from pairvpr.export.bundle_writer import export_bundle
from pairvpr.model import seeded_checkpoint
from pairvpr.runtime import load_model
from pairvpr.runtime.bundle import FILE


def alternate(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round, the sides in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(sides: dict[str, Callable[[], Any]], rounds: int, per: int) -> dict[str, Any]:
    """Median milliseconds per item of both sides, and the ratio of the first to the second, round by round."""
    seconds = alternate(sides, rounds)
    first, second = seconds.values()
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    return {
        "milliseconds": {name: round(1e3 * statistics.median(s) / per, 2) for name, s in seconds.items()},
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
        },
    }


def matrix_rate() -> float:
    """Float32 GFLOP/s of one large matrix product in torch, the best of five."""
    a = torch.randn(2048, 2048)
    best = min(alternate({"product": lambda: a @ a}, 5)["product"])
    return round(2 * 2048**3 / best / 1e9, 1)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="speed")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, help="Bundle of the preset; made there if missing.")
    parser.add_argument("--full", type=int, default=0, help="Also time one re-ranking of so many candidates.")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the figures."""
    args = arguments()

    torch.set_num_threads(args.threads)
    checkpoint = seeded_checkpoint(args.preset)
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.model or Path(folder) / args.preset
        if not (bundle / FILE).exists():
            export_bundle(checkpoint, args.precision, bundle, lambda step: None)
        model = load_model(bundle, "cpu", args.precision, threads=args.threads, batch_size=args.pairs)
    network = reference.plain_encoder(checkpoint.network)

    images = np.stack([model.prepare(draw_scene(place, visit=0)) for place in range(args.pairs + 1)])
    pictures = torch.from_numpy(images)
    descriptors, tokens = reference.encode(network, pictures)
    query, database = tokens[:1], tokens[1:]
    features = model.encode_prepared(images)
    results = {
        "preset": args.preset,
        "precision": args.precision,
        "pairs": args.pairs,
        "threads": args.threads,
        "rounds": args.rounds,
        "machine": {"processor": platform.machine(), "float32_gflops": matrix_rate()},
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "pair": compare(
            {
                "reference": lambda: reference.score(network, query, database),
                "runtime": lambda: model.score_batch(query.numpy(), database.numpy()),
            },
            args.rounds,
            args.pairs,
        ),
        "encode": compare(
            {
                "reference": lambda: reference.encode(network, pictures[:1]),
                "runtime": lambda: model.encode_prepared(images[:1]),
            },
            args.rounds,
            1,
        ),
        "largest_difference": {
            "scores": float(
                np.abs(
                    reference.score(network, query, database).numpy()
                    - model.score_batch(query.numpy(), database.numpy())
                ).max()
            ),
            "descriptors": float(np.abs(descriptors.numpy() - features.descriptors).max()),
        },
    }
    if args.full:
        many = np.repeat(database.numpy(), -(-args.full // args.pairs), axis=0)[: args.full]
        start = time.perf_counter()
        for i in range(0, args.full, args.pairs):
            model.score_batch(query.numpy(), many[i : i + args.pairs])
        results["full"] = {"candidates": args.full, "seconds": round(time.perf_counter() - start, 1)}
    print(json.dumps(results, indent=1))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
