"""What only a GPU does, on a CPU: bound inputs and outputs, arrays that stay, and work that is left to the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pairvpr.errors import EngineError
from pairvpr.runtime import Model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import GRAPHS
from pairvpr.runtime.engines import onnxruntime as onnxruntime_engine
from pairvpr.runtime.engines.onnxruntime import OnnxRuntimeEngine
from pairvpr.runtime.engines.onnxruntime_cuda import BoundSession, OrtArray, load_libraries, refuse_cpu_work
from pairvpr.runtime.engines.open import Engines
from pairvpr.runtime.model import default_bundle
from pairvpr.runtime.reference import Reference

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model() -> Model:
    """The default model's graphs for devices, bound to memory that a CPU has, in place of a GPU's."""
    bundle = Bundle.open(default_bundle())
    graphs = {name: OnnxRuntimeEngine(bundle.cuda_graph("fp16", name), threads=1) for name in GRAPHS}
    for graph in graphs.values():
        graph.bound = BoundSession(onnxruntime_engine.load(), graph.session, graph.types, graph.outputs, "cpu")
    stage = graphs["pair_prefix"].stage
    engines = Engines(**graphs, device="cuda", precision="fp16", description="", largest_batch=None, stage=stage)
    return Model(bundle, engines, batch_size=2)


def test_bound_graphs_give_the_reference(model: Model) -> None:
    truth = Reference.from_bundle(model.bundle)
    features = model.encode_prepared(truth.images[:2])
    assert np.max(np.abs(features.descriptors - truth.features.descriptors[:2])) < 0.02
    np.testing.assert_allclose(model.score(truth.features[0], truth.features[:3]), truth.scores[:3], atol=0.03)


def test_states_and_staged_tokens_stay(model: Model) -> None:
    tokens = Reference.from_bundle(model.bundle).features.tokens
    staged = model.stage(tokens[:2])
    assert isinstance(staged, OrtArray)
    assert (staged.shape, staged.dtype, len(staged)) == (tokens[:2].shape, np.float16, 2)
    pairs = model.prefix(tokens[:1], staged)
    assert pairs.states["database_tokens"] is staged
    for name in ("query_state", "database_state"):
        state = pairs.states[name]
        assert isinstance(state, OrtArray)
        assert state.dtype == np.float16
        assert np.isfinite(np.asarray(state)).all()
    assert isinstance(pairs.summaries, np.ndarray)


def session(*parts: tuple[str, list[str]]) -> SimpleNamespace:
    """What ONNX Runtime says of a session: parts of a provider each, with their operators."""
    told = [
        SimpleNamespace(ep_name=name, get_nodes=lambda ops=ops: [SimpleNamespace(op_type=op) for op in ops])
        for name, ops in parts
    ]
    return SimpleNamespace(get_provider_graph_assignment_info=lambda: told)


def test_heavy_work_that_is_left_to_the_cpu_is_refused() -> None:
    gpu, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    refuse_cpu_work(session((gpu, ["MatMul", "Gelu"]), (cpu, ["Shape", "Gather", "Concat"])), "encoder", gpu)
    with pytest.raises(EngineError, match="encoder: CUDAExecutionProvider leaves Gelu, MatMul to the CPU; try another"):
        refuse_cpu_work(session((gpu, ["Conv"]), (cpu, ["Shape", "MatMul", "Gelu", "MatMul"])), "encoder", gpu)
    refuse_cpu_work(SimpleNamespace(), "encoder", gpu)  # versions that do not say


def test_cuda_that_pip_installed_is_loaded_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without torch nothing else loads it; what ONNX Runtime prints of it must not come among the answers."""
    ort, happened = onnxruntime_engine.load(), []

    def open_session(*_: object, **__: object) -> SimpleNamespace:
        happened.append("session")
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    def preload() -> None:
        print("Failed to load libcudnn.so")  # noqa: T201
        happened.append("libraries")

    load_libraries.cache_clear()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", preload, raising=False)
    monkeypatch.setattr(ort, "InferenceSession", open_session)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"CUDAExecutionProvider could not be started"):
            OnnxRuntimeEngine(b"", "cuda")
    assert happened == ["libraries", "session", "session"]
    assert capsys.readouterr().out == ""
    load_libraries.cache_clear()


def test_onnx_runtime_says_where_nodes_went() -> None:
    ort = onnxruntime_engine.load()
    if not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime does not say")
    from pairvpr.runtime.engines.onnxruntime_cuda import RECORD_ASSIGNMENT

    options = ort.SessionOptions()
    options.add_session_config_entry(*RECORD_ASSIGNMENT)
    engine = OnnxRuntimeEngine(Bundle.open(default_bundle()).graph("fp16", "pair_prefix", cpu=False), options=options)
    with pytest.raises(EngineError, match=r"leaves .*LayerNormalization, MatMul.* to the CPU"):
        refuse_cpu_work(engine.session, "pair_prefix", "CUDAExecutionProvider")
