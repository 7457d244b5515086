"""Test the building of TensorRT engines: checks, interruptions, and the command's output."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pairvpr.cli.main import main
from pairvpr.errors import EngineError
from pairvpr.export import tensorrt as builder
from pairvpr.export.tensorrt import build_engines
from pairvpr.export.tensorrt_progress import BuildProgress
from pairvpr.files import lock_file
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import FILE, GRAPHS, LOOK
from pairvpr.runtime.engines.tensorrt import api as tensorrt_api
from pairvpr.runtime.engines.tensorrt import cudart
from pairvpr.runtime.engines.tensorrt.network import BuildSettings
from pairvpr.runtime.engines.tensorrt.plans import PlanInfo, info_file
from pairvpr.runtime.model import default_bundle, load_model
from pairvpr.runtime.reference import check_reference
from tests.runtime.engines import gpu_on_cpu

FOLDER = "engines/test-board-16sm-10.3.0"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    Bundle.open(default_bundle()).install(tmp_path / "nano")
    return Bundle.open(tmp_path / "nano")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> gpu_on_cpu.Driver:
    monkeypatch.setattr(builder, "Network", gpu_on_cpu.Network)
    return gpu_on_cpu.install(monkeypatch)


def build(bundle: Bundle, precision: str | None = None, batches: tuple[int, ...] = (1, 2)) -> Path:
    return build_engines(bundle, precision, lambda *_: None, batches)


def left(bundle: Bundle) -> set[str]:
    """What there is in `engines/`."""
    found = (bundle.path / "engines").rglob("*")
    return {file.relative_to(bundle.path / "engines").as_posix() for file in found if file.is_file()} - {".lock"}


def block_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither it nor TensorRT-RTX is there."""
    for module in ("tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.usefixtures("driver")
def test_the_command(bundle: Bundle) -> None:
    done = run("engines", "build", "--model", bundle.path, "--batches", "2,1,2")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{bundle.path / FOLDER}: engines of all graphs, within tolerance at every batch size\n"
    assert "building pair_suffix, percent: 100 of 100" in done.stderr
    name = FOLDER.partition("/")[2]
    expected = {f"{name}/{graph}.fp16.{kind}" for graph in GRAPHS for kind in ("plan", "json")}
    assert left(bundle) == {*expected, f"{name}/timing.cache"}
    info = PlanInfo.load(info_file(bundle.path / FOLDER / "encoder.fp16.plan"))
    assert (info.gpu.name, info.gpu.compute_capability, info.tensorrt) == ("Test Board", "8.7", "10.3.0")
    assert info.versions["cuda driver"] == "12.6"
    assert info.sources["encoder.fp16.weights"] == bundle.info.files["encoder.fp16.weights"].sha256
    assert [profile["images"][2][0] for profile in info.profiles] == [1, 2]
    assert info.layer_types == {"fp16": 9, "fp32": 1}


@pytest.mark.usefixtures("driver")
def test_the_options_reach_the_builder(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    class Network(gpu_on_cpu.Network):
        def build(self, profiles, settings, timing_cache, monitor):
            given.append((len(profiles), settings))
            return super().build(profiles, settings, timing_cache, monitor)

    monkeypatch.setattr(builder, "Network", Network)
    options = ["--workspace", "64", "--optimization-level", "5", "--version-compatible", "--hardware-compatible"]
    assert run("engines", "build", "--model", bundle.path, "--batches", "1", *options).exit_code == 0
    assert given == [(1, BuildSettings(64 << 20, 5, True, True))] * len(GRAPHS)
    info = PlanInfo.load(info_file(bundle.path / FOLDER / "encoder.fp16.plan"))
    assert (info.version_compatible, info.hardware_compatible) == (True, True)
    given.clear()
    assert run("engines", "build", "--model", bundle.path, "--batches", "2,1").exit_code == 0
    assert given == [(2, BuildSettings(None, None, False, False))] * len(GRAPHS)


@pytest.mark.parametrize("wrong", ["descriptors", "tokens", LOOK, "scores", "order"])
@pytest.mark.usefixtures("driver")
def test_engines_that_are_wrong_in_every_form_are_not_kept(
    bundle: Bundle, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def result(self: gpu_on_cpu.Context, name: str, array: np.ndarray) -> np.ndarray:
        if len(array) == 1 or name != ("scores" if wrong == "order" else wrong):
            return array  # wrong only where there are several
        return np.roll(array, 1, axis=0) if wrong == "order" else -array

    monkeypatch.setattr(gpu_on_cpu.Context, "result", result)
    with pytest.raises(
        EngineError,
        match=r"the fp16 engines are wrong at batch 2 .* were not kept; .*install JetPack 7.2 \(TensorRT 10",
    ):
        build(bundle)
    assert left(bundle) == {"test-board-16sm-10.3.0/timing.cache"}


FUSED, SEPARATE, FLOAT32 = "fused attention", "separate attention", "float32 arithmetic"


@pytest.mark.parametrize(
    ("broken", "kept", "builds"),
    [
        ({}, [FUSED] * 4, 4),
        ({"encoder": ["fused"]}, [SEPARATE, FUSED, FUSED, FUSED], 5),
        ({LOOK: ["fused"]}, [FUSED, SEPARATE, FUSED, FUSED], 5),
        ({"pair_prefix": ["fused"]}, [FUSED, FUSED, SEPARATE, FUSED], 5),
        ({"pair_suffix": ["fused"]}, [FUSED, FUSED, FUSED, SEPARATE], 6),
        ({"pair_prefix": ["fused"], "pair_suffix": ["fused"]}, [FUSED, FUSED, SEPARATE, SEPARATE], 6),
        ({"encoder": ["fused", "separate"]}, [FLOAT32, FUSED, FUSED, FUSED], 6),
        ({"encoder": ["fused"], "pair_suffix": ["fused", "separate"]}, [SEPARATE, FUSED, FUSED, FLOAT32], 9),
    ],
)
@pytest.mark.usefixtures("driver")
def test_a_wrong_graph_is_built_again_in_another_form(
    bundle: Bundle,
    broken: dict[str, list[str]],
    kept: list[str],
    builds: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As TensorRT 10.3 on an Orin, whose fused attention is wrong. The first form that is right is kept."""
    built = []

    class Network(gpu_on_cpu.Network):
        def build(self, *arguments):
            built.append(self.name)
            return super().build(*arguments)

    def result(self: gpu_on_cpu.Context, name: str, array: np.ndarray) -> np.ndarray:
        graph = self.execution.source.partition(".")[0]
        outputs = ("descriptors", LOOK, "query_state", "scores")
        return -array if self.execution.form in broken.get(graph, ()) and name in outputs else array

    monkeypatch.setattr(builder, "Network", Network)
    monkeypatch.setattr(gpu_on_cpu.Context, "result", result)
    monkeypatch.setattr(
        gpu_on_cpu.Execution, "layer_types", lambda self: {"fp32" if self.form == "float32" else "fp16": 9}
    )
    folder = build(bundle)
    infos = [PlanInfo.load(info_file(folder / f"{graph}.fp16.plan")) for graph in GRAPHS]
    assert [info.form for info in infos] == kept
    assert len(built) == builds
    model = load_model(bundle.path, "tensorrt")
    assert check_reference(model).ok
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == len(set(broken)) or (len(told) == 1 and "pair_prefix and pair_suffix: wrong" in told[0])
    assert all("TensorRT 10.3.0" in line and "which is slower" in line for line in told)


@pytest.mark.parametrize(("gigabytes", "sizes"), [(7.4, [1, 8, 32]), (15.3, [1, 8, 32, 100])])
def test_batches_by_default_fit_the_memory(
    bundle: Bundle, driver: gpu_on_cpu.Driver, gigabytes: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.memory = int(gigabytes * 1e9)
    monkeypatch.setattr(builder.Site, "build_right", lambda self, *_: pytest.fail(f"sizes {self.batches}"))
    with pytest.raises(pytest.fail.Exception, match=re.escape(f"sizes {sizes}")):
        build_engines(bundle, None, lambda *_: None)


@pytest.mark.usefixtures("driver")
def test_a_float32_graph_labelled_float16_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_on_cpu.Network, "types", {"float16": 2, "float32": 1})
    with pytest.raises(EngineError, match=r"TensorRT read it as another precision .*'float32': 1.*; export it again"):
        build(bundle)
    monkeypatch.setattr(gpu_on_cpu.Network, "types", {"float16": 3})
    monkeypatch.setattr(gpu_on_cpu.Execution, "layer_types", lambda self: {"fp32": 12})
    with pytest.raises(EngineError, match=r"TensorRT built no fp16 plan .*'fp32': 12"):
        build(bundle)
    assert not [name for name in left(bundle) if name.endswith(".plan")]


@pytest.mark.usefixtures("driver")
def test_nothing_of_a_graph_is_loaded_while_another_is_built(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards with 8 GB have no room for both."""
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    seen = []

    class Loaded(gpu_on_cpu.Execution):
        def __init__(self, *arguments) -> None:
            alive.add(self)
            super().__init__(*arguments)

    class Network(gpu_on_cpu.Network):
        def __init__(self, file: Path) -> None:
            seen.append(len(alive))
            alive.add(self)
            super().__init__(file)

    monkeypatch.setattr(builder, "Network", Network)
    monkeypatch.setattr(builder, "Execution", Loaded)
    monkeypatch.setattr("pairvpr.runtime.engines.tensorrt.engine.Execution", Loaded)
    build(bundle)
    assert seen == [0] * len(GRAPHS)


@pytest.mark.usefixtures("driver")
def test_the_timing_cache_is_kept_between_builds(bundle: Bundle) -> None:
    build(bundle)
    first = (bundle.path / FOLDER / "timing.cache").read_bytes()
    build(bundle)
    assert (bundle.path / FOLDER / "timing.cache").read_bytes() == first * 2


@pytest.mark.usefixtures("driver")
def test_an_interrupted_build_leaves_the_bundle_as_it_was(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C amid the second graph: what was there stays, what was begun goes."""
    build(bundle)
    before = {file: (bundle.path / "engines" / file).read_bytes() for file in left(bundle) if "timing" not in file}

    class Interrupted(gpu_on_cpu.Network):
        def build(self, profiles, settings, timing_cache, monitor):
            if "prefix" in self.name:
                os.kill(os.getpid(), signal.SIGINT)
            return super().build(profiles, settings, timing_cache, monitor)

    monkeypatch.setattr(builder, "Network", Interrupted)
    handler = signal.getsignal(signal.SIGINT)
    done = run("engines", "build", "--model", bundle.path)
    assert done.exit_code == 130
    assert signal.getsignal(signal.SIGINT) == handler
    assert {file: (bundle.path / "engines" / file).read_bytes() for file in before} == before
    assert {file for file in left(bundle) if "timing" not in file} == set(before)


@pytest.mark.usefixtures("driver")
def test_two_builders_exclude_each_other(bundle: Bundle) -> None:
    (bundle.path / "engines").mkdir()
    with lock_file(bundle.path / "engines" / ".lock", "pairvpr engine builder"):
        done = run("engines", "build", "--model", bundle.path)
    assert done.exit_code == 2
    assert f"engines are being built there by process {os.getpid()} on " in done.stderr
    build(bundle)


def test_without_tensorrt(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    block_tensorrt(monkeypatch)
    done = run("engines", "build", "--model", bundle.path)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "pip install tensorrt" in done.stderr
    assert not (bundle.path / "engines").exists()


def test_export_asks_for_tensorrt_before_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="needs the extra export")
    block_tensorrt(monkeypatch)
    done = run("export", "--fp16", "--tensorrt", "--out", tmp_path / "out")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.output
    assert "TensorRT cannot be imported" in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_the_cuda_library(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_api, "load", lambda: None)
    monkeypatch.setattr(cudart, "candidates", lambda: iter(["libcudart.so.77"]))
    cudart.load.cache_clear()
    with pytest.raises(EngineError, match=r"the CUDA runtime library cannot be loaded .*on a Jetson it comes with"):
        build(bundle)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --model BUNDLE or --db MAP"),
        (["--model", "a", "--db", "b"], "give --model BUNDLE or --db MAP"),
        (["--model", "nowhere"], "no model bundle there"),
        (["--model", "nano", "--int8"], "no int8-fp16 graphs in this bundle"),
        (["--model", "nano", "--batches", "1,x"], "--batches 1,x: give numbers"),
        (["--model", "nano", "--batches", "0,8"], "give sizes of at least 1"),
    ],
)
def test_wrong_options_are_named(bundle: Bundle, arguments: list[str], said: str) -> None:
    done = run("engines", "build", *[bundle.path if word == "nano" else word for word in arguments])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.output
    assert said in done.stderr


@pytest.mark.usefixtures("driver")
def test_a_map_without_room_for_engines(bundle: Bundle) -> None:
    (bundle.path / "engines").write_text("in the way")
    with pytest.raises(EngineError, match=r"engines: cannot be written \(File exists\)"):
        build(bundle)


def test_damaged_graph(bundle: Bundle) -> None:
    file = bundle.path / "pair_prefix.fp16.onnx"
    file.unlink()
    shutil.copyfile(bundle.path / FILE, file)
    script = (
        "import pytest\nfrom tests.runtime.engines import gpu_on_cpu\nfrom pairvpr.export import tensorrt\n"
        "gpu_on_cpu.install(pytest.MonkeyPatch())\ntensorrt.Network = gpu_on_cpu.Network\n"
        "from pairvpr.cli.main import main\nmain()"
    )
    command = [sys.executable, "-c", script, "engines", "build", "--model", str(bundle.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == 2, done.stderr
    assert "pair_prefix.fp16.onnx: damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_progress_only_rises_and_ends_at_100() -> None:
    told: list[int] = []
    progress = BuildProgress(told.append, threading.Event())
    progress.start("build", None, 4)
    progress.start("clone", "build", 10)
    assert progress.step("clone", 4)
    progress.finish("clone")
    progress.step("build", 0)
    progress.start("tactics", "build", 2)
    progress.start("profiles", "tactics", 2)
    progress.step("profiles", 0)
    progress.step("unheard of", 3)
    assert told == [0, 12, 25, 31]
    for name in ("profiles", "tactics", "build"):
        progress.finish(name)
    assert told == [0, 12, 25, 31, 100]


def test_a_stopped_build_reports_no_more_progress() -> None:
    asked = threading.Event()
    told: list[int] = []
    progress = BuildProgress(told.append, asked)
    progress.start("build", None, 2)
    assert progress.step("build", 0)
    asked.set()
    assert not progress.step("build", 1)
    progress.finish("build")
    assert told == [0, 50]  # not 100: it was not done
