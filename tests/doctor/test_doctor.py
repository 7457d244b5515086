"""The doctor says what is wrong in a line, whatever it is, and never fails itself."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

import pairvpr
from pairvpr import machine
from pairvpr.cli.main import main
from pairvpr.doctor import Check, engines, examine, format_report, healthy
from pairvpr.doctor.check import REINSTALL
from pairvpr.doctor.engines import tensorrt
from pairvpr.doctor.models import tuned_setting
from pairvpr.errors import EngineError
from pairvpr.runtime import model as runtime_model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.calibrated.tuning import RuntimeSetting, Tuning
from pairvpr.runtime.engines import onnxruntime as onnxruntime_engine
from pairvpr.runtime.engines import openvino as openvino_engine
from pairvpr.runtime.engines.tensorrt import cudart
from pairvpr.runtime.map import MapWriter
from tests.html.page_reader import Page
from tests.runtime.engines import gpu_on_cpu


def check(checks: list[Check], name: str) -> Check:
    (found,) = (each for each in checks if each.name == name)
    return found


def fake_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Other versions of some distributions, None for one that is not installed; - is written _."""
    true_version = importlib.metadata.version

    def version(distribution: str) -> str:
        value = versions.get(distribution.replace("-", "_"), "")
        if value is None:
            raise importlib.metadata.PackageNotFoundError(distribution)
        return value or true_version(distribution)

    monkeypatch.setattr(importlib.metadata, "version", version)


def fake_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(command))


def test_everything_is_examined_and_works() -> None:
    checks = examine()
    names = [each.name for each in checks]
    assert len(names) == len(set(names))
    for name in ("numpy", "pillow", "faiss-cpu", "click", "safetensors", "ONNX Runtime", "ONNX Runtime on cpu"):
        assert check(checks, name).state == "ok"
    assert check(checks, "default model").state == "ok"
    assert check(checks, "reference check").state == "ok"
    assert healthy(checks)
    assert all(each.remedy for each in checks if each.state in ("missing", "broken"))


def test_blocked_engine_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    fake_versions(monkeypatch, onnxruntime=None, onnxruntime_gpu=None)
    checks = examine()
    engine = check(checks, "ONNX Runtime")
    assert engine.state == "missing"
    assert engine.remedy == 'pip install "pairvpr[cpu]"'
    assert not healthy(checks)
    assert "does not work" in format_report(checks)


def test_engine_that_is_installed_but_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    fake_versions(monkeypatch, onnxruntime="1.20.0", onnxruntime_gpu=None)
    checks = examine()
    engine = check(checks, "ONNX Runtime")
    assert engine.state == "broken"
    assert engine.remedy == "pip install --force-reinstall --no-deps onnxruntime"
    assert not healthy(checks)


def test_two_engines_that_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_versions(monkeypatch, onnxruntime="1.20.0", onnxruntime_gpu="1.20.0")
    engine = check(examine(), "ONNX Runtime")
    assert engine.state == "broken"
    assert "onnxruntime and onnxruntime-gpu are both installed" in engine.detail
    assert engine.remedy is not None
    assert engine.remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install")


def test_engine_that_fails_in_an_unforeseen_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict[str, str | None]:
        raise RuntimeError("unheard\nof")

    monkeypatch.setattr(onnxruntime_engine, "try_devices", fail)
    checks = examine()
    assert check(checks, "ONNX Runtime") == Check("ONNX Runtime", "broken", "RuntimeError: unheard of", REINSTALL)
    assert not healthy(checks)


def test_openvino_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    checks = examine()
    assert check(checks, "OpenVINO").state == "missing"
    assert check(checks, "OpenVINO").remedy == 'pip install "pairvpr[openvino]"'
    assert healthy(checks)


@pytest.mark.parametrize(
    ("tried", "state", "told"),
    [
        ({"f32": None, "bf16": None}, "ok", "in float32 and bfloat16"),
        ({"f32": None, "bf16": "cannot"}, "ok", "in float32; this CPU has no bfloat16"),
        ({"f32": "wrong result", "bf16": None}, "broken", "wrong result"),
    ],
)
def test_openvino_is_tried(
    monkeypatch: pytest.MonkeyPatch, tried: dict[str, str | None], state: str, told: str
) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO")
    monkeypatch.setattr(openvino_engine, "try_arithmetics", lambda: tried)
    checks = examine()
    assert check(checks, "OpenVINO").state == state
    assert told in check(checks, "OpenVINO").detail
    assert healthy(checks) == (state == "ok")


