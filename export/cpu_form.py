"""Write forms of a graph for ONNX Runtime: other graphs over the same weights file that its kernels run faster.

The form for devices is pure ONNX, which every engine reads. The form for CPUs is made from it in three steps, each
exact to float rounding: fused attention, hidden layers that avoid page-sized rows, and half-stored weights cast to
float32. The form for CUDA takes the first step alone, because a GPU computes in the precision that the weights are
stored in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

CONTRIB = "com.microsoft"
# Operators between an attention's projections and its products. They only move and scale values.
LAYOUT = ("Mul", "Reshape", "Transpose")
PAGE_FLOATS = 1024
EXTRA_UNITS = 16


def write_cpu_form(device_file: Path, cpu_file: Path) -> None:
    """Write the CPU form of a graph file. Both files name the same weights file, which is not changed."""
    model = onnx.load(str(device_file), load_external_data=False)
    fuse_attention(model)
    widen_hidden_layers(model.graph)
    cast_up(model.graph)
    drop_unused(model.graph)
    onnx.save(model, str(cpu_file))


def write_cuda_form(device_file: Path, cuda_file: Path) -> None:
    """Write the form of a graph file for ONNX Runtime's CUDA provider, over the same weights file."""
    model = onnx.load(str(device_file), load_external_data=False)
    fuse_attention(model)
    drop_unused(model.graph)
    onnx.save(model, str(cuda_file))


def fuse_attention(model: ModelProto) -> None:
    """Replace each multi-head attention by ONNX Runtime's operator, which never stores the attention matrix.

    The operator takes queries, keys and values (B, N, D), heads side by side, of equal B.
    """
    graph, wires, shapes = model.graph, _Wires(model.graph), _shapes(model)
    fused: dict[str, list[NodeProto]] = {}
    for softmax in graph.node:
        path = wires.following(softmax, "MatMul", "Transpose", "Reshape")
        if softmax.op_type != "Softmax" or path is None:
            continue
        product, weighted, out = wires.made[softmax.input[0]], path[0], path[-1].output[0]
        q, k, v = (wires.before(name, LAYOUT, shapes) for name in (*product.input, weighted.input[1]))
        if [len(shapes[name]) for name in (softmax.input[0], q, k, v)] != [4, 3, 3, 3]:
            continue  # the single-query attention of the last block has another layout
        heads = int(shapes[v][2]) // int(shapes[weighted.input[1]][3])
        fused[out] = _attention(q, k, v, out, shapes, heads)
    if fused:
        _replace(graph, fused)
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))


def _attention(q: str, k: str, v: str, out: str, shapes: Mapping[str, list[int | str]], heads: int) -> list[NodeProto]:
    """Return the nodes of ONNX Runtime's attention.

    If the batch of the queries or of the memory is 1, further nodes make both batches equal.
    """
    queries, memories, width = shapes[q][0], shapes[k][0], shapes[v][2]
    before, after, asked, seen = [], [], q, out
    if memories == 1 != queries:  # all queries look at one memory: join them to one long query
        asked, seen = f"{out}.asked", f"{out}.seen"
        before = [
            helper.make_node("Constant", [], [f"{out}.long"], value_ints=[1, -1, width]),
            helper.make_node("Reshape", [q, f"{out}.long"], [asked]),
        ]
        after = [
            helper.make_node("Shape", [q], [f"{out}.shape"]),
            helper.make_node("Reshape", [seen, f"{out}.shape"], [out]),
        ]
    elif queries == 1 != memories:  # one query looks at each memory: repeat it
        asked = f"{out}.asked"
        before = [
            helper.make_node("Shape", [k], [f"{out}.memories"], end=1),
            helper.make_node("Constant", [], [f"{out}.once"], value_ints=[1, 1]),
            helper.make_node("Concat", [f"{out}.memories", f"{out}.once"], [f"{out}.each"], axis=0),
            helper.make_node("Expand", [q, f"{out}.each"], [asked]),
        ]
    attend = helper.make_node("MultiHeadAttention", [asked, k, v], [seen], domain=CONTRIB, num_heads=heads)
    return [*before, attend, *after]


