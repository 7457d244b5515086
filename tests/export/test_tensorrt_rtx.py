"""Test our graphs in TensorRT-RTX, which has TensorRT's API and parser and builds without a GPU.

A plan cannot be run or inspected without one, and it keeps no timings: its caches are empty. The extra `dev` brings it
on x86-64.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pairvpr.errors import EngineError
from pairvpr.export.tensorrt import PRODUCTS
from pairvpr.export.tensorrt_progress import BuildProgress
from pairvpr.model.presets import PRESETS
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import GRAPHS, LOOK, Dims
from pairvpr.runtime.engines.tensorrt import api as tensorrt_api
from pairvpr.runtime.engines.tensorrt.network import BuildSettings, Monitor, Network
from pairvpr.runtime.engines.tensorrt.plans import FORMS, graph_profiles
from pairvpr.runtime.model import default_bundle

onnx = pytest.importorskip("onnx")
rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX (pip install tensorrt-rtx)")

INPUTS = {
    "encoder": {"images": (-1, 224, 224, 3)},
    "pair_prefix": {"query_tokens": (1, 49, 192), "database_tokens": (-1, -1, 192)},
}


@pytest.fixture(autouse=True)
def configs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """TensorRT-RTX alone, told a GPU to build for, as there may be none here; the settings of its builds."""
    made: list = []

    class Builder(rtx.Builder):
        def create_builder_config(self):
            config = super().create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
            made.append(config)
            return config

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(rtx, "Builder", Builder)
    tensorrt_api.logger.cache_clear()
    yield made
    tensorrt_api.logger.cache_clear()


@pytest.fixture
def bundle() -> Bundle:
    return Bundle.open(default_bundle())


def build(
    network: Network,
    bundle: Bundle,
    graph: str,
    batches: tuple[int, ...],
    asked: threading.Event,
    tell: Callable[[int], None],
) -> bytes:
    profiles = graph_profiles(graph, bundle.info.dims, bundle.info.picture, batches)
    return network.build(profiles, BuildSettings(1 << 30, 1), b"", BuildProgress(tell, asked)).plan


def test_tensorrt_rtx_is_distinguished_from_full_tensorrt() -> None:
    assert tensorrt_api.version() == f"rtx-{rtx.__version__}"


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_that_ships_is_parsed(bundle: Bundle, graph: str) -> None:
    for precision in set(bundle.info.precisions) & set(PRODUCTS):
        network = Network(bundle.graph(precision, graph, cpu=False))
        assert set(network.product_types()) == {PRODUCTS[precision]}
        assert network.inputs().keys() == graph_profiles(graph, bundle.info.dims, bundle.info.picture, (1,))[0].keys()
        assert network.inputs() == INPUTS.get(graph, network.inputs())


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_is_built_in_its_precision(
    nano_graphs: dict[str, dict[str, Path]], bundle: Bundle, graph: str
) -> None:
    """The plans hold the graph's own matrices, number by number, and are the smaller the fewer bits these have."""
    sizes = {}
    for precision, product in PRODUCTS.items():
        file = nano_graphs[precision][graph]
        network = Network(file)
        assert set(network.product_types()) == {product}
        assert network.inputs() == INPUTS.get(graph, network.inputs())
        model = onnx.load(str(file))
        quantized = sum(node.op_type == "DequantizeLinear" for node in model.graph.node)
        assert network.quantized_tensors() == quantized
        assert (quantized > 0) == precision.startswith("int8")
        told: list[int] = []
        batches = (1, 8) if precision == "fp16" else (8,)
        plan = build(network, bundle, graph, batches, threading.Event(), told.append)
        assert told == sorted(set(told))
        assert told[-1] == 100
        assert len(told) > 5
        # All of them in INT8; else some that have one input are made one, in another order.
        assert held(plan, model) >= (1 if quantized else 0.75)
        sizes[precision] = len(zlib.compress(plan, 1))  # less code, of which there is more than weights
    if graph != LOOK:  # the default model's has few weights beside its code
        assert sizes["int8-fp16"] < sizes["fp16"] < sizes["fp32"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transport", "gem", "queries"])
def test_descriptors_of_other_networks_are_built(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the exporter")
    from pairvpr.export.descriptor_graph import write_descriptor
    from pairvpr.export.descriptor_source import Stated, load_descriptor

    descriptor = load_descriptor(f"tests.export.descriptors:{name}", Stated((56, 56)))
    graph = descriptor.graph()
    for precision in ("fp32", "fp16"):
        network = Network(tmp_path / write_descriptor("descriptor", graph, precision, tmp_path).file)
        assert set(network.product_types()) == {PRODUCTS[precision]}
        profiles = graph_profiles("descriptor", Dims(descriptor.dim), descriptor.picture, (1, 4))
        assert network.build(profiles, BuildSettings(1 << 30, 1), b"", Monitor()).plan


@pytest.mark.slow
def test_build_settings_reach_the_library(bundle: Bundle, configs: list) -> None:
    """Those that TensorRT-RTX has; all as the library gives them back."""
    network = Network(bundle.graph("fp16", "pair_prefix", cpu=False))
    profiles = graph_profiles("pair_prefix", bundle.info.dims, bundle.info.picture, (1,))
    network.build(profiles, BuildSettings(64 << 20, 2), b"", Monitor())
    (config,) = configs
    assert config.get_memory_pool_limit(rtx.MemoryPoolType.WORKSPACE) == 64 << 20
    assert config.builder_optimization_level == 2
    assert config.profiling_verbosity == rtx.ProfilingVerbosity.DETAILED
    assert not config.get_flag(rtx.BuilderFlag.TF32)
    assert not config.get_flag(rtx.BuilderFlag.VERSION_COMPATIBLE)
    assert config.hardware_compatibility_level == rtx.HardwareCompatibilityLevel.NONE
    assert config.num_optimization_profiles == 1


def fused(plan: bytes) -> int:
    """How many times a plan runs the library's fused attention, which the plan names."""
    return plan.count(b"function={ name=_gemm_mha_v2 ")


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
def test_forms_without_fused_attention(bundle: Bundle, graph: str) -> None:
    """For libraries whose fused attention is wrong. Other graphs find inputs and outputs as before."""
    ports, counts = [], []
    for form in FORMS:
        network = Network(bundle.graph("fp16", graph, cpu=False))
        if form != FORMS[0]:
            assert (network.unfuse_attention() > 0) == (graph != LOOK)  # the default model's compares tokens directly
        if form == FORMS[2]:
            network.compute_in_float32()
        assert set(network.product_types()) == {"float32" if form == FORMS[2] else "float16"}
        inner = network._network
        tensors = [inner.get_input(i) for i in range(inner.num_inputs)]
        tensors += [inner.get_output(i) for i in range(inner.num_outputs)]
        ports.append([(tensor.name, tensor.dtype) for tensor in tensors])
        counts.append(fused(build(network, bundle, graph, (8,), threading.Event(), lambda _: None)))
    assert ports[0] == ports[1] == ports[2]
    assert graph in ("encoder", LOOK) or counts[0] > 0  # the default encoder is one of convolutions
    assert counts[1:] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("graph", "attentions"), [("encoder", 12), ("pair_prefix", 4), ("pair_suffix", 4)])
def test_all_attention_is_fused(tmp_path: Path, graph: str, attentions: int) -> None:
    """But the last block's, where a single class token looks at all others.

    On the database side all queries of a batch look at one memory, which the library fuses only as one long sequence.
    The network is as wide as a real one: in a narrow one the library fuses single queries too.
    """
    pytest.importorskip("torch", reason="needs the exporter")
    from pairvpr.export.bundle_writer import describe
    from pairvpr.export.tracing import graph_specs, write_graph
    from pairvpr.model.checkpoint import seeded

    checkpoint = seeded(dataclasses.replace(PRESETS["edge"], decoder_depth=3))
    info = describe(checkpoint)
    file = tmp_path / write_graph(graph, graph_specs(checkpoint.network, "fp16")[graph], "fp16", tmp_path).file
    profiles = graph_profiles(graph, info.dims, info.picture, (8,))
    plan = Network(file).build(profiles, BuildSettings(), b"", Monitor()).plan
    assert fused(plan) == attentions


def held(plan: bytes, model: onnx.ModelProto) -> float:
    """The share of a graph's matrices, by bytes, that lie in a plan, row by row or column by column."""
    found = total = 0
    for tensor in model.graph.initializer:
        matrix = onnx.numpy_helper.to_array(tensor)
        if matrix.ndim == 2 and matrix.size >= 4096:
            total += matrix.nbytes
            parts = matrix[3, :16], np.ascontiguousarray(matrix[:16, 3])
            found += matrix.nbytes * any(part.tobytes() in plan for part in parts)
    return found / total


@pytest.mark.slow
def test_stopping_a_build_does_not_crash(bundle: Bundle) -> None:
    """Ctrl-C amid a build: Python's handlers run within it, and the library stops where it next asks."""
    network = Network(bundle.graph("fp16", "encoder", cpu=False))
    asked = threading.Event()
    told: list[int] = []

    def tell(percent: int) -> None:
        told.append(percent)
        if len(told) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        with pytest.raises(EngineError, match="TensorRT could not build it"):
            build(network, bundle, "encoder", (1, 8), asked, tell)
    finally:
        signal.signal(signal.SIGINT, before)
    assert asked.is_set()
    assert told[-1] < 100


def test_a_file_that_is_not_a_graph_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"broken.onnx: TensorRT rtx-[\d.]+ cannot parse it") as error:
        Network(file)
    assert "\n" not in str(error.value)
