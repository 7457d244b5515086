"""The GPU benchmark, all of it, at a tiny size on a CPU: on a GPU no more than the device changes."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from benchmarks import gpu, gpu_speed
from benchmarks.gpu_sides import NamedJobs
from pairvpr.errors import EngineError
from pairvpr.export import tensorrt as builder
from pairvpr.export.verification import Truth
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import GRAPHS, LOOK
from pairvpr.runtime.features import Features
from pairvpr.runtime.model import default_bundle
from tests.runtime.engines import gpu_on_cpu

ROOT = Path(__file__).resolve().parents[2]


FEW = {"encode": (1, 4), "rerank": (5, 10)}


@pytest.mark.slow
def test_the_benchmark_runs_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (gpu, gpu_speed):
        assert module.SWEEP.keys() == FEW.keys()
        monkeypatch.setattr(module, "SWEEP", FEW)
    file = tmp_path / "gpu.json"
    code = gpu.main(
        [*["--device", "cpu", "--sizes", "tiny", "--candidates", "10", "--rounds", "2", "--out"], str(file)]
    )
    page = capsys.readouterr().out
    assert code == 0, page
    measured = json.loads(file.read_text())["sizes"]["tiny"]
    off = {(row["graph"], row["precision"]): row["relative_error"] for row in measured["exactness"]}
    assert off.keys() == {(graph, precision) for graph in GRAPHS for precision in ("fp32", "fp16", "int8-fp16")}
    assert measured["not_measured"] == {}
    for graph in GRAPHS:  # each is the precision that it says: it rounds as coarsely as that does
        assert 0 < off[graph, "fp32"] < 1e-5 < off[graph, "fp16"] < 0.005 < off[graph, "int8-fp16"] < 0.2
    assert all(row["ok"] for row in measured["exactness"])
    assert set(measured["sides"]) == {"torch eager", "torch compiled", "cpu fp16"}
    for side in measured["sides"].values():
        assert side["first_answer_seconds"] > 0
        assert side["memory_bytes"] > 1e7
        for job, sizes in FEW.items():
            assert side[job]["batch"] in sizes
            assert set(side[job]["swept_milliseconds"]) == {str(size) for size in sizes}
            assert side[job]["share_of_matrix_rate"] > 0
    assert measured["sides"]["torch eager"]["rerank"]["times_as_fast_as"]["torch eager"] == 1
    # Our side has no torch in its process, whose memory alone is more than that.
    assert measured["sides"]["cpu fp16"]["memory_bytes"] < 0.7 * measured["sides"]["torch eager"]["memory_bytes"]
    assert page.count("cpu fp16") == 2
    assert "WRONG" not in page


@pytest.mark.parametrize(
    ("precision", "error", "ok"),
    [
        *[("fp32", 1e-6, True), ("fp32", 1e-3, False)],
        *[("fp16", 1e-3, True), ("fp16", 0.1, False)],
        *[("int8-fp16", 0.05, True), ("int8-fp16", 0.5, False), ("int8-fp16", np.nan, False)],
    ],
)
def test_a_wrong_graph_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str, error: float, ok: bool
) -> None:
    random = np.random.default_rng(0)
    descriptors = random.standard_normal((6, 32)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    tokens, summaries = random.standard_normal((2, 6, 4, 8)).astype(np.float32)
    scores = np.arange(6, dtype=np.float32)
    looks = random.standard_normal((6, 2)).astype(np.float32)
    truth = Truth(np.zeros((6, 2, 2, 3), np.uint8), Features(descriptors, tokens), scores, summaries, looks)
    found = {
        **{"engine": "made up", "descriptors": descriptors, "tokens": tokens},
        **{"summaries": summaries * (1 + error), "scores": scores, "looks": looks},
    }

    class Made:
        def __init__(self, *_: object) -> None: ...

        def run(self, job: str) -> tuple[float, dict]:
            return 0.0, found

        def close(self) -> None: ...

    monkeypatch.setattr(gpu, "Side", Made)
    rows = {row["graph"]: row["ok"] for row in gpu.exact(tmp_path, "cuda", precision, truth)}
    assert rows == {"encoder": True, LOOK: True, "pair_prefix": ok, "pair_suffix": True}
    monkeypatch.setitem(found, "scores", -scores)  # whatever is wrong with the answers is of no one graph
    assert not any(row["ok"] for row in gpu.exact(tmp_path, "cuda", precision, truth))


def test_missing_engines_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT that takes no INT8 here leaves the other precisions, and the reason."""
    opened = []

    def build(folder: Path, precision: str) -> None:
        if precision == "int8-fp16":
            raise EngineError("no INT8 here")

    monkeypatch.setattr(gpu, "_build", build)
    monkeypatch.setattr(Bundle, "open", lambda folder: folder)
    monkeypatch.setattr(gpu, "open_engines", lambda *arguments: opened.append(arguments[1:]))
    found, problems = gpu.available(tmp_path, "cuda")
    assert found == {"cuda": ["fp32", "fp16", "int8-fp16"], "tensorrt": ["fp32", "fp16"]}
    assert problems == {"tensorrt int8-fp16": "no INT8 here"}
    assert len(opened) == 5


def test_building_leaves_no_gpu_memory_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sides need it, and what they take is measured by what is left."""
    Bundle.open(default_bundle()).install(tmp_path / "nano")
    driver = gpu_on_cpu.install(monkeypatch)
    monkeypatch.setattr(builder, "Network", gpu_on_cpu.Network)
    monkeypatch.setattr(builder, "build_engines", functools.partial(builder.build_engines, batches=(1, 2)))
    gpu._build(tmp_path / "nano", "fp16")
    assert len(list((tmp_path / "nano").glob("engines/*/*.plan"))) == len(GRAPHS)
    assert driver.copied["to device"] > 0
    assert (driver.blocks, driver.pinned) == ({}, {})


def test_engine_sides_run_without_torch() -> None:
    """A side's process imports the command's module again, and what that imports is in its memory and first answer."""
    script = "import sys, benchmarks.gpu; sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0


def test_without_a_gpu_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert "no NVIDIA GPU" in said.err


def test_an_unknown_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--sizes", "tiny,huge"]) == 2
    assert "no size huge" in capsys.readouterr().err


def test_wrong_graphs_are_seen() -> None:
    truth = np.random.default_rng(0).standard_normal((4, 8))
    assert gpu.relative_error(truth, truth) == 0
    assert gpu.relative_error(1.1 * truth, truth) == pytest.approx(0.1)
    assert not gpu.relative_error(np.full_like(truth, np.nan), truth) <= gpu.RELATIVE["fp16"]


def test_batches_that_do_not_fit_into_memory_are_left_out() -> None:
    def job(batch: int) -> int:
        if batch > 8:
            raise MemoryError("out of memory")
        if batch < 0:
            raise MemoryError("something else")
        return batch

    jobs = NamedJobs({"encode": job}, MemoryError)
    assert jobs["encode 8"]() == 8
    assert jobs["encode 9"]() is None
    with pytest.raises(MemoryError, match="something else"):
        jobs["encode -1"]()
