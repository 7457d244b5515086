"""Measure all that needs a GPU: exactness, speed against plain PyTorch, share of the matrix rate, memory.

    python -m benchmarks.gpu --sizes speed,large,giant --out benchmarks/results/gpu.json

Every graph in every precision is compared with the network in float32, through ONNX Runtime's CUDA, and through
TensorRT or TensorRT-RTX if installed. Then each engine encodes and re-ranks 100 candidates beside the published
computation in PyTorch, in float16, eager and compiled, each side at its own best batch size. Weights are seeded, so
recall is not measured. Exit code 2 without a GPU, 1 if a graph is wrong. With `--device cpu --sizes tiny` the same
code runs on a CPU in seconds, as a test; these figures mean nothing.

A side's figures include all that its process imports, so nothing here may import torch before it is needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu_sides import engine_jobs, torch_jobs
from benchmarks.gpu_speed import JOBS, SWEEP, say, speed
from benchmarks.sides import Side
from pairvpr.bench.work import count_work
from pairvpr.errors import EngineError
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import LOOK
from pairvpr.runtime.engines.open import open_engines

if TYPE_CHECKING:
    from pairvpr.model.presets import NetworkConfig

SIZES = ("tiny", "nano", "speed", "large", "giant")
RELATIVE = {"fp32": 1e-4, "fp16": 2e-2, "int8-fp16": 2e-1}
"""What a graph's outputs may be off by, as root mean square, relative to their own, in each precision."""
ENGINES = {"cuda": ("cuda", "tensorrt"), "cpu": ("cpu",)}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=tuple(ENGINES), default="cuda")
    parser.add_argument("--sizes", default="speed", help=f"Some of {', '.join(SIZES)}, with commas between them.")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write the figures; return the exit code."""
    args = arguments(argv)
    unknown = [size for size in args.sizes.split(",") if size not in SIZES]
    if unknown:
        problem: str | None = f"no size {unknown[0]}, there are {', '.join(SIZES)}"
    elif args.out and not args.out.parent.is_dir():
        problem = f"{args.out}: no such folder"
    else:
        problem = no_gpu(args.device)
    if problem:
        print(f"benchmarks.gpu: {problem}", file=sys.stderr)
        return 2
    results: dict[str, Any] = {"device": device_name(args.device), "candidates": args.candidates, "sizes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes.split(","):
            say(f"{size}: exporting")
            measured = measure(config_of(size), Path(folder) / size, args.device, args.candidates, args.rounds)
            results["sizes"][size] = measured
            print("\n".join(table(size, measured)))
            if args.out:  # also before all is measured
                args.out.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0 if all(row["ok"] for each in results["sizes"].values() for row in each["exactness"]) else 1


def no_gpu(device: str) -> str | None:
    """Return the reason why nothing can be measured here, or None."""
    if device == "cpu":
        return None
    import torch

    from pairvpr.export.tensorrt import require
    from pairvpr.runtime.engines.onnxruntime import try_devices

    if not torch.cuda.is_available():
        return "no NVIDIA GPU that this torch can use; run it on one (--device cpu --sizes tiny shows that it runs)"
    problem = try_devices().get("cuda", "this ONNX Runtime has no CUDA (pip install onnxruntime-gpu)")
    if problem is not None:
        try:
            require()
        except EngineError as error:
            return f"no engine can use the GPU: {problem}; {error}"
    return None


def device_name(device: str) -> str:
    """Return the name of the device."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return f"{name}, torch {torch.__version__}"


def config_of(size: str) -> NetworkConfig:
    """Return the configuration of a network of a size."""
    from pairvpr.model.presets import PRESETS, NetworkConfig

    nano, speed = PRESETS["nano"], PRESETS["speed"]
    tiny = NetworkConfig(
        preset="tiny",
        encoder="vit_tiny_patch16_224",
        encoder_args={"depth": 1, "num_heads": 6},
        stem=(32, 64, 128, 192),
        image_size=112,
        position_grid=7,
        descriptor_dim=256,
        decoder_dim=128,
        decoder_depth=2,
    )
    return {
        "tiny": tiny,
        "nano": nano,
        "speed": speed,
        "large": dataclasses.replace(speed, preset="large", encoder="vit_large_patch14_reg4_dinov2"),
        "giant": PRESETS["performance"],
    }[size]


