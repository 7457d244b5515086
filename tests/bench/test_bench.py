"""`pairvpr bench`: its counts against others', its sums, and the page."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr import machine
from pairvpr.bench import run as bench_run
from pairvpr.bench.boards import LAUNCH, Board, project
from pairvpr.bench.run import Step, answer_work, summarise
from pairvpr.bench.work import GraphWork, Work, activations_of, count_work, flop_of
from pairvpr.cli.log import say_busy
from pairvpr.cli.main import main
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.calibrated.cascade import Cascade, Look
from pairvpr.runtime.model import default_bundle
from tests.html.page_reader import Page
from tests.scenes import draw_scene

GRAPHS = {
    "encoder": GraphWork(Work(0, 1000), Work(10e9, 1)),
    "pair_look": GraphWork(Work(1e8, 10), Work(4e8, 1)),
    "pair_prefix": GraphWork(Work(1e9, 100), Work(2e9, 2)),
    "pair_suffix": GraphWork(Work(3e9, 200), Work(5e9, 4)),
}


@pytest.mark.parametrize(
    ("operation", "inputs", "output", "flop"),
    [
        ("MatMul", [[5, 7, 3], [3, 4]], [5, 7, 4], 2 * 5 * 7 * 3 * 4),
        ("MatMul", [[2, 6, 7, 3], [2, 6, 3, 7]], [2, 6, 7, 7], 2 * 2 * 6 * 7 * 3 * 7),
        ("Gemm", [[2, 3], [5, 3], [5]], [2, 5], 2 * 2 * 3 * 5),
        ("Gemm", [[3, 2], [3, 5]], [2, 5], 2 * 2 * 3 * 5),
        ("Conv", [[1, 3, 8, 8], [16, 3, 4, 4]], [1, 16, 2, 2], 2 * 16 * 2 * 2 * 3 * 4 * 4),
        ("Conv", [[1, 8, 8, 8], [8, 1, 3, 3]], [1, 8, 6, 6], 2 * 8 * 6 * 6 * 9),  # depthwise
        ("Add", [[2, 3], [2, 3]], [2, 3], 0),
    ],
)
def test_flop_of_a_node(operation: str, inputs: list[list[int]], output: list[int], flop: int) -> None:
    assert flop_of(operation, inputs, output) == flop


@pytest.mark.parametrize(
    ("operation", "inputs", "output", "numbers"),
    [
        ("MatMul", [[5, 7, 3], [3, 4]], [5, 7, 4], 5 * 7 * 3 + 3 * 4 + 5 * 7 * 4),
        ("Gemm", [[2, 3], [3, 5], [5]], [2, 5], 2 * 3 + 3 * 5 + 2 * 5),
        ("LayerNormalization", [[2, 7, 3], [3], [3]], [2, 7, 3], 2 * 2 * 7 * 3),
        ("Add", [[2, 3], [2, 3]], [2, 3], 0),
    ],
)
def test_activations_of_a_node(operation: str, inputs: list[list[int]], output: list[int], numbers: int) -> None:
    assert activations_of(operation, inputs, output) == 2 * numbers


@pytest.mark.parametrize("softmax", ["Softmax", "Exp"])
def test_scores_of_an_attention_stay_on_the_chip(softmax: str) -> None:
    """What is left of an attention are queries, keys, values and the result."""
    heads, n, m, width = 6, 50, 49, 64
    scores, q, k, v = [heads, n, m], [heads, n, width], [heads, width, m], [heads, m, width]
    nodes = (("MatMul", [q, k], scores), (softmax, [scores], scores), ("MatMul", [scores, v], q))
    assert sum(activations_of(*node) for node in nodes) == 2 * heads * width * (2 * n + 2 * m)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_prefix_is_counted_as_by_hand(share: float) -> None:
    """Blocks of self-attention, cross-attention and an MLP four times as wide, in both orders."""
    bundle = Bundle.open(default_bundle())
    t, d = bundle.info.dims.tokens, bundle.info.dims.token_dim
    m = int(share * t)
    assert bundle.info.dims.split == 1
    rows = (t + 1, m + 1)  # with class tokens: the query's, the database's
    # Until it looks at a candidate the query is one for all: its self-attention, its keys and values, what it asks.
    products = 2 * d * d * (rows[1] * 4 + sum(rows) * 2 - rows[0] + sum(rows) * 8 + m * 2)
    attention = 4 * d * (rows[1] ** 2 + rows[0] * m + rows[1] * t)
    shared = 2 * d * d * (rows[0] * 5 + t * 2) + 4 * d * rows[0] ** 2
    counted = count_work(bundle, m)["pair_prefix"]
    assert counted.each.flop == products + attention
    assert counted.once.flop == shared
    weights = bundle.info.files[bundle.info.precisions["fp16"].graphs["pair_prefix"].weights].bytes
    assert counted.once.bytes == pytest.approx(weights + 2 * t * d, rel=0.01)
    assert counted.each.kernels == 0  # one more candidate starts no more of them
    assert 10 < counted.once.kernels < 60
    # database tokens in; both states, class tokens and means out
    assert counted.each.bytes == 2 * d * (m + sum(rows) + 4)


def test_the_graphs_are_counted_as_torch_counts_the_modules(tiny_bundle: Path, checkpoint_of) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from pairvpr.export.tracing import graph_specs
    from pairvpr.model import load_checkpoint

    bundle = Bundle.open(tiny_bundle)
    tokens = bundle.info.dims.tokens
    specs = graph_specs(load_checkpoint(checkpoint_of("tiny-decoder")).network, "fp32")
    counted = count_work(bundle, tokens - 1)  # the length in the example's inputs
    for name, items in (("encoder", 2), ("pair_look", 3), ("pair_prefix", 3), ("pair_suffix", 2)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            specs[name].module(*specs[name].inputs.values())
        assert counted[name].total(items, 1).flop == pytest.approx(counter.get_total_flops(), rel=1e-6), name


def test_work_of_an_answer_with_and_without_a_cascade() -> None:
    work = answer_work(GRAPHS, candidates=10, kept=10, batch=4, cascade=None)
    assert work["encode"] == Work(10e9, 1001)
    assert work["rerank"] == Work(3 * (1e9 + 3e9) + 10 * (2e9 + 5e9), 3 * 300 + 10 * 6)
    looks = [
        Look(graph, np.zeros(2, np.float32), 0.0, 1.0, kept)
        for graph, kept in (("pair_look", 0.3), ("pair_prefix", 0.2))
    ]
    cascade = Cascade("", "", 0.1, looks, 0.998, 10, 1, 1, 1, (0.0, 1.0), 0.8)
    fewer = answer_work(GRAPHS, candidates=10, kept=2.5, batch=4, cascade=cascade)
    items = 8 * 4e8 + 3 * 2e9 + 2.5 * 5e9
    assert fewer["rerank"].flop == pytest.approx(3 * (1e8 + 1e9 + 3e9) + items)
    only = answer_work(GRAPHS, 10, 2.5, 4, dataclasses.replace(cascade, looks=looks[1:], compared=1.0))
    assert work["rerank"].flop - only["rerank"].flop == pytest.approx(7.5 * 5e9)


def test_percentiles_and_rates() -> None:
    timings = [{"encode": float(ms), "total": 2.0 * ms} for ms in range(1, 101)]
    steps = summarise(timings, {"encode": Work(101e6, 5)})
    assert steps["encode"].milliseconds == pytest.approx((50.5, 95.05, 99.01))
    assert steps["total"] == Step(pytest.approx((101, 190.1, 198.02)))
    assert steps["encode"].gflops == pytest.approx(2)
    assert steps["total"].gflops is None


def test_a_projection_is_the_slower_of_products_and_memory_and_the_activations() -> None:
    board = Board("one", tflops=1, gigabytes=10)
    work = {"encode": Work(1e12, 1e9), "rerank": Work(1e9, 40e9, activations=5e9)}
    (projection,) = project(work, [board])
    assert projection.seconds == pytest.approx((4 + 4.5, 2 + 4.5))
    assert not projection.launching_dominates


def test_small_work_is_dominated_by_starting_kernels() -> None:
    board = Board("one", tflops=1, gigabytes=10)
    (small,) = project({"rerank": Work(1e6, 1e3, kernels=100)}, [board])
    assert small.launching == pytest.approx(100 * LAUNCH)
    assert small.launching_dominates


def test_a_page_and_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "MATRIX", 64)
    (tmp_path / "in").mkdir()
    for place in range(3):
        Image.fromarray(draw_scene(place, 0, (96, 128))).save(tmp_path / "in" / f"{place}.png")
    file = tmp_path / "bench.json"
    arguments = ["bench", "--images", str(tmp_path / "in"), "--queries", "2", "--device", "cpu", "--json", str(file)]
    result = CliRunner().invoke(main, [*arguments, "--html", str(tmp_path / "bench.html")])
    assert result.exit_code == 0, result.output
    page = Page((tmp_path / "bench.html").read_text())
    assert page.count("table") == 3
    for part in (
        "2, 3 candidates each, 3 compared in full",
        "rerank",
        "A projection, not a measurement",
        "Jetson Orin",
    ):
        assert part in " ".join(page.text.split())
    for part in ("2 answers, 3 candidates", "PROJECTION", "A projection, not a measurement", "Jetson Orin Nano Super"):
        assert part in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 110
    found = json.loads(file.read_text())
    assert list(found["steps"]) == ["decode", "preprocess", "encode", "search", "gather", "rerank", "total"]
    for step in found["steps"].values():
        assert 0 < step["p50"] <= step["p95"] <= step["p99"]
    assert found["steps"]["rerank"]["flop"] > 0
    assert found["steps"]["encode"]["flop"] > 0
    assert found["map"]["pictures"] == 3
    assert found["peak_memory"] > 20e6
    assert np.isfinite(found["matrix_gflops"])


@pytest.mark.parametrize(("load", "warned"), [(0.5, False), (2.0, False), (6.91, True)])
def test_a_busy_computer_is_told_once(
    load: float, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    say_busy()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    if warned:
        assert caplog.messages[0].startswith("this computer is busy (load 6.9, ")


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench", "--json", str(tmp_path / "no" / "bench.json")])
    assert result.exit_code == 2
    assert "bench.json" in result.stderr
    result = CliRunner().invoke(main, ["bench", "--html", str(tmp_path / "no" / "bench.html")])
    assert result.exit_code == 2
    assert "bench.html: cannot be written" in result.stderr
