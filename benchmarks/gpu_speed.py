"""Measure speed on a GPU: each side over batch sizes, then all sides in turn, beside a large matrix product."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.gpu_sides import MATRIX
from benchmarks.sides import Side
from pairvpr.errors import EngineError

SWEEP = {"encode": (1, 8, 32), "rerank": (10, 25, 50, 100)}
"""Batch sizes that are tried."""
JOBS = tuple(SWEEP)
MATRIX_PRODUCTS = 10
ROUNDS_OF_SWEEP = 4


def speed(sides: Mapping[str, tuple[Any, ...]], flop: Mapping[str, float], device: str, rounds: int) -> dict[str, Any]:
    """Measure each side at its best batch size, all in turn; return their ratios and shares of the matrix rate."""
    opened: dict[str, Side] = {}
    first: dict[str, float] = {}
    memory: dict[str, int] = {}
    swept: dict[str, dict[str, dict[int, float]]] = {}
    for name, (build, *inputs) in sides.items():
        say(f"{name}: opening, and its first answer")
        free, start = free_memory(device), time.perf_counter()
        side = opened[name] = Side(build, *inputs)
        side.run("encode 1")
        side.run(f"rerank {SWEEP['rerank'][0]}")
        first[name] = time.perf_counter() - start
        swept[name] = {job: sweep(side, name, job) for job in JOBS}
        memory[name] = side.run("memory")[1] if free is None else free - (free_memory(device) or 0)
    best = {
        name: {job: min(times, key=lambda n: times[n]) for job, times in jobs.items()} for name, jobs in swept.items()
    }
    times: dict[str, dict[str, list[float]]] = {name: {job: [] for job in JOBS} for name in opened}
    matrix = []
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for job in JOBS:
            for name, side in opened.items():
                batch = best[name][job]
                taken = side.run(f"{job} {batch}")[0]
                times[name][job].append(taken / batch if job == "encode" else taken)
        matrix.append(opened["torch eager"].run(f"matrix {MATRIX_PRODUCTS}")[0] / MATRIX_PRODUCTS)
    rate = 2 * MATRIX[device] ** 3 / min(matrix)
    for side in opened.values():
        side.close()
    return {
        "matrix_tflops": rate / 1e12,
        "gigaflop": {job: value / 1e9 for job, value in flop.items()},
        "sides": {
            name: {
                "first_answer_seconds": first[name],
                "memory_bytes": memory[name],
                **{job: figures(times, name, job, best[name][job], swept[name][job], flop[job] / rate) for job in JOBS},
            }
            for name in opened
        },
    }


def free_memory(device: str) -> int | None:
    """Return the free bytes of GPU memory; None without a GPU."""
    import torch

    return torch.cuda.mem_get_info()[0] if device == "cuda" else None


def sweep(side: Side, name: str, job: str) -> dict[int, float]:
    """Measure seconds of a picture or re-ranking at each batch size that fits, warmed up twice. Raises EngineError."""
    found = {}
    for batch in SWEEP[job]:
        say(f"{name}: {job}, batch {batch}")
        runs = [side.run(f"{job} {batch}") for _ in range(ROUNDS_OF_SWEEP)]
        if all(result is not None for _, result in runs):
            found[batch] = min(seconds for seconds, _ in runs[2:]) / (batch if job == "encode" else 1)
    if not found:
        raise EngineError(f"{name}: not even {job} of {SWEEP[job][0]} fits into memory")
    return found


def figures(
    times: Mapping[str, Mapping[str, list[float]]],
    name: str,
    job: str,
    batch: int,
    swept: Mapping[int, float],
    least: float,
) -> dict[str, Any]:
    """Return a side's figures. least: seconds of our graphs' work at the matrix rate."""
    own = times[name][job]
    return {
        "batch": batch,
        "milliseconds": 1e3 * statistics.median(own),
        "times_as_fast_as": {
            other: statistics.median(a / b for a, b in zip(times[other][job], own, strict=True))
            for other in ("torch eager", "torch compiled")
        },
        "share_of_matrix_rate": least / statistics.median(own),
        "swept_milliseconds": {str(size): 1e3 * seconds for size, seconds in swept.items()},
    }


def say(step: str, *_: object) -> None:
    """Print progress to stderr."""
    print(step, file=sys.stderr, flush=True)
