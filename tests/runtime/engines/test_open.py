"""Device and precision: what was asked for is obtained, or the error says how to get it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pairvpr.errors import EngineError
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.engines import onnxruntime as onnxruntime_engine
from pairvpr.runtime.engines.base import TINY_GRAPH
from pairvpr.runtime.engines.onnxruntime import OnnxRuntimeEngine, try_devices, working_devices
from pairvpr.runtime.engines.open import open_engines
from pairvpr.runtime.model import default_bundle, load_model

onnxruntime = pytest.importorskip("onnxruntime")
CUDA = "CUDAExecutionProvider"


@pytest.fixture
def fp16_only() -> Bundle:
    return Bundle.open(default_bundle())


@pytest.fixture
def both(fp16_only: Bundle) -> Bundle:
    """A bundle that has fp32 too: the same graphs, which for a choice is enough."""
    graphs = fp16_only.info.precisions["fp16"]
    info = dataclasses.replace(fp16_only.info, precisions={"fp16": graphs, "fp32": graphs})
    return Bundle(fp16_only.path, info)


@pytest.fixture
def claims_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that claims CUDA and, as it really does where a library is missing, falls back without a word."""

    class Fallen(onnxruntime.InferenceSession):
        def __init__(self, model, options, providers):
            super().__init__(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    working_devices.cache_clear()
    yield
    working_devices.cache_clear()


def test_the_tiny_graph_runs() -> None:
    engine = OnnxRuntimeEngine(TINY_GRAPH)
    assert engine.session.get_providers() == ["CPUExecutionProvider"]
    x = np.array([1.5, -2.0, 1e10], np.float32)
    np.testing.assert_array_equal(engine.run({"x": x})["y"], x + x)
    # Floats of other widths and arrays with gaps are taken as well.
    np.testing.assert_array_equal(engine.run({"x": np.arange(6.0)[::2]})["y"], np.array([0, 4, 8], np.float32))
    assert working_devices()["cpu"] is None
    assert try_devices()["cpu"] is None


def test_precision_is_the_devices_best_or_the_one_asked_for(both: Bundle, fp16_only: Bundle) -> None:
    assert open_engines(both, "cpu").precision == "fp32"
    assert open_engines(both, "cpu", "fp16").precision == "fp16"
    engines = open_engines(fp16_only, "cpu", threads=1)
    assert (engines.device, engines.precision) == ("cpu", "fp16")
    assert "cast up at load" in engines.description
    assert "cast up" not in open_engines(both, "cpu").description


def test_auto_is_a_device_that_works(fp16_only: Bundle) -> None:
    expected = "cuda" if "cuda" in working_devices() else "cpu"
    assert open_engines(fp16_only).device == expected


def test_fp32_of_a_bundle_without_it_names_the_command(fp16_only: Bundle) -> None:
    with pytest.raises(
        EngineError, match=r"no fp32 graphs in this bundle \(it has: fp16\).*`pairvpr export --fp32 --out BUNDLE`"
    ):
        open_engines(fp16_only, "cpu", "fp32")


def test_a_bundle_without_graphs(fp16_only: Bundle) -> None:
    empty = Bundle(fp16_only.path, dataclasses.replace(fp16_only.info, precisions={}))
    with pytest.raises(EngineError, match=r"no fp32 or fp16 graphs in this bundle \(it has: none\)"):
        open_engines(empty, "cpu")


def test_threads_are_counted_from_one(fp16_only: Bundle) -> None:
    for device in ("cpu", "openvino"):
        with pytest.raises(EngineError, match="--threads 0: give at least 1"):
            open_engines(fp16_only, device, threads=0)


def test_threads_of_one_graph_leave_the_cores_to_the_next(fp16_only: Bundle) -> None:
    engines = open_engines(fp16_only, "cpu")
    for engine in (engines.encoder, engines.pair_prefix, engines.pair_suffix):
        assert isinstance(engine, OnnxRuntimeEngine)
        options = engine.session.get_session_options()
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
@pytest.mark.parametrize("precision", ["bf16", "int8-bf16"])
def test_bfloat16_is_openvinos_alone(both: Bundle, device: str, precision: str) -> None:
    with pytest.raises(EngineError, match=f"--precision {precision} needs --device openvino, not {device}"):
        open_engines(both, device, precision)


@pytest.mark.parametrize("device", ["gpu", "", "CPU", "cuda:0"])
def test_unknown_device(fp16_only: Bundle, device: str) -> None:
    with pytest.raises(EngineError, match="unknown; choose one of auto, cpu, cuda, tensorrt, openvino"):
        open_engines(fp16_only, device)


def test_cuda_that_this_onnx_runtime_has_not(fp16_only: Bundle) -> None:
    available = onnxruntime.get_available_providers()
    if CUDA in available:
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(EngineError) as error:
        open_engines(fp16_only, "cuda")
    assert f"has no {CUDA}" in str(error.value)
    assert ", ".join(available) in str(error.value)
    assert 'pip install "pairvpr[gpu]"' in str(error.value)


@pytest.mark.usefixtures("claims_cuda")
def test_a_provider_that_was_not_obtained_raises(fp16_only: Bundle) -> None:
    with pytest.raises(EngineError, match=rf"{CUDA} could not be started \(got: CPUExecutionProvider\)"):
        open_engines(fp16_only, "cuda")
    with pytest.raises(EngineError, match="could not be started"):
        OnnxRuntimeEngine(TINY_GRAPH, "cuda")


@pytest.mark.usefixtures("claims_cuda")
def test_auto_leaves_out_a_device_that_only_claims_to_work(fp16_only: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    problems = try_devices()
    assert problems["cpu"] is None
    assert "could not be started" in (problems["cuda"] or "")
    assert set(working_devices()) == {"cpu"}
    assert open_engines(fp16_only).device == "cpu"
    assert caplog.messages == [f"not CUDA: {problems['cuda']}"]


def test_onnx_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    working_devices.cache_clear()
    for device in ("auto", "cpu"):
        with pytest.raises(EngineError, match=r'ONNX Runtime cannot be imported .*; run pip install "pairvpr\[cpu\]"'):
            load_model(device=device)


def test_onnx_runtime_that_is_a_ruin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(onnxruntime, "InferenceSession")
    with pytest.raises(EngineError, match="pip uninstall -y onnxruntime onnxruntime-gpu"):
        onnxruntime_engine.load()


@pytest.mark.parametrize("graph", [b"", b"no graph", TINY_GRAPH[:-3]])
def test_a_graph_that_does_not_load(graph: bytes) -> None:
    with pytest.raises(EngineError) as error:
        OnnxRuntimeEngine(graph)
    assert "cannot load it on cpu" in str(error.value)
    assert "\n" not in str(error.value)


def test_inputs_that_a_graph_cannot_take() -> None:
    with pytest.raises(EngineError) as error:
        OnnxRuntimeEngine(TINY_GRAPH).run({"x": np.zeros((2, 2))})
    assert "ONNX Runtime failed" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_warning_of_the_import_is_hidden(tmp_path: Path) -> None:
    """Some versions print it on each Jetson, whose GPU has no PCI vendor. Other messages stay."""
    (tmp_path / "onnxruntime.py").write_text(
        "import os\n"
        "os.write(2, b'[W:onnxruntime:Default, device_discovery.cc:164 DiscoverDevicesForPlatform] GPU device "
        "discovery failed: /sys/class/drm/card0/device/vendor\\nmemory is short\\n')\n"
        "class InferenceSession: ...\n"
    )
    code = "from pairvpr.runtime.engines import onnxruntime as o; o.load(); import sys; print('later', file=sys.stderr)"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[3])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr.splitlines() == ["memory is short", "later"]