def test_missing_base_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    # Importing the modules again sets them as attributes of the package, too, where later tests would find them.
    monkeypatch.setattr(pairvpr, "runtime", sys.modules["pairvpr.runtime"])
    for name in [name for name in sys.modules if name.startswith("pairvpr.runtime")]:
        monkeypatch.delitem(sys.modules, name)
    checks = examine()
    assert check(checks, "faiss-cpu") == Check("faiss-cpu", "missing", "not installed", "pip install faiss-cpu")
    assert not healthy(checks)


def test_cuda_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = {"cpu": None, "cuda": "CUDAExecutionProvider could not be started"}
    monkeypatch.setattr(onnxruntime_engine, "try_devices", lambda: tried)
    monkeypatch.setattr(machine, "nvidia_gpus", list)
    checks = examine()
    assert check(checks, "ONNX Runtime on cuda").state == "info"
    assert healthy(checks)
    fake_nvidia_smi(monkeypatch, tmp_path, "exit 0")
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: ["A GPU, driver 1, 8 GiB"])
    checks = examine()
    assert check(checks, "ONNX Runtime on cuda").state == "broken"
    assert check(checks, "ONNX Runtime on cuda").detail == tried["cuda"]
    assert not healthy(checks)


def test_gpu_without_an_engine_that_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_versions(monkeypatch, onnxruntime="1.20.0", onnxruntime_gpu=None)
    monkeypatch.setattr(onnxruntime_engine, "try_devices", lambda: {"cpu": None})
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: ["A GPU, driver 1, 8 GiB"])
    monkeypatch.setattr(machine, "jetson_release", lambda: None)
    checks = examine()
    cuda = check(checks, "ONNX Runtime on cuda")
    assert cuda.state == "missing"
    assert cuda.remedy == 'pip uninstall -y onnxruntime && pip install "pairvpr[gpu]"'
    assert healthy(checks)
    monkeypatch.setattr(machine, "jetson_release", lambda: "R36.4.3")
    cuda = check(examine(), "ONNX Runtime on cuda")
    assert (cuda.state, cuda.remedy) == ("info", None)  # no wheel has code for a Jetson's GPU
    assert "on a Jetson use TensorRT" in cuda.detail


def test_missing_and_damaged_default_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    monkeypatch.setattr(runtime_model, "default_bundle", lambda: folder)
    checks = examine()
    assert check(checks, "default model").state == "missing"
    assert not healthy(checks)
    folder.mkdir()
    (folder / "bundle.json").write_text("{}")
    damaged = check(examine(), "default model")
    assert damaged.state == "broken"
    assert "bundle.json" in damaged.detail


def test_default_model_with_a_flipped_byte(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    shutil.copytree(runtime_model.default_bundle(), folder)
    file = folder / "reference.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(runtime_model, "default_bundle", lambda: folder)
    checks = examine()
    assert check(checks, "default model").state == "broken"
    assert "reference.safetensors" in check(checks, "default model").detail
    assert not healthy(checks)


def test_engine_error_in_the_reference_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: object) -> None:
        raise EngineError("no engine")

    monkeypatch.setattr(runtime_model, "load_model", fail)
    assert check(examine(), "reference check").detail == "no engine"


def test_missing_optional_parts_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_versions(monkeypatch, torch=None, timm=None, onnx=None, onnxscript=None)
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "rerun", None)
    checks = examine()
    for name in ("torch", "timm", "onnx", "onnxscript"):
        assert check(checks, name).state == "missing"
        assert check(checks, name).remedy == 'pip install "pairvpr[export]"'
    assert check(checks, "PyAV").remedy == 'pip install "pairvpr[video]"'
    assert check(checks, "rerun-sdk").remedy == 'pip install "pairvpr[viz]"'
    assert healthy(checks)
    assert "The missing parts are optional." in format_report(checks)


