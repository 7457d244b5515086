"""Test INT8 graphs: only linear layers are quantized, ranges come from pictures, inaccurate graphs are refused."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from click.testing import CliRunner  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from pairvpr.calibration import splits as pictures_module  # noqa: E402
from pairvpr.calibration.gate import Agreement  # noqa: E402
from pairvpr.cli.main import main  # noqa: E402
from pairvpr.errors import EngineError, ExportError  # noqa: E402
from pairvpr.export import int8_bundle  # noqa: E402
from pairvpr.export.int8 import FloatGraph, layer_errors, measure_ranges, needs_narrow_weights, write_int8  # noqa: E402
from pairvpr.export.int8_bundle import Int8Export, Pictures  # noqa: E402
from pairvpr.machine import int8_class  # noqa: E402
from pairvpr.runtime import load_model  # noqa: E402
from pairvpr.runtime.bundle import Bundle  # noqa: E402
from pairvpr.runtime.bundle_info import GRAPHS, GraphFiles  # noqa: E402
from pairvpr.runtime.engines.onnxruntime import OnnxRuntimeEngine  # noqa: E402
from pairvpr.runtime.engines.open import open_engines  # noqa: E402
from pairvpr.runtime.reference import Reference, check_reference  # noqa: E402
from tests.export import descriptors  # noqa: E402
from tests.export.test_descriptor import Named, save_onnx  # noqa: E402
from tests.scenes import draw_scene  # noqa: E402

KINDS = ("int8", "int8-fp16", "int8-dynamic")
QUIET = lambda step: None  # noqa: E731
# Seeded weights give scores that hardly differ: what the gate asks for is asked of trained ones.
SEEDED_LIMITS = Agreement(cosine=0.99, rank_correlation=-1.0, top1_changed=1.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for place in range(8):
        Image.fromarray(draw_scene(place, 0, (96, 128))).save(folder / f"{place}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Ranges are kept here and not with the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def take_few(patch: pytest.MonkeyPatch) -> None:
    """As many pictures as a test has time for, and limits for seeded weights."""
    patch.setattr(pictures_module, "CALIBRATION", 3)
    patch.setattr(pictures_module, "HELD_OUT", 5)
    patch.setattr(int8_bundle, "CALIBRATION_CANDIDATES", 2)
    patch.setattr(int8_bundle, "GATE_CANDIDATES", 2)
    patch.setattr(int8_bundle, "LOOKED_AT", 1)
    patch.setattr(int8_bundle, "LIMITS", SEEDED_LIMITS)


@pytest.fixture(scope="module")
def made(tiny_bundle, images, tmp_path_factory):
    """The INT8 files of the tiny bundle, what was measured, and the maker."""
    folder, files, floats = tmp_path_factory.mktemp("int8"), sorted(images.iterdir()), Bundle.open(tiny_bundle)
    with pytest.MonkeyPatch.context() as patch:
        take_few(patch)
        export = Int8Export(floats, folder, Pictures(files[:3], files[3:]), QUIET)
        precisions, calibration = export.write(Reference.from_bundle(floats))
    return folder, precisions, calibration, export


def one_layer(tmp_path: Path, bias: bool = True) -> Path:
    """A graph file: y = relu(x) @ W (+ b), x (n, 96), W stored the other way round, as shared weights are."""
    random = np.random.default_rng(0)
    weights = {"block.some.weight": random.normal(size=(80, 96)).astype(np.float32), "b": np.ones(80, np.float32)}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Transpose", ["block.some.weight"], ["w"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["r", "w"], ["m"], "linear"),
        helper.make_node("Add", ["m", "b"], ["y"], "bias"),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 96), ("y", 80))
    )
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(v, k) for k, v in weights.items()])
    file = tmp_path / "small.fp32.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(file))
    return file


def test_ranges_and_errors_of_a_layer_are_those_of_the_plain_computation(tmp_path: Path) -> None:
    graph = FloatGraph(one_layer(tmp_path))
    (layer,) = graph.layers
    assert layer.name == "small 1 block.some"
    random = np.random.default_rng(1)
    feeds = [{"x": random.normal(size=(50, 96)).astype(np.float32)} for _ in range(3)]
    ranges = measure_ranges(graph, iter(feeds))
    assert ranges == {layer.name: pytest.approx(max(feed["x"].max() for feed in feeds))}
    errors = layer_errors(graph, ranges, feeds)
    write_int8(graph.static(ranges, []), "small", "int8", tmp_path)
    true, coarse = OnnxRuntimeEngine(tmp_path / "small.fp32.onnx"), OnnxRuntimeEngine(tmp_path / "small.int8.onnx")
    y = np.concatenate([true.run(feed)["y"] for feed in feeds])
    difference = np.concatenate([coarse.run(feed)["y"] for feed in feeds]) - y
    measured = np.linalg.norm(difference) / np.linalg.norm(y - 1)  # less the bias, which is exact
    assert errors[layer.name] == pytest.approx(measured, rel=0.05)
    assert 1e-3 < measured < 0.05


def test_a_layer_that_is_left_float_is_exact(tmp_path: Path) -> None:
    graph = FloatGraph(one_layer(tmp_path))
    left = [graph.layers[0].name]
    for kind, model in (("int8", graph.static({left[0]: 3.0}, left)), ("int8-dynamic", graph.dynamic(left))):
        write_int8(model, "small", kind, tmp_path)
        x = np.random.default_rng(2).normal(size=(4, 96)).astype(np.float32)
        y = [OnnxRuntimeEngine(tmp_path / f"small.{name}.onnx").run({"x": x})["y"] for name in ("fp32", kind)]
        np.testing.assert_allclose(*y, atol=1e-5)


def test_the_librarys_advice_leaves_no_handler_behind(tmp_path: Path, monkeypatch) -> None:
    """`logging.warning` adds one to a root logger that has none: our log would then be printed twice."""
    monkeypatch.setattr(logging.root, "handlers", [])
    graph = FloatGraph(one_layer(tmp_path))
    (name,) = (layer.name for layer in graph.layers)
    ranges = measure_ranges(graph, [{"x": np.ones((4, 96), np.float32)}])
    graph.static(ranges, ())
    graph.dynamic([name])
    assert ranges.keys() == {name}
    assert logging.root.handlers == []


def test_both_float_precisions_have_the_same_layers(tiny_bundle: Path) -> None:
    for name in GRAPHS:
        layers = [
            [layer.name for layer in FloatGraph(tiny_bundle / f"{name}.{precision}.onnx", fused).layers]
            for precision, fused in (("fp32", False), ("fp16", False), ("fp32", True))
        ]
        assert layers[0] == layers[1] == layers[2]
        assert layers[0]


def test_static_graphs_quantize_linear_layers_and_nothing_else(made) -> None:
    folder, *_, export = made
    for name in GRAPHS:
        model = onnx.load(str(folder / f"{name}.int8.onnx"))
        assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        made_by = {out: node for node in model.graph.node for out in node.output}
        layers = FloatGraph(export.floats.path / f"{name}.fp32.onnx").layers
        quantized = 0
        for node in model.graph.node:
            sources = [made_by[i] for i in node.input if i in made_by and made_by[i].op_type == "DequantizeLinear"]
            assert len(sources) in (0, 2)
            assert not sources or node.op_type == "MatMul"
            quantized += bool(sources)
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                zero = values[node.input[2]]
                assert zero.dtype == np.int8
                assert not zero.any()
            for source in sources:
                stored = values.get(source.input[0])
                if stored is not None:  # the weight: a scale for every output channel
                    assert stored.dtype == np.int8
                    assert values[source.input[1]].shape == (stored.shape[1],)
        assert quantized == sum(len(layer.nodes) for layer in layers)


def test_the_remainder_of_int8_fp16_is_half(made) -> None:
    folder = made[0]
    for name in GRAPHS:
        model = onnx.load(str(folder / f"{name}.int8-fp16.onnx"), load_external_data=False)
        sizes = Counter()
        for tensor in model.graph.initializer:
            sizes[tensor.data_type] += int(np.prod(tensor.dims))
        assert sizes[TensorProto.INT8] > sizes[TensorProto.FLOAT16] > sizes[TensorProto.FLOAT]


def test_dynamic_graphs_keep_fused_attention(made) -> None:
    folder = made[0]
    counts = Counter(
        node.op_type
        for node in onnx.load(str(folder / "pair_prefix.int8-dynamic.onnx"), load_external_data=False).graph.node
    )
    assert counts["MatMulInteger"] > counts["MultiHeadAttention"] > 0
    assert counts["DynamicQuantizeLinear"] > 0


def test_files_are_a_fraction_of_the_float_ones(made, tiny_bundle: Path) -> None:
    for kind in KINDS:
        for name in GRAPHS:
            small, large = made[0] / f"{name}.{kind}.weights", tiny_bundle / f"{name}.fp32.weights"
            assert small.stat().st_size < 0.6 * large.stat().st_size


def test_the_bundle_holds_the_int8_measurements(made) -> None:
    _, precisions, calibration, export = made
    assert set(precisions) == set(KINDS)
    for info in precisions.values():
        assert 0.99 < info.errors["descriptor_cosine"] < 1
        assert 0 <= info.errors["top1_changed"] <= 1
    assert (calibration["pictures"], calibration["held_out"]) == (3, 5)
    assert calibration["left_float"] == {kind: [] for kind in KINDS}
    assert export.errors[export.ranking[0]] == max(export.errors.values()) > 1e-3


def test_as_few_layers_as_needed_stay_in_float(made, monkeypatch) -> None:
    """The first share that the gate takes, the worst layers; all are tried where none is taken."""
    export = made[3]
    tried = []

    def judged(model, pictures, truth, progress):
        tried.append(None)
        return Agreement(1.0 if len(tried) == 3 else 0.0, 1.0, 0.0)

    monkeypatch.setattr(int8_bundle, "measure_agreement", judged)
    monkeypatch.setattr(Int8Export, "_graphs", lambda self, kind, names: {})
    monkeypatch.setattr(Int8Export, "_model", lambda self, files, kind: None)
    assert export._choose("int8") == export.ranking[: round(len(export.ranking) / 8)]
    assert len(tried) == 3
    assert len(export._choose("int8")) == round(len(export.ranking) / 4)
    assert len(tried) == 3 + 4


def test_openvino_computes_the_static_graphs(made) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO")

    from pairvpr.runtime.engines.openvino import OpenVinoEngine

    images = np.stack([made[3].model.prepare(draw_scene(place, 0)) for place in range(2)])
    for kind in ("int8", "int8-fp16"):
        file = made[0] / f"encoder.{kind}.onnx"
        found = [
            engine.run({"images": images})["descriptors"] for engine in (OpenVinoEngine(file), OnnxRuntimeEngine(file))
        ]
        assert np.sum(found[0] * found[1], axis=1).min() > 0.995


def test_int8_precisions_are_limited_to_their_devices(tiny_bundle: Path) -> None:
    floats = Bundle.open(tiny_bundle)
    graphs = floats.info.precisions["fp32"]
    info = dataclasses.replace(floats.info, precisions=dict.fromkeys(("fp32", *KINDS), graphs))
    every = Bundle(floats.path, dataclasses.replace(info, calibration={"int8": {"processor": int8_class()}}))
    assert open_engines(every, "cpu").precision == "int8-dynamic"
    assert open_engines(every, "cpu", "int8").precision == "int8"
    with pytest.raises(EngineError, match="int8-dynamic needs --device cpu, not openvino"):
        open_engines(every, "openvino", "int8-dynamic")
    with pytest.raises(
        EngineError,
        match=r"no int8-fp16 graphs in this bundle .*`pairvpr export --int8 --calibration-images DIR --out BUNDLE`",
    ):
        open_engines(floats, "cpu", "int8-fp16")
    pytest.importorskip("openvino", reason="needs OpenVINO")
    from pairvpr.runtime.engines.openvino import core

    assert open_engines(every, "openvino").precision == "int8"
    if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        mixed = open_engines(every, "openvino", "int8-bf16")
        assert mixed.precision == "int8-bf16"
        assert mixed.description.endswith("int8 weights, bfloat16 arithmetic for what is not INT8")


@pytest.mark.parametrize("result", [{}, {"int8": {"processor": "z80"}}, {"int8": 7}, {"int8": {"processor": 7}}])
def test_another_processor_runs_float_with_a_warning(tiny_bundle: Path, caplog, result) -> None:
    floats = Bundle.open(tiny_bundle)
    graphs = floats.info.precisions["fp32"]
    info = dataclasses.replace(floats.info, precisions=dict.fromkeys(("fp32", *KINDS), graphs), calibration=result)
    assert open_engines(Bundle(floats.path, info), "cpu").precision == "fp32"
    (message,) = [each for each in caplog.messages if "INT8" in each]
    assert f"and this is {int8_class()}: export --int8 again here" in message
    assert open_engines(Bundle(floats.path, info), "cpu", "int8").precision == "int8"
    alone = dataclasses.replace(info, precisions=dict.fromkeys(KINDS, graphs))
    assert open_engines(Bundle(floats.path, alone), "cpu").precision == "int8-dynamic"  # nothing else runs


@pytest.mark.parametrize("kind", ["int8", "int8-dynamic"])
def test_weights_for_processors_without_vnni_have_7_bits(tmp_path: Path, monkeypatch, kind: str) -> None:
    """Two products of unsigned by signed 8 bits overflow 16 bits there: 2 * 255 * 127 > 32767 > 2 * 255 * 64."""
    largest = {}
    for kind_of_processor in ("x86_64 with VNNI", "x86_64 without VNNI", "aarch64"):
        monkeypatch.setattr("pairvpr.export.int8.int8_class", lambda kind=kind_of_processor: kind)
        graph, narrow = FloatGraph(one_layer(tmp_path)), needs_narrow_weights()
        made = (
            graph.dynamic((), narrow)
            if kind == "int8-dynamic"
            else graph.static({graph.layers[0].name: 3.0}, (), narrow)
        )
        weights = [numpy_helper.to_array(each) for each in made.graph.initializer if each.data_type == TensorProto.INT8]
        largest[kind_of_processor] = max(int(np.abs(each.astype(int)).max()) for each in weights if each.ndim == 2)
    assert largest["x86_64 without VNNI"] <= 64
    assert largest["x86_64 with VNNI"] == largest["aarch64"] == 127


def test_a_class_without_vnni_is_warned_of_an_int8_that_was_asked_for(tiny_bundle: Path, caplog, monkeypatch) -> None:
    floats = Bundle.open(tiny_bundle)
    precisions = dict.fromkeys(("fp32", "int8"), floats.info.precisions["fp32"])
    info = dataclasses.replace(floats.info, precisions=precisions, calibration={"int8": {"processor": "aarch64"}})
    for here, warned in (("x86_64 with VNNI", False), ("x86_64 without VNNI", True)):
        monkeypatch.setattr("pairvpr.runtime.engines.open.int8_class", lambda here=here: here)
        caplog.clear()
        open_engines(Bundle(floats.path, info), "cpu", "int8")
        assert ("int8 may give wrong answers" in caplog.text) == warned


def test_a_kind_that_fails_does_not_withhold_the_others(monkeypatch, tmp_path, caplog) -> None:
    export = object.__new__(Int8Export)
    export.folder, export.pictures, export.progress = tmp_path, Pictures([], []), QUIET
    failing = {"int8-dynamic"}

    def graphs(self, kind, names):
        for ending in ("onnx", "weights"):
            (tmp_path / f"encoder.{kind}.{ending}").touch()
        file = f"encoder.{kind}.onnx"
        return {"encoder": GraphFiles(file, file, f"encoder.{kind}.weights")}

    def judge(self, kind, *rest):
        if kind in failing:
            raise ExportError(f"the {kind} graphs differ")
        return {}

    monkeypatch.setattr(export, "model", None, raising=False)
    monkeypatch.setattr(int8_bundle, "answer_pictures", lambda *_: None)
    monkeypatch.setattr(Int8Export, "_choose", lambda self, kind: [])
    monkeypatch.setattr(Int8Export, "_graphs", graphs)
    monkeypatch.setattr(Int8Export, "_judge", judge)
    precisions, calibration = export.write(None)
    assert set(precisions) == set(calibration["left_float"]) == {"int8", "int8-fp16"}
    assert calibration["processor"] == int8_class()
    kept = {f"encoder.{kind}.{ending}" for kind in ("int8", "int8-fp16") for ending in ("onnx", "weights")}
    assert {each.name for each in tmp_path.iterdir()} == kept
    assert [each for each in caplog.messages if "differ" in each] == [
        "the int8-dynamic graphs differ; the bundle has int8, int8-fp16"
    ]
    failing |= {"int8", "int8-fp16"}
    with pytest.raises(ExportError, match="the int8 graphs differ"):
        export.write(None)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_command_line_adds_int8_to_a_bundle_or_nothing(
    checkpoint_of, tiny_bundle, images, tmp_path, monkeypatch
) -> None:
    take_few(monkeypatch)
    out = tmp_path / "b"
    shutil.copytree(tiny_bundle, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    command = ["export", "--checkpoint", str(checkpoint_of("tiny-decoder")), "--int8", "--out", str(out)]
    command += ["--calibration-images", str(images)]
    damaged = out / "pair_prefix.fp16.weights"
    damaged.write_bytes(b"\0" + before[damaged.name][1:])
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    assert f"{damaged}: damaged" in refused.stderr
    damaged.write_bytes(before[damaged.name])

    monkeypatch.setattr(int8_bundle, "LIMITS", Agreement(1.1, 1.0, 0.0))
    monkeypatch.setattr(int8_bundle, "FLOAT_SHARES", (0.0,))
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    told = refused.stderr.splitlines()[-1]
    assert "int8 graphs differ from the float32 ones" in told
    assert "Largest errors of single layers: " in told
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]

    monkeypatch.setattr(int8_bundle, "LIMITS", SEEDED_LIMITS)
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "using the bundle's fp32 graphs" in result.stderr
    assert "tracing" not in result.stderr
    bundle = Bundle.open(out)
    bundle.verify()
    for file in before.keys() - {"bundle.json"}:
        assert (out / file).read_bytes() == before[file]
    assert set(bundle.info.precisions) == {"fp32", "fp16", *KINDS}
    assert bundle.identity == Bundle.open(tiny_bundle).identity
    assert bundle.info.calibration["int8"]["held_out"] == 5
    assert {file.name for file in out.iterdir()} == {*bundle.info.files, "bundle.json"}
    assert load_model(out, "cpu").engines.precision == "int8-dynamic"
    for kind in KINDS:
        assert check_reference(load_model(out, "cpu", kind)).ok


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--int8"], "--int8 needs --calibration-images"),
        (["--fp16", "--calibration-images", "x"], "--calibration-images needs --int8 or --descriptor-dim"),
        (["--int8", "--calibration-images", "absent"], "absent is not a folder"),
    ],
)
def test_command_line_errors_are_one_line(arguments, told, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["export", *arguments])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert told in result.stderr


def test_a_failed_int8_check_names_the_worst_layers(made, monkeypatch) -> None:
    export = made[3]
    monkeypatch.setattr(int8_bundle, "measure_agreement", lambda *_: Agreement(0.98, 0.97, 0.25))
    with pytest.raises(ExportError) as error:
        export._judge("int8", made[1]["int8"].graphs, export.seen, Reference.from_bundle(export.floats))
    assert "lowest descriptor cosine 0.9800, rank correlation of scores 0.9700" in str(error.value)
    assert "best candidate changed in 25.0%" in str(error.value)
    assert export.ranking[0] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_descriptors_of_other_networks_are_quantized_behind_the_same_gate(
    checkpoint_of, images, tmp_path, monkeypatch
) -> None:
    take_few(monkeypatch)
    wide = ["--descriptor", "tests.export.descriptors:transport", "--descriptor-size", "56"]
    common = ["--int8", "--calibration-images", str(images), "--out"]
    monkeypatch.setattr(int8_bundle, "LIMITS", Agreement(1.1, 1.0, 0.0))
    monkeypatch.setattr(int8_bundle, "FLOAT_SHARES", (0.0,))
    refused = CliRunner().invoke(main, ["export", *wide, *common, str(tmp_path / "alone")])
    assert refused.exit_code == 2
    assert "int8 graphs differ from the float32 ones" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "alone").exists()

    monkeypatch.setattr(int8_bundle, "LIMITS", SEEDED_LIMITS)
    for name, more in (("alone", []), ("both", ["--checkpoint", str(checkpoint_of("tiny-decoder"))])):
        result = CliRunner().invoke(main, ["export", *more, *wide, *common, str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        bundle = Bundle.open(tmp_path / name)
        bundle.verify()
        assert set(KINDS) <= set(bundle.info.precisions)
        graph = "descriptor" if more else "encoder"
        for kind in KINDS:
            model = onnx.load(str(bundle.graph(kind, graph, cpu=False)), load_external_data=False)
            operators = {node.op_type for node in model.graph.node}
            assert {"DynamicQuantizeLinear", "DequantizeLinear"} & operators
            loaded = load_model(tmp_path / name, "cpu", kind)
            assert check_reference(loaded).ok
            assert loaded.encode([images / "0.png"]).descriptors.shape == (1, 64)


def test_a_descriptor_without_linear_layers_is_refused(images, tmp_path, monkeypatch) -> None:
    take_few(monkeypatch)
    network = ["--descriptor", "tests.export.descriptors:gem", "--descriptor-size", "56"]
    command = ["export", *network, "--int8", "--calibration-images", str(images), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "the graph encoder has no linear layers of 64 numbers or more" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_file_of_an_old_operator_set_has_no_int8_for_float16(images, tmp_path, monkeypatch) -> None:
    take_few(monkeypatch)
    file = save_onnx(Named(descriptors.transport()), tmp_path / "network.onnx")  # operator set 18
    command = ["export", "--descriptor", str(file), "--int8", "--calibration-images", str(images)]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    told = "int8-fp16 needs operator set 19, and a file's is 18; export the file with 19"
    assert f"{told}; the bundle has int8, int8-dynamic" in result.stderr
    bundle = Bundle.open(tmp_path / "out")
    bundle.verify()
    assert {"int8", "int8-dynamic"} <= set(bundle.info.precisions)
    assert "int8-fp16" not in bundle.info.precisions
