"""Where the time of an answer goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

STEPS = ("decode", "preprocess", "encode", "search", "gather", "rerank")


class Stopwatch:
    """Milliseconds by step; steps entered more than once add up. It runs from the start of decoding on."""

    def __init__(self, decode_ms: float = 0.0) -> None:
        """decode_ms: what was spent on decoding before."""
        self._start = perf_counter() - decode_ms / 1e3
        self._spent = {**dict.fromkeys(STEPS, 0.0), "decode": decode_ms}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the block under `name`."""
        start = perf_counter()
        yield
        self._spent[name] += 1e3 * (perf_counter() - start)

    def elapsed(self) -> float:
        """Milliseconds since the start of decoding, whatever they were spent on."""
        return 1e3 * (perf_counter() - self._start)

    def timings(self) -> Mapping[str, float]:
        """Every step of an answer, 0 where it was not taken, and their total."""
        return {**self._spent, "total": sum(self._spent.values())}
