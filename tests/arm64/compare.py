"""Compare answers on an emulated 64-bit Arm processor with those of this computer. `make test-arm64` runs the steps.

python -m tests.arm64.compare make FOLDER    here: an 8-bit graph, inputs and results
python -m tests.arm64.compare ask FOLDER     in the emulator, without torch and onnx: the same results
python -m tests.arm64.compare judge FOLDER   here: fails if they differ
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.demo import TOWN
from pairvpr.printing import print_line
from pairvpr.runtime.engines.onnxruntime import OnnxRuntimeEngine
from pairvpr.runtime.model import load_model

PICTURES = 3
GRAPH = "pair_prefix"
INT8 = "int8-dynamic"
DESCRIPTORS, SCORES = 1e-6, 1e-5
"""Largest differences of descriptors, and of scores in relation to the largest score."""
ROUNDINGS = 0.05
"""Largest difference of the 8-bit graph, in relation to what 8 bits change: single roundings may fall otherwise."""


def make(folder: Path) -> None:
    """Write the 8-bit graph, its inputs and the results of this computer."""
    from pairvpr.export.int8 import FloatGraph, write_int8
    from pairvpr.runtime.bundle import Bundle

    exported = folder / "float"
    subprocess.run([sys.executable, "-m", "pairvpr.cli.main", "export", "--fp32", "--out", exported], check=True)
    file = Bundle.open(exported).graph("fp32", GRAPH, cpu=False)
    write_int8(FloatGraph(file, fused=True).dynamic([], narrow=True), GRAPH, INT8, folder)
    np.savez(folder / "here.npz", **results(folder), float=run_graph(file))


def ask(folder: Path) -> None:
    """Write the results of the emulated processor."""
    np.savez(folder / "there.npz", **results(folder))


def judge(folder: Path) -> None:
    """Print the differences. Raises SystemExit if one is too large."""
    here, there = (dict(np.load(folder / name)) for name in ("here.npz", "there.npz"))
    if str(there["machine"]) != "aarch64":
        raise SystemExit(f"the emulator ran {there['machine']}, not aarch64")
    eight_bits = np.abs(here["int8"] - here["float"]).max()
    found = {
        "descriptors": (np.abs(there["descriptors"] - here["descriptors"]).max(), DESCRIPTORS),
        "scores": (np.abs(there["scores"] - here["scores"]).max() / np.abs(here["scores"]).max(), SCORES),
        "8-bit graph": (np.abs(there["int8"] - here["int8"]).max() / eight_bits, ROUNDINGS),
    }
    for name, (difference, limit) in found.items():
        print_line(f"{name}: difference {difference:.2g}, at most {limit:g}")
    if not all(difference <= limit for difference, limit in found.values()):
        raise SystemExit("answers on aarch64 differ from those on this computer")


def results(folder: Path) -> dict[str, Any]:
    """Return descriptors (n, G) and scores (n,) of pictures of the demo, and the output of the 8-bit graph."""
    model = load_model(None, "cpu", "fp16", threads=1)
    features = model.encode(sorted((TOWN / "database").iterdir())[:PICTURES])
    return {
        "machine": np.array(platform.machine()),
        "descriptors": features.descriptors,
        "scores": model.score(features[0], features),
        "int8": run_graph(folder / f"{GRAPH}.{INT8}.onnx"),
    }


def run_graph(file: Path) -> npt.NDArray[np.float32]:
    """Return the query's states (n, T + 1, D) that a graph of the prefix gives for random tokens."""
    random = np.random.default_rng(0)
    query, database = (random.standard_normal((n, 49, 192)).astype(np.float32) for n in (1, PICTURES))
    outputs = OnnxRuntimeEngine(file).run({"query_tokens": query, "database_tokens": database})
    return np.asarray(outputs["query_state"], np.float32)


if __name__ == "__main__":
    step, place = sys.argv[1:]
    {"make": make, "ask": ask, "judge": judge}[step](Path(place))
