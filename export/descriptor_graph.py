"""Write the graph of a descriptor in float32 or float16, in the forms of a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pairvpr.export.cpu_form import cast_up, drop_unused
from pairvpr.export.int8 import transpose_weights
from pairvpr.export.precision import Precision
from pairvpr.export.tracing import INLINE_BYTES
from pairvpr.runtime.bundle_info import GraphFiles

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
"""Operators that a float16 graph computes in half precision. All others stay in float32."""


def write_descriptor(name: str, model: ModelProto, precision: Precision, folder: Path) -> GraphFiles:
    """Write a float32 graph in a precision, with its weights in a file of their own. onnx checks each form.

    name: of the graph in the bundle. The form for CPUs of a float16 graph computes in float32 over the same weights.
    """
    stem = f"{name}.{precision}"
    file, weights = f"{stem}.onnx", f"{stem}.weights"
    made = ModelProto()
    made.CopyFrom(model)
    transpose_weights(made.graph)
    drop_unused(made.graph)
    if precision == "fp16":
        halve_products(made.graph)
    onnx.save(made, str(folder / file), save_as_external_data=True, location=weights, size_threshold=INLINE_BYTES)
    cpu_file = file
    if precision == "fp16":
        cpu_file = f"{stem}-cpu.onnx"
        wide = onnx.load(str(folder / file), load_external_data=False)
        cast_up(wide.graph)
        onnx.save(wide, str(folder / cpu_file))
    if not (folder / weights).exists():  # all weights are small enough to stay in the graph
        (folder / weights).touch()
    for each in {file, cpu_file}:
        onnx.checker.check_model(str(folder / each))
    return GraphFiles(file, cpu_file, weights)


def halve_products(graph: GraphProto) -> None:
    """Compute matrix products and convolutions in float16, with weights stored in float16, and the rest in float32.

    The operations between the products of a network are not known. Many of them overflow in float16: powers,
    exponentials, norms and sums.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    elsewhere = {name for node in graph.node if node.op_type not in PRODUCTS for name in node.input}
    halved: dict[str, str] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if not name:
                continue
            if name not in halved:
                halved[name] = f"{name}.half"
                if name not in stored or name in elsewhere:
                    nodes.append(helper.make_node("Cast", [name], [f"{name}.half"], to=TensorProto.FLOAT16))
            node.input[i] = halved[name]
        wide = node.output[0]
        node.output[0] = f"{wide}.product"
        nodes += [node, helper.make_node("Cast", [node.output[0]], [wide], to=TensorProto.FLOAT)]
    for name in halved:
        if name in stored and name not in elsewhere:
            values = numpy_helper.to_array(stored[name]).astype(np.float16)
            stored[name].CopyFrom(numpy_helper.from_array(values, f"{name}.half"))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
