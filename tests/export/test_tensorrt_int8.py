"""Test INT8 plans: they are compared with float16 on the device, and kept only if they are better."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pairvpr.cli.main import main
from pairvpr.errors import EngineError
from pairvpr.export import tensorrt as builder
from pairvpr.export.tensorrt_int8 import ROUNDS, WARM_UP
from pairvpr.runtime import load_model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import FILE, GRAPHS, BundleInfo, GraphFiles, PrecisionInfo
from pairvpr.runtime.engines.tensorrt.plans import PlanInfo, info_file
from pairvpr.runtime.model import default_bundle
from pairvpr.runtime.reference import check_reference
from tests.runtime.engines import gpu_on_cpu

FOLDER = "engines/test-board-16sm-10.3.0"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> gpu_on_cpu.Driver:
    monkeypatch.setattr(builder, "Network", gpu_on_cpu.Network)
    monkeypatch.setattr("pairvpr.export.tensorrt_int8.ROUNDS", 3)
    return gpu_on_cpu.install(monkeypatch)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The default bundle with "INT8" graphs: the float16 ones under their names."""
    folder = tmp_path / "nano"
    shutil.copytree(default_bundle(), folder)
    info = Bundle.open(folder).info
    graphs, files = {}, dict(info.files)
    for name, half in info.precisions["fp16"].graphs.items():
        file = f"{name}.int8-fp16.onnx"
        shutil.copyfile(folder / half.file, folder / file)
        graphs[name], files[file] = GraphFiles(file, file, half.weights), files[half.file]
    precisions = {**info.precisions, "int8-fp16": PrecisionInfo(graphs, {})}
    _write(folder, dataclasses.replace(info, files=files, precisions=precisions))
    return Bundle.open(folder)


def _write(folder: Path, info: BundleInfo) -> None:
    (folder / FILE).write_text(info.to_json())


def build(bundle: Bundle) -> Result:
    return CliRunner().invoke(main, ["engines", "build", "--model", str(bundle.path), "--int8", "--batches", "1,2"])


def plans(bundle: Bundle) -> dict[str, PlanInfo]:
    return {plan.name: PlanInfo.load(info_file(plan)) for plan in sorted((bundle.path / FOLDER).glob("*.plan"))}


def test_int8_is_kept_where_it_is_faster(bundle: Bundle, driver: gpu_on_cpu.Driver) -> None:
    """The encoder gains, the prefix loses, the suffix gains less than could be noise."""
    driver.costs = {
        "encoder.int8-fp16.plan": 0.5,
        "pair_prefix.int8-fp16.plan": 1.5,
        "pair_suffix.int8-fp16.plan": 0.99,
    }
    done = build(bundle)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "encoder: INT8 kept (INT8 0.50 ms, FP16 1.00 ms at batch 1, 2.00 times as fast)",
        "pair_look: FP16 kept (INT8 1.00 ms, FP16 1.00 ms at batch 2; INT8 takes 1.00 of the time)",
        "pair_prefix: FP16 kept (INT8 1.50 ms, FP16 1.00 ms at batch 2; INT8 takes 1.50 of the time)",
        "pair_suffix: FP16 kept (INT8 0.99 ms, FP16 1.00 ms at batch 2; INT8 takes 0.99 of the time)",
        f"{bundle.path / FOLDER}: engines of all graphs, within tolerance at every batch size",
    ]
    found = plans(bundle)
    assert {name: info.precision for name, info in found.items()} == {
        "encoder.fp16.plan": "fp16",
        "encoder.int8-fp16.plan": "int8-fp16",
        "pair_look.fp16.plan": "fp16",
        "pair_look.int8-fp16.plan": "fp16",
        "pair_prefix.fp16.plan": "fp16",
        "pair_prefix.int8-fp16.plan": "fp16",
        "pair_suffix.fp16.plan": "fp16",
        "pair_suffix.int8-fp16.plan": "fp16",
    }
    told = json.loads(info_file(bundle.path / FOLDER / "pair_prefix.int8-fp16.plan").read_text())["decision"]
    assert (told["kept"], told["batch"], told["time_share"], told["problem"]) == ("fp16", 2, 1.5, None)
    assert told["milliseconds"] == {"fp16": 1.0, "int8-fp16": 1.5}
    # From now on it is what a robot gets, unless it asks for float16.
    model = load_model(bundle.path)
    assert (model.engines.device, model.engines.precision) == ("tensorrt", "int8-fp16")
    assert model.engines.encoder.execution.name == "encoder.int8-fp16.plan"
    assert check_reference(model).ok
    assert load_model(bundle.path, "tensorrt", "fp16").engines.precision == "fp16"


