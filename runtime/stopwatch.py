"""Time the steps of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

STEPS = ("decode", "preprocess", "encode", "search", "gather", "rerank")


class Stopwatch:
    """Measure milliseconds by step, from the start of decoding on. Steps entered more than once add up."""

    def __init__(self, decode_ms: float = 0.0) -> None:
        """Start. decode_ms: milliseconds already spent on decoding."""
        self._start = perf_counter() - decode_ms / 1e3
        self._spent = {**dict.fromkeys(STEPS, 0.0), "decode": decode_ms}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the block under `name`."""
        start = perf_counter()
        yield
        self._spent[name] += 1e3 * (perf_counter() - start)

    def add(self, name: str, milliseconds: float) -> None:
        """Add time that was measured elsewhere to a step."""
        self._spent[name] += milliseconds

    def elapsed(self) -> float:
        """Return the milliseconds since the start of decoding, untimed work included."""
        return 1e3 * (perf_counter() - self._start)

    def timings(self) -> Mapping[str, float]:
        """Return the milliseconds of every step (0 for a step not taken) and their total."""
        return {**self._spent, "total": sum(self._spent.values())}
