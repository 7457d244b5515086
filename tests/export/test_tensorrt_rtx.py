"""Our graphs in a real TensorRT: TensorRT-RTX, which has the same API and parser and builds without a GPU.

A plan cannot be run or inspected without one, and it keeps no timings: its caches are empty. To run these tests,
install tensorrt-rtx-cu13-libs and tensorrt-rtx-cu13-bindings.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from pairvpr.errors import EngineError
from pairvpr.export.tensorrt import PRODUCTS, BuildProgress
from pairvpr.runtime import tensorrt_api
from pairvpr.runtime.bundle import GRAPHS, Bundle
from pairvpr.runtime.model import default_bundle
from pairvpr.runtime.plans import graph_profiles

pytest.importorskip("tensorrt_rtx_libs", reason="needs TensorRT-RTX (tensorrt-rtx-cu13-libs, -bindings)")
rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX (tensorrt-rtx-cu13-libs, -bindings)")

INPUTS = {
    "encoder": {"images": (-1, 112, 112, 3)},
    "pair_prefix": {"query_tokens": (1, 49, 192), "database_tokens": (-1, -1, 192)},
}


@pytest.fixture(autouse=True)
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TensorRT-RTX under the name of TensorRT 11, told a GPU to build for, as there may be none here."""

    class Builder(rtx.Builder):
        def create_builder_config(self):
            config = super().create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
            return config

    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)  # others look for it
    module.__dict__.update({name: getattr(rtx, name) for name in dir(rtx) if not name.startswith("__")})
    module.Builder = Builder
    module.__version__ = "11.0.0"
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    tensorrt_api._logger.cache_clear()
    yield
    tensorrt_api._logger.cache_clear()


@pytest.fixture
def bundle() -> Bundle:
    return Bundle.open(default_bundle())


def build(bundle: Bundle, graph: str, batches: tuple[int, ...], asked: threading.Event) -> tuple:
    told: list[int] = []
    network = tensorrt_api.Network(bundle.graph("fp16", graph, cpu=False))
    profiles = graph_profiles(graph, bundle.info.dims, bundle.info.picture, batches)
    built = network.build(profiles, tensorrt_api.Settings(1 << 30, 1), b"", BuildProgress(told.append, asked))
    return built, told


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_is_parsed_in_its_precision(bundle: Bundle, graph: str) -> None:
    for precision in set(bundle.info.precisions) & set(PRODUCTS):
        network = tensorrt_api.Network(bundle.graph(precision, graph, cpu=False))
        assert set(network.product_types()) == {PRODUCTS[precision]}
        assert (network.quantized_tensors() > 0) == precision.startswith("int8")
        assert network.inputs().keys() == graph_profiles(graph, bundle.info.dims, bundle.info.picture, (1,))[0].keys()
        assert network.inputs() == INPUTS.get(graph, network.inputs())


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_is_built(bundle: Bundle, graph: str) -> None:
    built, told = build(bundle, graph, (1, 8), threading.Event())
    weights = (bundle.path / bundle.info.precisions["fp16"].graphs[graph].weights).stat().st_size
    assert len(built.plan) > 0.9 * weights
    assert told == sorted(set(told))
    assert told[-1] == 100
    assert len(told) > 5


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_int8_graph_is_parsed_and_built(bundle: Bundle, graph: str, tmp_path: Path) -> None:
    """Ranges decide nothing here: what the parser and the builder see is the same for any."""
    pytest.importorskip("torch", reason="needs the exporter, to make INT8 graphs")
    from pairvpr.export.int8 import FloatGraph, write_int8

    stored = bundle.info.precisions["fp16"].graphs[graph]
    for name in (stored.file, stored.weights):  # onnx reads no weights that a map shares by a hard link
        shutil.copy(bundle.path / name, tmp_path)
    floats = FloatGraph(tmp_path / stored.file)
    quantized = floats.static({layer.name: 8.0 for layer in floats.layers}, ())
    from_8_bits = sum(node.op_type == "DequantizeLinear" for node in quantized.graph.node)
    files = write_int8(quantized, graph, "int8-fp16", tmp_path)
    network = tensorrt_api.Network(tmp_path / files.file)
    assert set(network.product_types()) == {PRODUCTS["int8-fp16"]}
    assert network.inputs() == INPUTS.get(graph, network.inputs())
    assert network.quantized_tensors() == from_8_bits > len(floats.layers)

    profiles = graph_profiles(graph, bundle.info.dims, bundle.info.picture, (1, 8))
    monitor = BuildProgress(lambda percent: None, threading.Event())
    built = network.build(profiles, tensorrt_api.Settings(1 << 30, 1), b"", monitor)
    assert len(built.plan) > 0.4 * (bundle.path / stored.weights).stat().st_size


@pytest.mark.slow
def test_a_build_is_given_up_without_a_crash(bundle: Bundle) -> None:
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(EngineError, match="TensorRT could not build it"):
            build(bundle, "encoder", (1, 8, 32), asked)
    finally:
        signal.signal(signal.SIGINT, before)
    assert asked.is_set()


def test_what_is_no_graph(tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"broken.onnx: TensorRT 11.0.0 cannot parse it") as error:
        tensorrt_api.Network(file)
    assert "\n" not in str(error.value)