def test_report_is_aligned() -> None:
    checks = [Check("a", "ok", "fine"), Check("longer", "missing", "gone", "pip install it")]
    lines = format_report(checks).splitlines()
    assert lines[:3] == [
        "ok       a       fine",
        "missing  longer  gone",
        "                 -> pip install it",
    ]
    assert "optional" in lines[-1]
    assert "Everything works" in format_report(checks[:1])


def test_the_checks_are_written_as_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pairvpr.doctor.examine", lambda db: [Check("a <b>", "broken", "gone", "pip install it")])
    out = tmp_path / "doctor.html"
    done = CliRunner().invoke(main, ["doctor", "--html", str(out)])
    assert done.exit_code == 2
    assert done.stdout.endswith(f"page: {out}\n")
    text = Page(out.read_text()).text
    assert "a <b>brokengone -> pip install it" in text
    assert "Recognition does not work here" in text
    done = CliRunner().invoke(main, ["doctor", "--html", str(tmp_path / "no" / "doctor.html")])
    assert (done.exit_code, done.stdout) == (2, "")


def test_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvidia_smi(monkeypatch, tmp_path, "echo 'NVIDIA H200, 570.1, 143771 MiB'; echo 'B, 1, [N/A]'")
    assert machine.nvidia_gpus() == ["NVIDIA H200, driver 570.1, 143771 MiB", "B, driver 1, [N/A]"]
    fake_nvidia_smi(monkeypatch, tmp_path, "echo 'no driver' >&2; echo more >&2; exit 9")
    assert machine.nvidia_gpus() == "nvidia-smi failed (no driver)"
    fake_nvidia_smi(monkeypatch, tmp_path, "exit 0")
    assert machine.nvidia_gpus() == "nvidia-smi failed (no GPU listed)"
    monkeypatch.setattr(machine, "TIMEOUT", 0.2)
    fake_nvidia_smi(monkeypatch, tmp_path, "exec sleep 5")
    assert "no answer" in machine.nvidia_gpus()
    (tmp_path / "nvidia-smi").write_bytes(b"\0")
    assert "cannot be run" in machine.nvidia_gpus()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert machine.nvidia_gpus() == []


def test_jetson(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        Path("/proc/device-tree/model"): "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
        Path("/etc/nv_tegra_release"): "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI",
    }
    monkeypatch.setattr(machine, "read", lambda file: files.get(file, ""))
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: "nvidia-smi failed (no GPU listed)")
    monkeypatch.setattr(machine, "power_mode", lambda: "15W")
    checks = examine()
    assert check(checks, "board").detail == "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    assert check(checks, "Jetson Linux").detail == "R36.4.3"
    assert check(checks, "power mode").detail.startswith("15W; more speed: sudo nvpmodel -m N")
    assert check(checks, "GPU").state == "info"
    assert check(checks, "memory").detail == "not known"


@pytest.mark.parametrize(
    ("script", "mode"),
    [
        ("echo 'NVPM WARN: fan mode is not set!'; echo 'NV Power Mode: MAXN_SUPER'; echo 2", "MAXN_SUPER"),
        ("echo 'NVPM ERROR: failed to read' >&2; exit 1", None),
        ("exec sleep 5", None),
    ],
)
def test_power_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, mode: str | None) -> None:
    if "sleep" in script:
        monkeypatch.setattr(machine, "TIMEOUT", 0.2)
    fake_nvidia_smi(monkeypatch, tmp_path, f'[ "$1" = -q ] || exit 2; {script}')
    assert machine.power_mode() == mode
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert machine.power_mode() is None


def test_processor_flags() -> None:
    assert machine.cpu_flags("flags\t\t: fpu avx2 avx512f avx512_vnni\n") == ("AVX2", "AVX512", "AVX512-VNNI")
    assert machine.cpu_flags("Features\t: fp asimd asimdhp asimddp i8mm bf16\n") == (
        "NEON", "FP16", "DOT", "I8MM", "BF16",
    )  # fmt: skip
    assert machine.cpu_flags("") == ()


