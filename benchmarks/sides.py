"""Run the sides of a comparison, each in a process of its own, so that none inherits another's heap.

PyTorch eager needs this: the speed of its large temporaries depends on the state of the allocator.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

Jobs = Mapping[str, Callable[[], Any]]
"""What a side can do, by name."""


class Side:
    """A process that does jobs on request and times them itself."""

    def __init__(self, build: Callable[..., Jobs], *arguments: Any) -> None:
        """Start the process; `build` makes the jobs from `arguments` in it."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, build, arguments), daemon=True)
        self._process.start()
        theirs.close()  # else a side that ends without an answer would be waited for

    def run(self, job: str) -> tuple[float, Any]:
        """Return the seconds of a job, and its result."""
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


def alternate(runs: Mapping[str, tuple[Side, str]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every run, a side and its job, in `rounds` rounds of all of them, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, (side, job) in runs.items():
            took = side.run(job)[0]
            if number:
                seconds[name].append(took)
    return seconds


def ratio(reference: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Return how many times as fast as the reference a side is, round by round."""
    ratios = [a / b for a, b in zip(reference, seconds, strict=True)]
    return {"median": round(statistics.median(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)}
