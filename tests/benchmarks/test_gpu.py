"""The GPU benchmark, all of it, at a tiny size on a CPU: on a GPU no more than the device changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from benchmarks import gpu
from benchmarks.gpu_sides import NamedJobs
from benchmarks.gpu_speed import SWEEP


@pytest.mark.slow
def test_the_whole_of_it_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    code = gpu.main(
        [*["--device", "cpu", "--sizes", "tiny", "--candidates", "10", "--rounds", "2", "--out"], str(file)]
    )
    page = capsys.readouterr().out
    assert code == 0, page
    measured = json.loads(file.read_text())["sizes"]["tiny"]
    assert {(row["graph"], row["precision"]) for row in measured["exactness"]} == {
        (graph, precision) for graph in ("encoder", "pair_prefix", "pair_suffix") for precision in ("fp32", "fp16")
    }
    assert all(row["ok"] and row["relative_error"] < 0.02 for row in measured["exactness"])
    assert set(measured["sides"]) == {"torch eager", "torch compiled", "cpu fp16"}
    for side in measured["sides"].values():
        assert side["first_answer_seconds"] > 0
        assert side["memory_bytes"] > 1e7
        for job, sizes in SWEEP.items():
            assert side[job]["batch"] in sizes
            assert set(side[job]["swept_milliseconds"]) == {str(size) for size in sizes}
            assert side[job]["share_of_matrix_rate"] > 0
    assert measured["sides"]["torch eager"]["rerank"]["times_as_fast_as"]["torch eager"] == 1
    assert page.count("cpu fp16") == 2
    assert "WRONG" not in page


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


def test_what_does_not_fit_into_memory_is_left_out() -> None:
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
