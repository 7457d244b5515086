"""Pair scoring and encoding through the runtime against plain PyTorch eager, in alternation, same threads.

    python -m benchmarks.pairs --preset speed --out benchmarks/results/pairs.json

Speed alone: the weights are seeded. Both sides do all that a pair needs, from float32 tokens in memory to scores, each
in a process of its own; the medians of the rounds and the ratios round by round are reported, and the largest
difference between the scores.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.sides import Side, compare, reference_jobs, runtime_jobs
from pairvpr.demo.scenes import draw_scene
from pairvpr.runtime.bundle import FILE, Bundle
from pairvpr.runtime.pictures import load_picture, resize


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="speed")
    parser.add_argument("--device", default="cpu", help="Of the runtime: cpu (ONNX Runtime) or openvino.")
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
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.model or Path(folder) / args.preset
        if not (bundle / FILE).exists():
            stored = "fp32" if args.precision == "bf16" else args.precision
            command = ["-m", "pairvpr.cli", "export", "--preset", args.preset, f"--{stored}", "--out", bundle]
            subprocess.run([sys.executable, *map(str, command)], check=True)
        picture = Bundle.open(bundle).info.picture
        size = (picture.height, picture.width)
        images = np.stack([resize(load_picture(draw_scene(place, 0)), size) for place in range(args.pairs + 1)])
        reference = Side(reference_jobs, args.preset, images, args.threads)
        descriptors, tokens = reference.run("features")[1]
        runtime = Side(runtime_jobs, bundle, args.device, args.precision, images, tokens, args.threads)
        scores = [side.run("pair")[1] for side in (reference, runtime)]
        encoded = runtime.run("encode")[1]
        fastest = min(reference.run("matrix")[0] for _ in range(5))
        engine = "openvino" if args.device == "openvino" else "onnxruntime"
        results = {
            "preset": args.preset,
            "device": args.device,
            "precision": args.precision,
            "pairs": args.pairs,
            "threads": args.threads,
            "rounds": args.rounds,
            "machine": {"processor": platform.machine(), "float32_gflops": round(2 * 2048**3 / fastest / 1e9, 1)},
            "versions": {name: version(name) for name in ("torch", engine)},
            "pair": compare(reference, runtime, "pair", args.rounds, args.pairs),
            "encode": compare(reference, runtime, "encode", args.rounds, 1),
            "largest_difference": {
                "scores": float(np.abs(scores[0] - scores[1]).max()),
                "descriptors": float(np.abs(descriptors[:1] - encoded).max()),
            },
        }
        if args.full:
            batches = -(-args.full // args.pairs)
            seconds = sum(runtime.run("pair")[0] for _ in range(batches))
            results["full"] = {"candidates": batches * args.pairs, "seconds": round(seconds, 1)}
        for side in (reference, runtime):
            side.close()
    print(json.dumps(results, indent=1))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