def test_container_quota_and_cameras(tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    assert machine.quota(file) is None
    file.write_text("max 100000\n")
    assert machine.quota(file) is None
    file.write_text("150000 100000\n")
    assert machine.quota(file) == 1.5
    for name in ("video10", "video2", "videoX"):
        (tmp_path / name).touch()
    assert machine.cameras(tmp_path) == [str(tmp_path / "video2"), str(tmp_path / "video10")]


def test_importing_the_doctor_imports_nothing_heavy() -> None:
    code = "import sys, pairvpr.doctor; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert not {"numpy", "faiss", "onnxruntime", "torch", "av", "PIL"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "version", "state", "told", "remedy"),
    [
        ("tensorrt", "10.16.2", "ok", "10.16.2; `pairvpr engines build`", None),
        ("tensorrt", "10.3.0", "ok", "10.3.0; computes vision transformers wrongly on some boards", "JetPack 7.2"),
        ("tensorrt", "8.6.2", "info", "too old", "JetPack 7.2"),
        ("tensorrt_rtx_bindings", "1.7.1", "ok", "TensorRT-RTX 1.7.1; `pairvpr engines build`", None),
    ],
)
def test_tensorrt_lines(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str, state: str, told: str, remedy: str | None
) -> None:
    module = ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(cudart, "candidates", lambda: iter(["libcudart.so.77"]))
    cudart.load.cache_clear()
    found, *rest = tensorrt(gpu=True)
    assert found.state == state
    assert told in found.detail
    assert (found.remedy is None) if remedy is None else (remedy in (found.remedy or ""))
    if state == "ok":
        (library,) = rest
        assert (library.name, library.state) == ("CUDA runtime", "missing")
        assert "on a Jetson it comes with JetPack" in library.detail


def test_the_cuda_library_is_asked_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tensorrt")
    module.__version__ = "10.16.2"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    driver = gpu_on_cpu.Driver()
    monkeypatch.setattr(cudart, "load", lambda: driver)
    _, library = tensorrt(gpu=True)
    assert (library.state, library.detail) == ("ok", "12.6, libcudart.so.12; Test Board")
    monkeypatch.setattr(driver, "cudaGetDeviceProperties", lambda device: (100, None))
    _, library = tensorrt(gpu=True)
    assert (library.state, "cudaErrorNoDevice" in library.detail) == ("missing", True)


def test_missing_tensorrt_matters_only_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(engines, "find_module", lambda module: None)
    monkeypatch.setattr(machine, "jetson_release", lambda: None)
    assert tensorrt(gpu=True)[0].remedy == "pip install tensorrt"
    assert tensorrt(gpu=False)[0].state == "info"
    monkeypatch.setattr(machine, "jetson_release", lambda: "R36.4.3")
    assert "--system-site-packages" in (tensorrt(gpu=True)[0].remedy or "")


def test_the_setting_tuned_for_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(runtime_model.default_bundle())
    writer = MapWriter.open(
        tmp_path / "map",
        identity=bundle.identity,
        descriptor_dim=bundle.info.dims.descriptor,
        token_shape=(bundle.info.dims.tokens, bundle.info.dims.token_dim),
        install_model=bundle.install,
    )
    writer.close()

    def tuned() -> Check:
        return tuned_setting(tmp_path / "map")

    assert (tuned().state, tuned().remedy) == ("info", f"pairvpr tune --db {tmp_path / 'map'} --images PICTURES")
    setting = RuntimeSetting("cpu", "fp16", exact=True)
    here = Tuning(setting, machine.name(), "", 9, 9, 50, 0, (0.0, 0.07), 0.05, None, 1.0, 2.0, 3.0)
    own = Bundle.open(tmp_path / "map" / "model")
    own.store_calibration("tuning", here.to_json())
    assert (tuned().state, tuned().detail) == (
        "ok",
        f"{tmp_path / 'map'}: cpu fp16, all candidates in full, median 1 ms an answer, p99 2",
    )
    for changed, problem in (
        (dataclasses.replace(here, computer="a robot"), "it was measured on a robot, this is "),
        (dataclasses.replace(here, setting=RuntimeSetting("cpu", "int8")), "no int8 graphs in this bundle"),
    ):
        own.store_calibration("tuning", changed.to_json())
        assert tuned().state == "missing"
        assert "not used, the defaults are used: " in tuned().detail
        assert problem in tuned().detail
        assert healthy([tuned()])
    assert tuned_setting(tmp_path / "nowhere").state == "broken"
