"""Count the work of an answer in the bundle's own graphs: run them and read the shapes of every product."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr.errors import EngineError
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import DESCRIPTOR, ENCODER, LOOK
from pairvpr.runtime.engines import onnxruntime as onnxruntime_engine
from pairvpr.runtime.engines.base import Arrays

PRODUCTS = ("MatMul", "Gemm", "Conv")
SOFTMAX = ("Softmax", "Exp")
"""Of an attention, as one node or written out."""
FLOATS = {"fp32": 4, "fp16": 2}
"""Precisions whose graphs are counted, and the bytes of a number in them. INT8 graphs have the same products."""


@dataclass(frozen=True)
class Work:
    """Work of a computation.

    flop: of matrix products and convolutions; a multiplication and an addition are two.
    bytes: least data to move, with float16 numbers: weights once a pass, inputs and outputs.
    activations: bytes that kernels hand on through memory, with float16 numbers.
    kernels: number of kernels to start. A kernel is a product with the elementwise operations around it, a
    normalisation of layers, or an attention, whose scores stay on the chip.
    """

    flop: float
    bytes: float
    activations: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(times * a for a in astuple(self)))


@dataclass(frozen=True)
class GraphWork:
    """Work of a graph. once: in every pass. each: for every item of the batch."""

    once: Work
    each: Work

    def total(self, items: float, passes: float) -> Work:
        """Return the work of `items` items in `passes` passes."""
        return self.once * passes + self.each * items


def count_work(bundle: Bundle, database_tokens: int) -> dict[str, GraphWork]:
    """Return the work of a bundle's graphs by name. database_tokens: M, the tokens of a picture of the map.

    The difference between a pass of two items and a pass of one is the work of an item. Needs ONNX Runtime and a
    float precision in the bundle. Raises EngineError or BundleError.
    """
    precision = next((name for name in FLOATS if name in bundle.info.precisions), None)
    if precision is None:
        raise EngineError(f"{bundle.path}: no float graphs to count the work in; export with --fp32 or --fp16")
    counted = {}
    for name in bundle.info.graphs:
        file = bundle.graph(precision, name, cpu=False)
        weights = bundle.info.files[bundle.info.precisions[precision].graphs[name].weights].bytes
        numbers = weights / FLOATS[precision]
        one, two = (_run(file, _inputs(bundle, name, items, database_tokens), numbers) for items in (1, 2))
        each = two + one * -1
        counted[name] = GraphWork(one + each * -1, each)
    return counted


def flop_of(operation: str, inputs: list[list[int]], output: list[int]) -> int:
    """Return the FLOP of a node from the shapes of its inputs and output; 0 for all but products."""
    if operation == "MatMul":
        return 2 * math.prod(output) * inputs[0][-1]
    if operation == "Gemm":  # output (m, n); the first factor has m k numbers, transposed or not
        return 2 * math.prod(inputs[0]) * output[1]
    if operation == "Conv":
        return 2 * math.prod(output) * math.prod(inputs[1][1:])
    return 0


def activations_of(operation: str, inputs: list[list[int]], output: list[int]) -> int:
    """Return the bytes of float16 numbers that a node reads and writes, from the shapes of its inputs and output.

    Weights count as inputs; they are the same in every pass. A softmax takes back what the products around it counted
    for the scores of an attention. Elementwise operations join a product and count nothing.
    """
    if operation in SOFTMAX:
        return -2 * (math.prod(inputs[0]) + math.prod(output))
    if operation == "LayerNormalization":
        return 2 * (math.prod(inputs[0]) + math.prod(output))
    if operation in PRODUCTS:
        return 2 * (sum(math.prod(shape) for shape in inputs[:2]) + math.prod(output))
    return 0


def _inputs(bundle: Bundle, graph: str, items: int, database_tokens: int) -> dict[str, Any]:
    picture, dims = bundle.info.picture_of(graph), bundle.info.dims
    if graph in (ENCODER, DESCRIPTOR):
        return {"images": np.zeros((items, picture.height, picture.width, 3), np.uint8)}
    pair = {
        "query_tokens": np.zeros((1, dims.tokens, dims.token_dim), np.float32),
        "database_tokens": np.zeros((items, database_tokens, dims.token_dim), np.float32),
    }
    if graph in (LOOK, "pair_prefix"):
        return pair
    return {
        **pair,
        "query_state": np.zeros((items, dims.tokens + 1, dims.token_dim), np.float32),
        "database_state": np.zeros((items, database_tokens + 1, dims.token_dim), np.float32),
        "keep": np.arange(items),
    }


def _run(file: Path, inputs: Arrays, numbers: float) -> Work:
    """Return the work of a pass of a graph. numbers: how many weights it has."""
    outputs, nodes = onnxruntime_engine.profile(file, inputs)
    arrays = [*inputs.values(), *outputs.values()]
    moved = sum(a.nbytes if a.dtype.kind in "iu" else 2 * a.size for a in arrays)
    shaped = [_shapes(node) for node in nodes if node["output_type_shape"]]
    activations = sum(activations_of(*each) for each in shaped) - 2 * numbers  # weights are in `bytes`
    kinds = Counter(kind for kind, _, _ in shaped)
    kernels = sum(kinds[kind] for kind in (*PRODUCTS, "LayerNormalization")) - sum(kinds[kind] for kind in SOFTMAX)
    return Work(sum(flop_of(*each) for each in shaped), 2 * numbers + moved, max(activations, 0), kernels)


def _shapes(node: Mapping[str, Any]) -> tuple[str, list[list[int]], list[int]]:
    """Return the operation of a node, the shapes of its inputs and the shape of its first output."""
    inputs, outputs = (
        [shape for tensor in node[key] for shape in tensor.values()]
        for key in ("input_type_shape", "output_type_shape")
    )
    return node["op_name"], inputs, outputs[0]
