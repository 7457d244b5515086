"""On a GPU: both ways to use it give the reference's answers, and do what they are meant to. Skipped without one."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from pairvpr.errors import EngineError
from pairvpr.runtime import Model, load_model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.engines.tensorrt import api as tensorrt_api
from pairvpr.runtime.engines.tensorrt import cuda
from pairvpr.runtime.model import default_bundle
from pairvpr.runtime.reference import Reference, check_reference

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["cuda", "tensorrt"])
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Model:
    """The default model on each engine that a GPU may have here."""
    folder = tmp_path_factory.mktemp("bundles") / "nano"
    Bundle.open(default_bundle()).install(folder)
    if request.param == "tensorrt":
        from pairvpr.export.tensorrt import build_engines

        skip_without_tensorrt()
        build_engines(Bundle.open(folder), "fp16", lambda *_: None, (1, 4, 8))
    else:
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime has no CUDA (pip install onnxruntime-gpu)")
    return load_model(folder, request.param)


def skip_without_tensorrt() -> None:
    """Where neither edition is, or only TensorRT-RTX, which is not made for every GPU."""
    try:
        trt = tensorrt_api.load()
    except EngineError as error:
        pytest.skip(str(error))
    architecture = f"SM{cuda.gpu().compute_capability.replace('.', '')}"
    if tensorrt_api.version().startswith("rtx-") and not hasattr(trt.ComputeCapability, architecture):
        pytest.skip(f"TensorRT-RTX knows no {architecture}")


def test_the_reference_check_passes(model: Model) -> None:
    errors = check_reference(model)
    assert errors.ok, errors


def test_repeated_runs_follow_keep(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    """Also once TensorRT starts what it recorded."""
    truth = Reference.from_bundle(model.bundle)
    tokens = truth.features.tokens
    pairs = model.prefix(tokens[:1], tokens)
    with caplog.at_level(logging.WARNING, "pairvpr"):
        for keep in ([0, 1, 2], [3, 2, 1], [1, 3, 0], [2, 0, 3], [3], [2], [0], [1]):
            np.testing.assert_allclose(model.suffix(pairs, np.array(keep)), truth.scores[keep], atol=0.05, rtol=0.02)
    assert "without CUDA graphs" not in caplog.text


def test_states_stay_and_outlive_the_next_batch(model: Model) -> None:
    truth = Reference.from_bundle(model.bundle)
    tokens = truth.features.tokens
    batches = [model.prefix(tokens[:1], tokens[i : i + 2]) for i in (0, 2, 1)]
    assert not isinstance(batches[0].states["query_state"], np.ndarray)
    pending = [model.start_suffix(pairs, np.array([1, 0])) for pairs in batches]
    for scores, i in zip(pending, (0, 2, 1), strict=True):
        np.testing.assert_allclose(model.finish(scores), truth.scores[[i + 1, i]], atol=0.05, rtol=0.02)


def test_time_is_measured_on_the_gpu() -> None:
    stream = cuda.stream()
    array = stream.upload(np.arange(1 << 20), np.int64)
    copy = cuda.DeviceArray(stream, array.shape, array.dtype)
    assert 0 < stream.milliseconds(lambda: stream.copy(array, copy)) < 1000
    np.testing.assert_array_equal(np.asarray(copy), np.arange(1 << 20))


def test_what_is_recorded_is_replayed_on_new_data() -> None:
    stream = cuda.stream()
    source, target = (stream.upload(np.zeros(1000), np.float32) for _ in range(2))
    recording = stream.record(lambda: stream.copy(source, target))
    for value in (1.0, 2.0):
        stream.copy(stream.upload(np.full(1000, value), np.float32), source)
        recording.start()
        assert np.all(np.asarray(target) == value)
