"""Test the CPU form of graphs: it gives the same numbers by other operators from the same weights file."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

from onnx import parser  # noqa: E402

from pairvpr.export.cpu_form import cast_up, drop_unused, fuse_attention, widen_hidden_layers  # noqa: E402
from pairvpr.runtime.bundle import Bundle  # noqa: E402
from pairvpr.runtime.bundle_info import GRAPHS  # noqa: E402
from pairvpr.runtime.engines.onnxruntime import OnnxRuntimeEngine  # noqa: E402


def parse(graph):
    return parser.parse_model('<ir_version: 8, opset_import: ["": 20]>\n' + graph)


def attention(queries, memories, tail="y = Reshape(o, out)", outputs="float[n, 5, 128] y"):
    """Two heads of attention as it is traced: queries (n, 5, 128) look at memories (n, 7, 128)."""
    return parse(f"""
        attention (float[{queries}, 5, 128] q, float[{memories}, 7, 128] k, float[{memories}, 7, 128] v) => ({outputs})
        <int64[4] five = {{-1, 5, 2, 64}}, int64[4] seven = {{-1, 7, 2, 64}}, int64[3] out = {{-1, 5, 128}},
         float root = {{0.35355339}}> {{
            q4 = Reshape(q, five)   qh = Transpose<perm = [0, 2, 1, 3]>(q4)   qs = Mul(qh, root)
            k4 = Reshape(k, seven)  kh = Transpose<perm = [0, 2, 3, 1]>(k4)   ks = Mul(kh, root)
            v4 = Reshape(v, seven)  vh = Transpose<perm = [0, 2, 1, 3]>(v4)
            a = MatMul(qs, ks)  w = Softmax<axis = -1>(a)  oh = MatMul(w, vh)
            o = Transpose<perm = [0, 2, 1, 3]>(oh)
            {tail}
        }}""")


def run(model, inputs):
    onnx.checker.check_model(model, full_check=True)
    return OnnxRuntimeEngine(model.SerializeToString()).run(inputs)


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(("queries", "memories"), [("n", "n"), ("n", 1), (1, "n"), (1, 1)])
def test_fused_attention_is_the_same_attention(queries, memories):
    """Also where one memory serves all queries, and where one query looks at each memory."""
    plain, fused = attention(queries, memories), attention(queries, memories)
    fuse_attention(fused)
    drop_unused(fused.graph)
    assert operators(fused)["MultiHeadAttention"] == 1
    assert not {"Softmax", "MatMul", "Transpose"} & set(operators(fused))
    random = np.random.default_rng(0)
    inputs = {
        name: random.standard_normal((3 if batch == "n" else 1, length, 128), np.float32)
        for name, batch, length in (("q", queries, 5), ("k", memories, 7), ("v", memories, 7))
    }
    expected = run(plain, inputs)["y"]
    np.testing.assert_allclose(run(fused, inputs)["y"], expected, atol=2e-6, rtol=0)
    assert np.ptp(expected) > 1  # it says something


@pytest.mark.parametrize(
    ("tail", "outputs"),
    [
        ("y = Reshape(o, out)  z = Identity(w)", "float[n, 5, 128] y, float[n, 2, 5, 7] z"),  # weights asked for
        ("y = Identity(o)", "float[n, 5, 2, 64] y"),  # heads not put side by side
    ],
)
def test_other_uses_of_softmax_are_left_alone(tail, outputs):
    model = attention("n", "n", tail, outputs)
    before = model.SerializeToString()
    fuse_attention(model)
    assert model.SerializeToString() == before


def mlps(hidden):
    """One MLP applied to two inputs, as both orders of a pair are."""
    random = np.random.default_rng(0)
    model = parse("""
        mlps (float[3, 8] a, float[3, 8] b) => (float[3, 8] y, float[3, 8] z) {
            a1 = MatMul(a, up)  a2 = Add(a1, bias)  a3 = Gelu(a2)  y = MatMul(a3, down)
            b1 = MatMul(b, up)  b2 = Add(b1, bias)  b3 = Gelu(b2)  z = MatMul(b3, down)
        }""")
    for name, shape in (("up", (8, hidden)), ("bias", (hidden,)), ("down", (hidden, 8))):
        weights = random.standard_normal(shape, np.float32) / 8
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    return model, {name: random.standard_normal((3, 8), np.float32) for name in "ab"}


def test_hidden_layers_of_whole_pages_are_widened_with_zeros():
    plain, inputs = mlps(1024)
    wide, _ = mlps(1024)
    widen_hidden_layers(wide.graph)
    assert operators(wide)["Pad"] == 3  # weights padded once for both uses
    inferred = onnx.shape_inference.infer_shapes(wide).graph.value_info
    widths = {value.name: value.type.tensor_type.shape.dim[-1].dim_value for value in inferred}
    assert widths["a3"] == widths["b3"] == 1040
    expected, found = run(plain, inputs), run(wide, inputs)
    for name in "yz":
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5, rtol=0)


def test_hidden_layers_off_page_boundaries_stay():
    model, _ = mlps(768)
    before = model.SerializeToString()
    widen_hidden_layers(model.graph)
    assert model.SerializeToString() == before


def test_half_stored_weights_are_cast_up_and_constants_too():
    model = parse("""
        g (float16[2] x) => (float16[2] y) {
            a = Mul(x, w)  b = Add(a, c)  f = Cast<to = 1>(b)  y = Cast<to = 10>(f)
        }""")
    half = onnx.numpy_helper.from_array(np.array([1.5, 2.5], np.float16), "w")
    model.graph.initializer.append(half)
    three = onnx.numpy_helper.from_array(np.array([3], np.float16))
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["c"], value=three))
    cast_up(model.graph)
    y = run(model, {"x": np.array([1, 1], np.float32)})["y"]
    assert y.dtype == np.float32
    assert y.tolist() == [4.5, 5.5]
    assert [tensor.raw_data for tensor in model.graph.initializer] == [half.raw_data]


def test_unused_nodes_and_weights_are_dropped():
    model = parse("""
        g (float[2] x) => (float[2] y) <float[2] used = {1, 1}, float[2] unused = {1, 1}> {
            dead = Add(x, unused)  deader = Neg(dead)  y = Add(x, used)
        }""")
    drop_unused(model.graph)
    assert list(operators(model)) == ["Add"]
    assert [tensor.name for tensor in model.graph.initializer] == ["used"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_all_forms_of_a_bundle(tiny_bundle, precision):
    """The device form holds pure ONNX; in the others all attention is fused but the last block's one question.

    The form for CUDA computes in its precision: it is not cast up, and has no wider layers.
    """
    dims = Bundle.open(tiny_bundle).info.dims
    attentions = {
        "encoder": 12,
        "pair_look": 2,
        "pair_prefix": 4 * dims.split,
        "pair_suffix": 4 * (dims.decoder_depth - dims.split - 1),
    }
    for name in GRAPHS:
        files = Bundle.open(tiny_bundle).info.precisions[precision].graphs[name]
        device = onnx.load(str(tiny_bundle / files.file), load_external_data=False)
        cpu = onnx.load(str(tiny_bundle / files.cpu_file), load_external_data=False)
        assert {node.domain for node in device.graph.node} == {""}
        assert {entry.domain for entry in device.opset_import} == {""}
        assert {node.domain for node in cpu.graph.node} <= {"", "com.microsoft"}
        assert operators(cpu)["MultiHeadAttention"] == attentions[name]
        assert operators(cpu)["Softmax"] == (4 if name == "pair_suffix" else 0)
        assert operators(device)["Softmax"] == attentions[name] + operators(cpu)["Softmax"]
        cuda = onnx.load(str(tiny_bundle / files.cuda_file), load_external_data=False)
        assert operators(cuda)["MultiHeadAttention"] == attentions[name]
        assert operators(cuda)["Softmax"] == operators(cpu)["Softmax"]
        assert operators(cuda)["Cast"] == operators(device)["Cast"]
        assert [port.type for port in cuda.graph.input] == [port.type for port in device.graph.input]
        assert {tensor.data_type for tensor in cuda.graph.initializer} == {
            tensor.data_type for tensor in device.graph.initializer
        }
        for model in (device, cpu, cuda):
            stored = [tensor for tensor in model.graph.initializer if tensor.external_data]
            assert {entry.value for tensor in stored for entry in tensor.external_data if entry.key == "location"} == {
                files.weights
            }
        assert (tiny_bundle / files.cpu_file).stat().st_size < 300_000
