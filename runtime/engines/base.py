"""Define the engine protocol: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError

# One node, y = x + x: ir_version 8, opset 13. It is written here so that a provider can be tried without a model file.
TINY_GRAPH = bytes.fromhex(
    "080812003a370a0e0a01780a017812017922034164641201645a100a0178120b0a09"
    "080112050a0312016e62100a0179120b0a09080112050a0312016e42040a00100d"
)

Arrays = Mapping[str, npt.NDArray[Any]]


class Engine(Protocol):
    """Run a graph on a device: named arrays in, named arrays out."""

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on host arrays. Float inputs are cast to the type that the graph takes. Raises EngineError."""
        ...


class NoPairClassifier:
    """Stand in the place of the pair graphs of a model without a pair classifier."""

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Raise EngineError."""
        raise EngineError(
            "this model is a descriptor alone and has no pair scores; use a model that was exported from a checkpoint"
        )


NO_PAIR_CLASSIFIER = NoPairClassifier()


def try_engine(open_graph: Callable[[bytes], Engine]) -> str | None:
    """Run a tiny graph on the engine that `open_graph` makes. Return None if it works, else the problem."""
    x = np.array([1.5, -2.0], np.float32)
    try:
        y = open_graph(TINY_GRAPH).run({"x": x})["y"]
    except EngineError as error:
        return str(error)
    return None if np.array_equal(y, x + x) else f"wrong result on a tiny graph: {y.tolist()}"


def in_place(inputs: Arrays) -> Arrays:
    """Return the inputs as they are: `Engines.stage` for graphs that run on host memory."""
    return inputs


ARITHMETIC = {"f32": "float32", "bf16": "bfloat16"}
