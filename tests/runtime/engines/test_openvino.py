"""OpenVINO answers as ONNX Runtime does, in the arithmetic that was asked for and no other."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr.cli.run import main
from pairvpr.errors import EngineError
from pairvpr.machine import usable_cores
from pairvpr.runtime import Features, Model, load_model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.engines.base import TINY_GRAPH
from pairvpr.runtime.engines.open import open_engines
from pairvpr.runtime.engines.openvino import OpenVinoEngine, core, try_arithmetics
from pairvpr.runtime.mapping.builder import add_pictures
from pairvpr.runtime.model import SUMMARIES, default_bundle
from pairvpr.runtime.reference import check_reference
from tests.scenes import draw_scene

openvino = pytest.importorskip("openvino", reason='needs OpenVINO: pip install "pairvpr[openvino]"')

# Float32 against float32; bfloat16 is off by a hundred times as much.
CLOSE = {"rtol": 0, "atol": 1e-4}  # of descriptors
CLOSE_SCORES = {"rtol": 1e-3, "atol": 5e-3}  # they reach 20


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(device="openvino")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [draw_scene(place, 0, (96, 128)) for place in range(6)]


@pytest.fixture(scope="module")
def truth(images: list[np.ndarray]) -> tuple[Features, np.ndarray]:
    """Features and scores of ONNX Runtime."""
    model = load_model(device="cpu")
    features = model.encode(images)
    return features, model.score(features[0], features)


def claim(monkeypatch: pytest.MonkeyPatch, **properties: object) -> None:
    """Compiled graphs that tell other properties than the true ones."""
    true = openvino.CompiledModel.get_property

    def get_property(self: object, name: str) -> object:
        return properties.get(name) or true(self, name)

    monkeypatch.setattr(openvino.CompiledModel, "get_property", get_property)


def needs_bfloat16() -> None:
    if "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")


def test_it_computes_what_onnx_runtime_computes(model: Model, images: list, truth: tuple[Features, np.ndarray]) -> None:
    features = model.encode(images)
    assert features.descriptors.dtype == features.tokens.dtype == np.float32
    np.testing.assert_allclose(features.descriptors, truth[0].descriptors, **CLOSE)
    np.testing.assert_allclose(features.tokens, truth[0].tokens, rtol=0, atol=2e-3)
    scores = model.score(truth[0][0], truth[0])
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, truth[1], **CLOSE_SCORES)
    assert check_reference(model).ok


def test_any_batch_size_gives_the_same(model: Model, images: list, truth: tuple[Features, np.ndarray]) -> None:
    features = truth[0]
    for size in (1, 4, 6, 2):
        batches = Model(model.bundle, model.engines, size)
        np.testing.assert_allclose(batches.encode(images).descriptors, features.descriptors, **CLOSE)
        np.testing.assert_allclose(batches.score(features[0], features), truth[1], **CLOSE_SCORES)


def test_fewer_database_tokens_and_candidates(model: Model, truth: tuple[Features, np.ndarray]) -> None:
    """Both lengths vary, and `keep` selects, as in ONNX Runtime."""
    query, database = truth[0].tokens[:1], truth[0].tokens[:, :30]
    scores = []
    for engines in (model.engines, load_model(device="cpu").engines):
        tokens = {"query_tokens": query, "database_tokens": database}
        states = engines.pair_prefix.run(tokens)
        assert set(states) == {"query_state", "database_state", *SUMMARIES}
        scores.append(
            engines.pair_suffix.run(
                {
                    **tokens,
                    "query_state": states["query_state"],
                    "database_state": states["database_state"],
                    "keep": np.array([4, 1]),
                }
            )["scores"]
        )
    np.testing.assert_allclose(*scores, **CLOSE_SCORES)


def test_float32_is_asked_for_and_read_back(model: Model) -> None:
    for precision in (None, "fp16"):
        engines = open_engines(model.bundle, "openvino", precision)
        assert (engines.device, engines.precision) == ("openvino", "fp16")
        assert engines.description.endswith("on cpu, fp16 weights, float32 arithmetic")
        assert isinstance(engines.encoder, OpenVinoEngine)
        assert engines.encoder.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_bfloat16_is_had_where_it_is_asked_for(truth: tuple[Features, np.ndarray]) -> None:
    needs_bfloat16()
    model = load_model(device="openvino", precision="bf16")
    assert model.engines.precision == "bf16"
    assert model.engines.description.endswith("fp16 weights, bfloat16 arithmetic")
    assert check_reference(model).ok
    difference = np.abs(model.score(truth[0][0], truth[0]) - truth[1]).max()
    assert CLOSE["atol"] < difference < 0.01 * np.ptp(truth[1])


@pytest.mark.parametrize(
    "properties", [{"INFERENCE_PRECISION_HINT": openvino.Type.f32}, {"EXECUTION_DEVICES": ["GPU.0"]}]
)
def test_another_arithmetic_or_device_than_asked_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, properties: dict[str, object]
) -> None:
    claim(monkeypatch, **properties)
    with pytest.raises(EngineError, match=r"cannot compute in bfloat16 here .*choose another --precision") as error:
        load_model(device="openvino", precision="bf16")
    assert "\n" not in str(error.value)
    assert try_arithmetics()["bf16"] is not None


def test_threads(model: Model) -> None:
    for threads in (1, min(2, usable_cores())):  # OpenVINO takes no more than the cores that it may use
        engine = OpenVinoEngine(TINY_GRAPH, threads=threads)
        assert engine.compiled.get_property("INFERENCE_NUM_THREADS") == threads
    engines = open_engines(model.bundle, "openvino", threads=1)
    assert isinstance(engines.pair_suffix, OpenVinoEngine)
    assert engines.pair_suffix.compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_threads_of_the_caller_share_an_engine(model: Model, truth: tuple[Features, np.ndarray]) -> None:
    found: dict[int, np.ndarray] = {}

    def score(query: int) -> None:
        found[query] = model.score(truth[0][query], truth[0])

    callers = [threading.Thread(target=score, args=(query,)) for query in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for query in range(4):
        np.testing.assert_allclose(found[query], model.score(truth[0][query], truth[0]), **CLOSE)


def test_the_tiny_graph_runs() -> None:
    x = np.array([1.5, -2.0, 1e10], np.float32)
    engine = OpenVinoEngine(TINY_GRAPH)
    np.testing.assert_array_equal(engine.run({"x": x})["y"], x + x)
    # Floats of other widths and arrays with gaps are taken as well.
    np.testing.assert_array_equal(engine.run({"x": np.arange(6.0)[::2]})["y"], np.array([0, 4, 8], np.float32))
    assert try_arithmetics()["f32"] is None


SIGNALLED = """
import os, signal
from pairvpr.runtime.engines.base import TINY_GRAPH
from pairvpr.runtime.engines.openvino import OpenVinoEngine
engines = [OpenVinoEngine(TINY_GRAPH) for _ in range(3)]
while engines:
    engines.pop(0)
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("options", [[], ["-X", "faulthandler"]], ids=["plain", "with-faulthandler"])
def test_a_signal_is_heard_after_engines_have_gone(options: list[str]) -> None:
    """With a Core for each engine it killed the process: its handler's stack had gone with them."""
    command = [sys.executable, *options, "-c", SIGNALLED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done


@pytest.mark.parametrize("graph", [b"", b"no graph", TINY_GRAPH[:-3]])
def test_a_graph_that_does_not_load(graph: bytes) -> None:
    with pytest.raises(EngineError, match="graph: OpenVINO cannot load it") as error:
        OpenVinoEngine(graph)
    assert "\n" not in str(error.value)
    assert "Exception from" not in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"x": np.zeros((2, 2), np.float32)}, "incompatible"),
        ({"x": np.zeros(2, np.int64)}, "x is int64, the graph takes float32"),
        ({}, "the graph takes x"),
        ({"x": np.zeros(2, np.float32), "z": np.zeros(2)}, "inputs x, z, the graph takes x"),
    ],
)
def test_inputs_that_a_graph_cannot_take(inputs: dict[str, np.ndarray], told: str) -> None:
    with pytest.raises(EngineError, match="OpenVINO failed") as error:
        OpenVinoEngine(TINY_GRAPH).run(inputs)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_openvino_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r'OpenVINO cannot be imported .*; run pip install "pairvpr\[openvino\]"'):
        load_model(device="openvino")


def test_a_precision_that_the_bundle_has_not() -> None:
    with pytest.raises(EngineError, match=r"no fp32 graphs in this bundle \(it has: fp16\)"):
        open_engines(Bundle.open(default_bundle()), "openvino", "fp32")


def test_a_map_is_asked(tmp_path: Path, images: list[np.ndarray], model: Model) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for place in range(3):
        Image.fromarray(images[place]).save(pictures / f"p{place}.png")
    add_pictures(pictures, tmp_path / "map", model, create=True)
    command = ["--db", str(tmp_path / "map"), "--query", str(pictures / "p1.png"), "--format", "jsonl"]
    answers = {}
    for device in ("cpu", "openvino"):
        result = CliRunner().invoke(main, [*command, "--device", device])
        assert result.exit_code == 0, result.stderr
        answers[device] = json.loads(result.stdout)
        assert ("OpenVINO" in result.stderr) == (device == "openvino")
    matches = [[match["name"] for match in answer["matches"]] for answer in answers.values()]
    assert matches[0] == matches[1]
    refused = CliRunner().invoke(main, [*command, "--device", "cpu", "--precision", "bf16"])
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert "needs --device openvino, not" in refused.stderr
