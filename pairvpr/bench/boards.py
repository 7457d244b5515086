"""Project the time of an answer to other boards, from its work and their peak rates; nothing is measured there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pairvpr.bench.work import Work

SHARES = (0.25, 0.5)
"""Shares of the peak rate that are assumed. A vision transformer of 577 tokens reaches a quarter on an AGX Orin with
TensorRT (95 frames a second in NanoOWL's table); large batches may reach half. Measured shares hold some traffic of
activations already, so that a projection, which adds it, is rather too slow."""
ASSUMPTIONS = (
    "A projection, not a measurement: encoder and pair decoder alone, in float16, with batches as here. A step takes "
    "its FLOP at 25 % or 50 % of the dense peak rate, or the time to move its bytes once a pass if that is longer, and "
    "the time to move the activations between its kernels."
)


@dataclass(frozen=True)
class Board:
    """A board, by its maker's figures. tflops: dense float16 rate, in TFLOP/s. gigabytes: memory rate, in GB/s."""

    name: str
    tflops: float
    gigabytes: float


BOARDS = (
    Board("Jetson Orin Nano 8GB", 10, 68),
    Board("Jetson Orin Nano Super", 17, 102),
    Board("Jetson Orin NX 16GB", 15, 102),
    Board("Jetson AGX Orin 64GB", 42.6, 205),
    Board("Jetson AGX Thor T5000", 258, 273),
)


LAUNCH = 5e-6
"""Seconds to start a kernel: an assumption. NVIDIA's documents speak of a few microseconds."""


@dataclass(frozen=True)
class Projection:
    """The projected time of an answer. seconds: for each of SHARES. launching: seconds to start all kernels in turn."""

    board: str
    seconds: tuple[float, ...]
    launching: float

    @property
    def launching_dominates(self) -> bool:
        """Return whether starting kernels takes longer than their work, at the largest of SHARES."""
        return self.launching > min(self.seconds)


def project(work: Mapping[str, Work], boards: Sequence[Board] = BOARDS) -> list[Projection]:
    """Return the projected time of each board for all steps of `work` in turn."""
    launching = LAUNCH * sum(step.kernels for step in work.values())
    return [
        Projection(board.name, tuple(_seconds(work, board, share) for share in SHARES), launching) for board in boards
    ]


def _seconds(work: Mapping[str, Work], board: Board, share: float) -> float:
    rate, memory = share * board.tflops * 1e12, board.gigabytes * 1e9
    return sum(max(step.flop / rate, step.bytes / memory) + step.activations / memory for step in work.values())
