"""Trace torch modules to ONNX files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from torch import Tensor, nn

from pairvpr.export.cpu_form import write_cpu_form, write_cuda_form
from pairvpr.export.graphs import EncoderGraph, PairLook, PairPrefix, PairSuffix
from pairvpr.export.precision import DTYPES, Precision, in_precision
from pairvpr.model import PairVPR
from pairvpr.runtime.bundle_info import LOOK, GraphFiles
from pairvpr.runtime.model import SUMMARIES

OPSET = 20
MAX_IR_VERSION = 10
# Smaller constants stay in the graph, because shape inference reads them there.
INLINE_BYTES = 1024


@dataclass(frozen=True)
class GraphSpec:
    """A graph to trace.

    module: computes the graph.
    inputs: example inputs by name.
    outputs: names of the outputs.
    dynamic: the inputs' axes of variable size.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, Any]]


def graph_specs(network: PairVPR, precision: Precision) -> dict[str, GraphSpec]:
    """Return the graphs of a network by name."""
    config, dtype = network.config, DTYPES[precision]
    tokens, dim, side = len(network.decoder.positions), config.decoder_dim, config.image_size
    merged = tokens - 1  # fewer database tokens, so that tracing does not tie this axis to the query's
    batch, length, kept = (torch.export.Dim(name, min=1, max=1 << 16) for name in ("batch", "length", "kept"))
    pair_inputs = {
        "query_tokens": torch.zeros(1, tokens, dim, dtype=dtype),
        "database_tokens": torch.zeros(3, merged, dim, dtype=dtype),
    }
    pair_dynamic = {"query_tokens": {}, "database_tokens": {0: batch, 1: length}}
    return {
        "encoder": GraphSpec(
            EncoderGraph(network),
            {"images": torch.zeros(2, side, side, 3, dtype=torch.uint8)},
            ("descriptors", "tokens"),
            {"images": {0: batch}},
        ),
        LOOK: GraphSpec(PairLook(network), pair_inputs, (LOOK,), pair_dynamic),
        "pair_prefix": GraphSpec(
            PairPrefix(network), pair_inputs, ("query_state", "database_state", *SUMMARIES), pair_dynamic
        ),
        "pair_suffix": GraphSpec(
            PairSuffix(network),
            {
                **pair_inputs,
                "query_state": torch.zeros(3, tokens + 1, dim, dtype=dtype),
                "database_state": torch.zeros(3, merged + 1, dim, dtype=dtype),
                "keep": torch.arange(2),
            },
            ("scores",),
            {
                **pair_dynamic,
                "query_state": {0: batch},
                "database_state": {0: batch, 1: length + 1},
                "keep": {0: kept},
            },
        ),
    }


def write_graph(name: str, spec: GraphSpec, precision: Precision, folder: Path) -> GraphFiles:
    """Trace a graph and write its forms into `folder`, with their weights in a file of their own.

    onnx checks each form.
    """
    stem = f"{name}.{precision}"
    cuda_file = f"{stem}-cuda.onnx"
    files = GraphFiles(f"{stem}.onnx", f"{stem}-cpu.onnx", f"{stem}.weights", cuda_file)
    model = trace(spec, precision)
    onnx_ir.save(model, folder / files.file, external_data=files.weights, size_threshold_bytes=INLINE_BYTES)
    write_cpu_form(folder / files.file, folder / files.cpu_file)
    write_cuda_form(folder / files.file, folder / cuda_file)
    for file in (files.file, files.cpu_file, cuda_file):
        onnx.checker.check_model(str(folder / file), full_check=True)
    return files


def trace(spec: GraphSpec, precision: Precision) -> onnx_ir.Model:
    """Return the ONNX graph of a module, as engines take it best."""
    module = in_precision(spec.module, precision).eval()
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            kwargs=spec.inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            dynamic_shapes=spec.dynamic,
            verbose=False,
        )
    assert program is not None
    model = program.model
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    model.producer_name, model.producer_version, model.doc_string = "pairvpr", None, None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    cast_bytes_first(model.graph)
    copy_kept_sizes(model.graph)
    name_squeezed_axes(model.graph)
    # The exporter records the source line of each node. A robot does not need it.
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    return model


def cast_bytes_first(graph: onnx_ir.Graph) -> None:
    """Let only the cast read an input of 8-bit integers, because TensorRT supports no other use of such inputs.

    Nodes that ask for the input's shape get the shape of the cast input.
    """
    for value in graph.inputs:
        users = [node for node, _ in value.uses()]
        casts = [node for node in users if node.op_type == "Cast"]
        if value.dtype != onnx_ir.DataType.UINT8 or len(casts) != 1 or len(users) == 1:
            continue
        graph.remove(casts[0])
        graph.insert_before(graph[0], casts[0])
        for node, index in list(value.uses()):
            if node is not casts[0]:
                node.replace_input_with(index, casts[0].outputs[0])


def copy_kept_sizes(graph: onnx_ir.Graph) -> None:
    """Give constant target shapes to Reshape nodes, where their operator can copy sizes or infer the only unknown one.

    The exporter computes the shape from sizes of other values, which engines fuse and plan less well.
    """
    for node in list(graph):
        if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].const_value is not None:
            continue
        before, after = node.inputs[0].shape if node.inputs[0] else None, node.outputs[0].shape
        if before is None or after is None:
            continue
        if any(not isinstance(size, int) and size.value is None for size in (*before, *after)):
            continue  # two unknown sizes need not be the same
        kept = [
            size if isinstance(size, int) else 0 if i < len(before) and before[i] == size else -1
            for i, size in enumerate(after)
        ]
        if kept.count(-1) <= 1:
            shape = onnx_ir.tensor(kept, onnx_ir.DataType.INT64)
            constant = onnx_ir.node("Constant", [], attributes={"value": shape})
            constant.outputs[0].name = f"{node.outputs[0].name}.shape"
            constant.outputs[0].const_value = shape
            graph.insert_before(node, constant)
            node.replace_input_with(1, constant.outputs[0])
            node.attributes.pop("allowzero", None)  # with it, 0 does not copy a size


def name_squeezed_axes(graph: onnx_ir.Graph) -> None:
    """Name the axes of Squeeze nodes that have none: those of size 1, without the batch.

    A batch of 1 would lose its axis too, and not every engine takes a value of an unknown number of axes.
    """
    for node in list(graph):
        if node.op_type != "Squeeze" or (len(node.inputs) > 1 and node.inputs[1] is not None):
            continue
        squeezed, taken = node.outputs[0], node.inputs[0]
        if taken is None or taken.shape is None:
            continue
        axes = [axis for axis, size in enumerate(taken.shape) if size == 1]
        if not axes:
            squeezed.replace_all_uses_with(taken)
            graph.remove(node)
            continue
        value = onnx_ir.tensor(axes, onnx_ir.DataType.INT64)
        constant = onnx_ir.node("Constant", [], attributes={"value": value})
        constant.outputs[0].name = f"{squeezed.name}.axes"
        graph.insert_before(node, constant)
        node.resize_inputs(2)
        node.replace_input_with(1, constant.outputs[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's messages about its own optimisations."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