def measure(config: NetworkConfig, folder: Path, device: str, count: int, rounds: int) -> dict[str, Any]:
    """Measure all figures of one size of the network."""
    from benchmarks.gpu_int8 import add_int8
    from pairvpr.export.bundle_writer import export_bundle
    from pairvpr.export.verification import network_truth
    from pairvpr.model.checkpoint import seeded

    checkpoint = seeded(config)
    export_bundle(checkpoint, "fp32", folder, say)
    export_bundle(checkpoint, "fp16", folder, say)
    truth = network_truth(checkpoint.network, say)
    del checkpoint
    say("quantizing")
    add_int8(folder, truth.images)
    engines, left_out = available(folder, device)
    exactness = [
        row
        for engine, precisions in engines.items()
        for precision in precisions
        for row in exact(folder, engine, precision, truth)
    ]
    rows = np.resize(np.arange(len(truth.images)), count + 1)
    images = truth.images[np.resize(rows, max(SWEEP["encode"]))]
    tokens = truth.features.tokens[rows].astype(np.float16)
    work = {name: graph.total(1, 0).flop for name, graph in count_work(Bundle.open(folder), tokens.shape[1]).items()}
    flop = {"encode": work["encoder"], "rerank": count * (work["pair_prefix"] + work["pair_suffix"])}
    sides = {
        "torch eager": (torch_jobs, config, device, False, images, tokens),
        "torch compiled": (torch_jobs, config, device, True, images, tokens),
        **{
            f"{engine} fp16": (engine_jobs, folder, engine, "fp16", images, tokens)
            for engine, precisions in engines.items()
            if "fp16" in precisions
        },
    }
    return {"exactness": exactness, "not_measured": left_out, **speed(sides, flop, device, rounds)}


def available(folder: Path, device: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the precisions of each engine that work here, and the reasons of the others. Builds TensorRT's plans."""
    found: dict[str, list[str]] = {engine: [] for engine in ENGINES[device]}
    problems = {}
    for engine, precisions in found.items():
        for precision in RELATIVE:
            say(f"{engine} {precision}: opening")
            try:
                if engine == "tensorrt":
                    _build(folder, precision)
                open_engines(Bundle.open(folder), engine, precision)
                precisions.append(precision)
            except EngineError as error:
                problems[f"{engine} {precision}"] = str(error)
    return found, problems


def _build(folder: Path, precision: str) -> None:
    """Build TensorRT's plans in the bundle, and free the GPU memory that the sides need. Raises EngineError."""
    from pairvpr.export.tensorrt import build_engines
    from pairvpr.runtime.engines.tensorrt import cuda

    build_engines(Bundle.open(folder), precision, lambda *_: None)
    cuda.stream().release()


def exact(folder: Path, engine: str, precision: str, truth: Any) -> list[dict[str, Any]]:
    """Return each graph's errors against the network in float32, and whether all are within tolerance.

    The pair graphs get the network's own tokens, and the suffix gets the prefix's output. INT8 may rank otherwise; the
    gate of the export judges that, on trained weights.
    """
    from pairvpr.export.verification import same_ranking
    from pairvpr.runtime.features import Features
    from pairvpr.runtime.reference import Reference
    from pairvpr.runtime.reference import measure as judge

    say(f"{engine} {precision}: comparing every graph with the network")
    side = Side(engine_jobs, folder, engine, precision, truth.images, truth.features.tokens)
    found = side.run("graphs")[1]
    side.close()
    features = Features(found["descriptors"], found["tokens"])
    expected = Reference(truth.images, truth.features, truth.scores)
    errors = judge(features, found["scores"], expected, precision)
    ranked = precision.startswith("int8") or same_ranking(found["scores"][1:], truth.scores[1:])
    off = {
        "encoder": max(
            relative_error(found[name], getattr(truth.features, name)) for name in ("descriptors", "tokens")
        ),
        LOOK: relative_error(found["looks"], truth.looks),
        "pair_prefix": relative_error(found["summaries"], truth.summaries),
        "pair_suffix": relative_error(found["scores"], truth.scores),
    }
    return [
        {
            "engine": found["engine"],
            "precision": precision,
            "graph": graph,
            "relative_error": error,
            "ok": bool(errors.ok and ranked and error <= RELATIVE[precision]),
        }
        for graph, error in off.items()
    ]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the root mean square of the difference, relative to the expected values' own."""
    difference = found.astype(np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected.astype(np.float64) ** 2)))


def table(size: str, measured: Mapping[str, Any]) -> list[str]:
    """Format the figures of a size as text."""
    lines = [f"{size}: large half-precision products at {measured['matrix_tflops']:.4g} TFLOP/s"]
    for row in measured["exactness"]:
        verdict = "ok" if row["ok"] else "WRONG"
        lines.append(
            f"  {row['graph']:12} {row['precision']:9} off by {row['relative_error']:.1e}  {verdict:5} {row['engine']}"
        )
    lines.append(f"  {'':16}{'ms':>10}{'batch':>7}{'x eager':>9}{'x compiled':>12}{'share':>8}{'first s':>9}{'MB':>9}")
    for name, side in measured["sides"].items():
        for job in JOBS:
            each = side[job]
            eager, compiled = (each["times_as_fast_as"][other] for other in ("torch eager", "torch compiled"))
            lines.append(
                f"  {name:16}{each['milliseconds']:10.2f}{each['batch']:7}{eager:9.2f}{compiled:12.2f}"
                f"{each['share_of_matrix_rate']:8.0%}{side['first_answer_seconds']:9.1f}"
                f"{side['memory_bytes'] / 1e6:9.0f}  {job}"
            )
    lines += [f"  not measured: {what} ({reason})" for what, reason in measured["not_measured"].items()]
    return lines


if __name__ == "__main__":
    sys.exit(main())
