"""What an answer should take on other boards: a projection from its work and their peak rates, no measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pairvpr.bench.work import Work

SHARES = (0.25, 0.5)
"""Of the peak: a vision transformer of 577 tokens runs at a quarter of it on an AGX Orin with TensorRT (95 frames a
second in NanoOWL's table), half of it is what large batches may reach."""
ASSUMPTIONS = (
    "A projection, not a measurement: encoder and pair decoder alone, float16, at 25 % or 50 % of the dense peak rate, "
    "or as fast as memory delivers weights, inputs and outputs once a pass where that is slower; batches as here."
)


@dataclass(frozen=True)
class Board:
    """A board's dense float16 rate and the rate of its memory: the maker's figures, or computed from them."""

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


@dataclass(frozen=True)
class Projection:
    """Seconds of an answer on a board, for each of SHARES."""

    board: str
    seconds: tuple[float, ...]


def project(work: Mapping[str, Work], boards: Sequence[Board] = BOARDS) -> list[Projection]:
    """The boards' time for the steps of `work`, one after the other."""
    return [Projection(board.name, tuple(_seconds(work, board, share) for share in SHARES)) for board in boards]


def _seconds(work: Mapping[str, Work], board: Board, share: float) -> float:
    return sum(
        max(step.flop / (share * board.tflops * 1e12), step.bytes / (board.gigabytes * 1e9)) for step in work.values()
    )
