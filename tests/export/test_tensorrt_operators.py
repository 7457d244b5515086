"""Test that every exported graph uses only operators of the ONNX parser of TensorRT 10.3, the oldest supported.

Sources, all public: `docs/Changelog.md` of onnx-tensorrt (what each version added; ONNX to opset 20 since 10.0),
`docs/operators.md` of onnx-tensorrt 10.15 (operators, types and restrictions; no list of 10.3 was at hand), and the
Python names of 10.3 (`shared/tensorrt_api`), which have the layers that the newer operators become.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper  # noqa: E402

from pairvpr.export.tensorrt import PRODUCTS  # noqa: E402
from pairvpr.runtime.bundle import Bundle  # noqa: E402
from pairvpr.runtime.model import default_bundle  # noqa: E402
from tests.conftest import shared  # noqa: E402

OPSET = 20
# Listed in 10.15, and no entry of the change log after 10.3 names them: there before.
# fmt: off
OPERATORS = frozenset({
    "Add", "AveragePool", "Cast", "Clip", "Concat", "Constant", "Conv", "DequantizeLinear", "Div", "Expand", "Gather",
    "GatherND", "Gelu", "Gemm", "LayerNormalization", "MatMul", "Max", "Mul", "Pow", "QuantizeLinear", "ReduceL2",
    "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Shape", "Slice", "Softmax", "Split", "Squeeze", "Sub",
    "Transpose", "Unsqueeze", "Where",
})
# fmt: on
# What came as one operator only with opset 17 and 20, and the name in 10.3 of what it becomes.
BECOMES = {
    "LayerNormalization": ("LayerType", "NORMALIZATION"),
    "Gelu": ("ActivationType", "GELU_ERF"),
    "Cast": ("LayerType", "CAST"),
}
# "`axes` must be an initializer"; as tensors only from 10.7 on (Squeeze and Unsqueeze).
CONSTANT_AXES = {"ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "Squeeze", "Unsqueeze"}
TYPES = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}


def problems(model: ModelProto) -> Iterator[str]:
    """What the parser of 10.3 would not take, by the documents."""
    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    values |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    bytes_in = {port.name for port in graph.input if port.type.tensor_type.elem_type == TensorProto.UINT8}
    if [(entry.domain, entry.version) for entry in model.opset_import] != [("", OPSET)]:
        yield f"opsets {[(entry.domain, entry.version) for entry in model.opset_import]}"
    for node in graph.node:
        where = f"{node.op_type} {node.name}"
        if node.domain or node.op_type not in OPERATORS:
            yield f"{where}: not an operator that it takes"
        if node.op_type in CONSTANT_AXES and len(node.input) > 1 and node.input[1] not in values:
            yield f"{where}: axes that are computed"
        if node.op_type == "LayerNormalization" and len(node.output) > 1:
            yield f"{where}: a second output"
        if node.op_type == "Cast" and _cast_to(node) not in TYPES:
            yield f"{where}: to type {_cast_to(node)}"
        if node.op_type != "Cast" and bytes_in & set(node.input):
            yield f"{where}: 8-bit integers that are not cast from an input"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero = values.get(node.input[2])
            if zero is None or zero.data_type != TensorProto.INT8 or numpy_helper.to_array(zero).any():
                yield f"{where}: a zero point that is not a signed 0"
    quantized = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for tensor in graph.initializer:
        allowed = {TensorProto.INT8} if tensor.name in quantized else TYPES
        is_zero_point = tensor.data_type == TensorProto.INT8 and not numpy_helper.to_array(tensor).any()
        if tensor.data_type not in allowed and not is_zero_point:
            yield f"{tensor.name}: constant of type {tensor.data_type}"


def _cast_to(node: NodeProto) -> int:
    return next(attribute.i for attribute in node.attribute if attribute.name == "to")


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRODUCTS)
def test_every_graph_uses_only_operators_of_the_parser(nano_graphs: dict[str, dict[str, Path]], precision: str) -> None:
    for name, file in nano_graphs[precision].items():
        model = onnx.load(str(file))
        assert list(problems(model)) == [], name
        quantizes = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
        assert quantizes == precision.startswith("int8"), name


def test_newer_operators_exist_in_the_oldest_version() -> None:
    names = json.loads(shared("tensorrt_api/10.3.0.json").read_text())["names"]
    assert set(BECOMES) <= OPERATORS
    for of, member in BECOMES.values():
        assert member in names[of]["members"]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ("y = Cast<to = 1>(x)", None),
        ("a = Cast<to = 1>(x)  y = Mish(a)", "Mish : not an operator that it takes"),
        ("y = Cast<to = 11>(x)", "Cast : to type 11"),
        ("y = Relu(x)", "Relu : 8-bit integers that are not cast from an input"),
        ("a = Cast<to = 1>(x)  n = Shape(a)  y = ReduceSum(a, n)", "ReduceSum : axes that are computed"),
        ("a = Cast<to = 1>(x)  y, m = LayerNormalization(a, a)", "LayerNormalization : a second output"),
    ],
)
def test_the_operator_check_finds_unsupported_operators(nodes: str, said: str | None) -> None:
    from onnx import parser

    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {OPSET}]> g (uint8[n] x) => (float[n] y) {{ {nodes} }}'
    )
    assert list(problems(model)) == ([] if said is None else [said])


def test_the_form_for_cuda_is_not_for_tensorrt(tmp_path: Path) -> None:
    from pairvpr.export.cpu_form import write_cuda_form

    bundle = Bundle.open(default_bundle())
    write_cuda_form(bundle.graph("fp16", "pair_prefix", cpu=False), tmp_path / "graph.onnx")
    model = onnx.load(str(tmp_path / "graph.onnx"), load_external_data=False)
    model.graph.ClearField("initializer")
    assert any("MultiHeadAttention" in problem for problem in problems(model))
