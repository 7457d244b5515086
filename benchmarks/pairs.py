"""Measure pair scoring and encoding through the runtime against plain PyTorch eager, in alternation, same threads.

    python -m benchmarks.pairs --bundles bundles/ --out benchmarks/results/pairs.json

For the presets `speed` (seeded weights) and `nano` (trained): ONNX Runtime and OpenVINO, float32, bfloat16 and INT8,
each exact and with a cascade: a first look at all candidates, a second at a quarter, a twentieth compared in full. Only
speed is measured. It does not depend on the weights, so INT8 graphs that a bundle lacks are made with made-up
ranges. All sides do all steps of a pair, from float32 tokens in memory to scores, each in a process of its own. The
figures are medians of the rounds and ratios to the reference round by round, for each candidate. Beside plain eager
stands PyTorch with fused attention, compiled, and in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pair_jobs import make_int8, reference_jobs, runtime_jobs, torch_jobs
from benchmarks.sides import Side, alternate, ratio
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import FILE
from pairvpr.runtime.image import load_picture, resize
from tests.scenes import draw_scene

CANDIDATES = {"nano": 100, "speed": 20}
"""Of a query; a candidate of the larger one takes seconds, and each as long as another."""
WAYS = (("cpu", "fp32"), ("openvino", "bf16"), ("cpu", "int8-dynamic"), ("openvino", "int8"), ("openvino", "int8-bf16"))


TORCH = ("fused attention", "compiled", "bfloat16")
"""Faster ways to run PyTorch. The last two use fused attention too."""


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--bundles", type=Path, required=True, help="Folder of the presets' bundles; missing ones are made."
    )
    parser.add_argument("--presets", nargs="+", default=["speed", "nano"])
    parser.add_argument("--pairs", type=int, help=f"Candidates. Default: {CANDIDATES}, else 20.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, and write the figures."""
    args = arguments()
    for preset in args.presets:
        prepare(preset, args.bundles)
    results = {
        "threads": args.threads,
        "rounds": args.rounds,
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "openvino")},
        "presets": {preset: measure(preset, args) for preset in args.presets},
    }
    print(table(results))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


def prepare(preset: str, bundles: Path) -> None:
    """Make the preset's float32 bundle and INT8 graphs, with trained weights for the preset of the default model."""
    bundle = bundles / preset
    if not (bundle / FILE).exists():
        weights = [] if trained(preset) else ["--preset", preset]
        command = ["-m", "pairvpr", "export", *weights, "--fp32", "--out", bundle]
        subprocess.run([sys.executable, *map(str, command)], check=True)
    make_int8(bundle)


def trained(preset: str) -> bool:
    """Tell whether this is the preset of the default model."""
    from pairvpr.runtime.model import default_bundle

    return Bundle.open(default_bundle()).info.preset == preset


def measure(preset: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure milliseconds for each candidate of all engines in alternation, and their ratios to the reference."""
    from pairvpr.model import default_checkpoint

    bundle, pairs = args.bundles / preset, args.pairs or CANDIDATES.get(preset, 20)
    began, load = time.perf_counter(), Path("/proc/loadavg").read_text().split()[0]
    picture = Bundle.open(bundle).info.picture
    size = (picture.height, picture.width)
    images = np.stack([resize(load_picture(draw_scene(place, 0)), size) for place in range(pairs + 1)])
    checkpoint = str(default_checkpoint()) if trained(preset) else preset
    reference = Side(reference_jobs, checkpoint, images, args.threads)
    descriptors, tokens = reference.run("features")[1]
    sides = {way: Side(runtime_jobs, bundle, *way, images, tokens, args.threads) for way in WAYS}
    scores, (fp32, *_) = reference.run("exact")[1], sides.values()
    difference = {
        "scores": float(np.abs(scores - fp32.run("exact")[1]).max()),
        "descriptors": float(np.abs(descriptors[:1] - fp32.run("encode")[1]).max()),
    }
    fastest = min(reference.run("matrix")[0] for _ in range(5))
    runs = {"reference": (reference, "exact"), "reference, encode": (reference, "encode")}
    for (device, precision), side in sides.items():
        for job in ("exact", "cascade", "encode"):
            runs[f"{device} {precision}, {job}"] = side, job
    tried = {way: Side(torch_jobs, checkpoint, way, tokens, args.threads) for way in TORCH}
    runs |= {f"torch, {way}": (side, "exact") for way, side in tried.items()}
    seconds = alternate(runs, args.rounds)
    for side in (reference, *sides.values(), *tried.values()):
        side.close()
    return {
        "pairs": pairs,
        "trained": trained(preset),
        "load_before": float(load),
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "machine": {"processor": platform.machine(), "float32_gflops": round(2 * 2048**3 / fastest / 1e9, 1)},
        "largest_difference": difference,
        "milliseconds": {
            name: round(1e3 * statistics.median(found) / (1 if name.endswith("encode") else pairs), 3)
            for name, found in seconds.items()
        },
        "ratio": {
            name: ratio(seconds["reference, encode" if name.endswith("encode") else "reference"], found)
            for name, found in seconds.items()
            if not name.startswith("reference")
        },
    }


def table(results: dict[str, Any]) -> str:
    """Format how many times as fast as the reference each engine is: median, least and most of the rounds."""
    lines = []
    for preset, found in results["presets"].items():
        lines.append(f"{preset}: reference {found['milliseconds']['reference']:.1f} ms a candidate of {found['pairs']}")
        for name, each in found["ratio"].items():
            lines.append(f"  {name:<32} {each['median']:6.2f} ({each['min']:.2f} to {each['max']:.2f})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
