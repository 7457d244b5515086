"""The two sides of a comparison, each in a process of its own, as each is used: neither inherits the other's heap.

That matters to PyTorch eager, whose large temporaries are as fast as the allocator's state lets them be.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

Jobs = Mapping[str, Callable[[], Any]]
"""What a side can do, by name."""


class Side:
    """A process that does jobs when told and times them itself."""

    def __init__(self, build: Callable[..., Jobs], *arguments: Any) -> None:
        """`build` makes the jobs from `arguments`, in the process."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, build, arguments), daemon=True)
        self._process.start()

    def run(self, job: str) -> tuple[float, Any]:
        """Seconds that a job took, and what came of it."""
        self._pipe.send(job)
        answer: tuple[float, Any] = self._pipe.recv()
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _work(pipe: Connection, build: Callable[..., Jobs], arguments: tuple[Any, ...]) -> None:
    jobs = build(*arguments)
    while True:
        try:
            job = jobs[pipe.recv()]
        except EOFError:
            return
        start = time.perf_counter()
        result = job()
        pipe.send((time.perf_counter() - start, result))


def compare(first: Side, second: Side, job: str, rounds: int, per: int) -> dict[str, Any]:
    """Median milliseconds per item of both sides in turn, and the ratio of the first to the second round by round.

    The first round does not count.
    """
    seconds = [(first.run(job)[0], second.run(job)[0]) for _ in range(rounds + 1)][1:]
    ratios = [a / b for a, b in seconds]
    reference, runtime = (round(1e3 * statistics.median(side) / per, 2) for side in zip(*seconds, strict=True))
    return {
        "milliseconds": {"reference": reference, "runtime": runtime},
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
        },
    }


def reference_jobs(preset: str, images: np.ndarray, threads: int) -> Jobs:
    """Plain PyTorch eager on the preset's seeded weights: `pair`, `encode`, `features` and the `matrix` rate."""
    import torch

    from benchmarks import reference
    from pairvpr.model import seeded_checkpoint

    torch.set_num_threads(threads)
    network = reference.plain_encoder(seeded_checkpoint(preset).network)
    pictures = torch.from_numpy(images)
    descriptors, tokens = reference.encode(network, pictures)
    factor = torch.randn(2048, 2048)
    return {
        "pair": lambda: reference.score(network, tokens[:1], tokens[1:]).numpy(),
        "encode": lambda: reference.encode(network, pictures[:1])[0].numpy(),
        "features": lambda: (descriptors.numpy(), tokens.numpy()),
        "matrix": lambda: (factor @ factor).shape,
    }


def runtime_jobs(
    bundle: Path, device: str, precision: str, images: np.ndarray, tokens: np.ndarray, threads: int
) -> Jobs:
    """Our runtime on a bundle, torch-free, on the same pictures and `tokens`: `pair` and `encode`."""
    from pairvpr.runtime import load_model

    model = load_model(bundle, device, precision, threads=threads, batch_size=len(tokens) - 1)
    return {
        "pair": lambda: model.score_batch(tokens[:1], tokens[1:]),
        "encode": lambda: model.encode_prepared(images[:1]).descriptors,
    }
