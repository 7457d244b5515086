"""Fixtures for tests of exported graphs: nano's graphs in every precision that TensorRT runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import GRAPHS
from pairvpr.runtime.model import default_bundle


@pytest.fixture(scope="session")
def nano_graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Graphs by precision and name: float16 as it ships, float32, and INT8, with ranges made up."""
    pytest.importorskip("torch", reason="needs the exporter")
    from pairvpr.export.int8 import FloatGraph, write_int8
    from pairvpr.export.tracing import graph_specs, write_graph
    from pairvpr.model import seeded_checkpoint

    folder = tmp_path_factory.mktemp("graphs")
    # A copy, for maps link to the weights that ship, and onnx reads no file that has a second name.
    bundle = Bundle.open(shutil.copytree(default_bundle(), folder / "nano"))
    found: dict[str, dict[str, Path]] = {"fp32": {}, "fp16": {}, "int8-fp16": {}}
    specs = graph_specs(seeded_checkpoint("nano").network, "fp32")
    for name in GRAPHS:
        half = bundle.graph("fp16", name, cpu=False)
        floats = FloatGraph(half)
        quantized = floats.static({layer.name: 8.0 for layer in floats.layers}, ())
        found["fp16"][name] = half
        found["fp32"][name] = folder / write_graph(name, specs[name], "fp32", folder).file
        found["int8-fp16"][name] = folder / write_int8(quantized, name, "int8-fp16", folder).file
    return found