def widen_hidden_layers(graph: GraphProto) -> None:
    """Add 16 units that stay zero to hidden layers whose rows are whole memory pages.

    Rows a multiple of 4096 bytes apart compete for the same lines of a processor's first cache. A matrix product that
    reads a dozen of them at a time loses a fifth of its speed. The engine pads the weights once, when it loads them.
    """
    wires, sizes = _Wires(graph), {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    padded: dict[str, list[NodeProto]] = {}
    known: set[str] = set()
    for gelu in graph.node:
        path = wires.following(gelu, "MatMul")
        if gelu.op_type != "Gelu" or path is None:
            continue
        down, add = path[0], wires.made[gelu.input[0]]
        up = wires.made[add.input[0]]
        if up.op_type != "MatMul" or sizes.get(add.input[1], 1) % PAGE_FLOATS:
            continue
        for node, pads in ((up, [0, 0, 0, EXTRA_UNITS]), (add, [0, EXTRA_UNITS]), (down, [0, 0, EXTRA_UNITS, 0])):
            narrow, wide = node.input[1], f"{node.input[1]}.wide"
            node.input[1] = wide
            if wide not in known:  # both orders use the same weights
                known.add(wide)
                amount = helper.make_node("Constant", [], [f"{wide}.pads"], value_ints=pads)
                padded[node.output[0]] = [amount, helper.make_node("Pad", [narrow, f"{wide}.pads"], [wide]), node]
    _replace(graph, padded)


def cast_up(graph: GraphProto) -> None:
    """Turn a float16 graph into a float32 graph over the same half-stored weights. A float32 graph stays as it is.

    Every float16 type becomes float32, and every float16 initializer is cast to float32 where it is used. An engine
    casts once, when it loads. External data is not changed, so both graphs read the same weights file.
    """
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            stored = f"{tensor.name}.stored"
            casts.append(helper.make_node("Cast", [stored], [tensor.name], to=TensorProto.FLOAT))
            tensor.name = stored
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT16:
                values = onnx.numpy_helper.to_array(attribute.t).astype("float32")
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values, attribute.t.name))
    _set_nodes(graph, [*casts, *graph.node])


def drop_unused(graph: GraphProto) -> None:
    """Remove nodes and weights that no output needs, and the recorded types of values, which an engine infers again."""
    needed, kept = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    _set_nodes(graph, kept[::-1])
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(weights)


class _Wires:
    """The node that makes each value, and the nodes that use it."""

    def __init__(self, graph: GraphProto) -> None:
        self.made = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def following(self, node: NodeProto, *operators: str) -> list[NodeProto] | None:
        """Return the nodes of these operators that follow a node in a chain without branches.

        Return None if there is none.
        """
        path = [node]
        for operator in operators:
            users = self.users.get(path[-1].output[0], [])
            if len(users) != 1 or users[0].op_type != operator:
                return None
            path.append(users[0])
        return path[1:]

    def before(self, name: str, operators: tuple[str, ...], shapes: Mapping[str, list[int | str]]) -> str:
        """Return the last value of three axes from which a chain of these operators makes the value `name`."""
        while name in self.made and self.made[name].op_type in operators and len(shapes[name]) != 3:
            name = self.made[name].input[0]
        return name


def _shapes(model: ModelProto) -> dict[str, list[int | str]]:
    """Return the shape of every value. Dynamic axes are given by name."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output, *graph.value_info)
    }


def _replace(graph: GraphProto, replacements: Mapping[str, list[NodeProto]]) -> None:
    """Replace the nodes that make some values by other nodes."""
    _set_nodes(graph, [new for node in graph.node for new in replacements.get(node.output[0], [node])])


def _set_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    del graph.node[:]
    graph.node.extend(nodes)