def test_without_a_gain_no_int8_plans_are_kept(bundle: Bundle, driver: gpu_on_cpu.Driver) -> None:
    driver.costs = {f"{graph}.int8-fp16.plan": 0.5 for graph in GRAPHS}
    assert build(bundle).exit_code == 0
    assert load_model(bundle.path).engines.precision == "int8-fp16"
    driver.costs = {}
    done = build(bundle)
    assert done.stdout.count("FP16 kept") == len(GRAPHS)
    assert set(plans(bundle)) == {f"{graph}.fp16.plan" for graph in GRAPHS}
    assert all((info.decision or {})["kept"] == "fp16" for info in plans(bundle).values())
    assert load_model(bundle.path).engines.precision == "fp16"


def test_wrong_int8_plans_are_not_kept_even_if_they_are_fast(
    bundle: Bundle, driver: gpu_on_cpu.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.costs = {f"{graph}.int8-fp16.plan": 0.5 for graph in GRAPHS}

    def result(self: gpu_on_cpu.Context, name: str, array: np.ndarray) -> np.ndarray:
        if self.execution.source == "encoder.int8-fp16.onnx" and name == "descriptors":
            turned = array + 0.15 * np.roll(array, 1, axis=1)  # within the tolerance, not within the gate
            return turned / np.linalg.norm(turned, axis=1, keepdims=True)
        if self.execution.source == "pair_suffix.int8-fp16.onnx":
            return -array
        return array

    monkeypatch.setattr(gpu_on_cpu.Context, "result", result)
    done = build(bundle)
    assert done.exit_code == 0, done.output
    encoder, look, prefix, suffix, _ = done.stdout.splitlines()
    assert encoder.startswith("encoder: FP16 kept")
    assert "descriptors differ by cosine distance 0.01" in encoder
    assert look.startswith("pair_look: INT8 kept")
    assert prefix.startswith("pair_prefix: INT8 kept")
    assert suffix.startswith("pair_suffix: FP16 kept")
    assert "the int8-fp16 engines are wrong at batch 1" in suffix


def test_stale_int8_plans_are_replaced_by_float16_with_a_note(
    bundle: Bundle, driver: gpu_on_cpu.Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.costs = {"encoder.int8-fp16.plan": 0.5}
    build(bundle)
    plan = bundle.path / FOLDER / "encoder.int8-fp16.plan"
    info_file(plan).write_text(dataclasses.replace(PlanInfo.load(info_file(plan)), tensorrt="10.4.0").to_json())
    with caplog.at_level("INFO", "pairvpr"):
        assert load_model(bundle.path).engines.precision == "fp16"
    assert "not INT8: " in caplog.text
    assert "built by TensorRT 10.4.0" in caplog.text


def test_int8_needs_float16_graphs_to_compare_with(bundle: Bundle, driver: gpu_on_cpu.Driver) -> None:
    precisions = {"int8-fp16": bundle.info.precisions["int8-fp16"]}
    _write(bundle.path, dataclasses.replace(bundle.info, precisions=precisions))
    done = build(bundle)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.output
    assert "no fp16 graphs in this bundle, and INT8 is measured against float16" in done.stderr
    assert not (bundle.path / "engines").exists()


def test_rounds_and_warm_up_are_enough() -> None:
    assert (WARM_UP, ROUNDS) >= (3, 21)  # the second run of a shape records it, the third is the first replay


def test_a_failed_build_leaves_the_bundle_as_it_was(
    bundle: Bundle, driver: gpu_on_cpu.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(bundle)
    before = plans(bundle)
    monkeypatch.setattr(gpu_on_cpu.Network, "types", {"float32": 3})
    with pytest.raises(EngineError, match="TensorRT read it as another precision"):
        builder.build_engines(bundle, "fp16", lambda *_: None, (1, 2))
    assert build(bundle).exit_code == 2
    assert plans(bundle) == before
