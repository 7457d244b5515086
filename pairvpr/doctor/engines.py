"""Check the engines: ONNX Runtime and OpenVINO, tried on a small graph, and TensorRT."""

from __future__ import annotations

import importlib

from pairvpr import machine
from pairvpr.doctor.check import Check, find_module, import_problem, installed_version
from pairvpr.errors import EngineError
from pairvpr.printing import hide_native_lines

ENGINE, OPENVINO, CUDA = "ONNX Runtime", "OpenVINO", "CUDA runtime"
ENGINES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
"""Distributions of the module onnxruntime, which overwrite each other's files."""

INSTALL_CPU, INSTALL_GPU = 'pip install "pairvpr[cpu]"', 'pip install "pairvpr[gpu]"'
INSTALL_OPENVINO = 'pip install "pairvpr[openvino]"'
TENSORRT = ("tensorrt", "tensorrt_rtx_bindings")
"""Modules of the editions of TensorRT, in order of preference."""
OLDEST_TENSORRT = (10, 3)
RIGHT_TENSORRT = (10, 12)
"""First version of which no wrong vision transformers are reported."""
JETPACK = "install JetPack 7.2 (TensorRT 10.16), for Orin and Thor; elsewhere a later TensorRT"


def onnxruntime(gpu: bool) -> list[Check]:
    """Check ONNX Runtime, and try every device that it claims. gpu: this computer has an NVIDIA GPU."""
    installed = [name for name in ENGINES if installed_version(name) is not None]
    # The registry's onnxruntime-gpu has no code for the GPUs of Jetsons (Orin 8.7, Thor 11.0).
    install = INSTALL_GPU if gpu and machine.jetson_release() is None else INSTALL_CPU
    if len(installed) > 1:
        remedy = f"pip uninstall -y {' '.join(installed)} && {install}"
        detail = f"{' and '.join(installed)} are both installed and overwrite each other"
        return [Check(ENGINE, "broken", detail, remedy)]
    with hide_native_lines("device discovery failed"):  # as the engine does
        problem = import_problem("onnxruntime")
    if problem is not None and not installed:
        return [Check(ENGINE, "missing", "not installed", install)]
    if problem is not None:
        return [Check(ENGINE, "broken", problem, f"pip install --force-reinstall --no-deps {installed[0]}")]
    from pairvpr.runtime.engines import onnxruntime as onnxruntime_engine

    try:
        version, tried = onnxruntime_engine.version(), onnxruntime_engine.try_devices()
    except EngineError as error:
        return [Check(ENGINE, "broken", str(error), install)]
    title = ", ".join(f"{name} {installed_version(name)}" for name in installed) or f"version {version}"
    checks = [Check(ENGINE, "ok", title), *(_device(name, fault, gpu) for name, fault in tried.items())]
    if gpu and "cuda" not in tried:
        name, detail = f"{ENGINE} on cuda", "optional: this ONNX Runtime was built without CUDA"
        if install == INSTALL_GPU:
            remedy = f"pip uninstall -y {' '.join(installed or ENGINES[:1])} && {install}"
            checks.append(Check(name, "missing", detail, remedy))
        else:
            checks.append(Check(name, "info", f"{detail}; on a Jetson use TensorRT (`pairvpr engines build`)"))
    return checks


def _device(name: str, problem: str | None, gpu: bool) -> Check:
    title = f"{ENGINE} on {name}"
    if problem is None:
        return Check(title, "ok", "ran a small graph")
    if name == "cuda" and not gpu:
        return Check(title, "info", "this computer has no NVIDIA GPU", INSTALL_CPU)
    remedy = "install the CUDA and cuDNN that this ONNX Runtime was built for" if name == "cuda" else None
    return Check(title, "broken", problem, remedy)


def openvino() -> list[Check]:
    """Check OpenVINO on a small graph, in float32 and bfloat16."""
    if find_module(OPENVINO.lower()) is None:
        return [Check(OPENVINO, "missing", "optional, for bfloat16 on a CPU: not installed", INSTALL_OPENVINO)]
    from pairvpr.runtime.engines import openvino as openvino_engine

    try:
        tried = openvino_engine.try_arithmetics()
    except EngineError as error:
        return [Check(OPENVINO, "broken", str(error), f"{INSTALL_OPENVINO} --force-reinstall")]
    if tried["f32"] is not None:
        return [Check(OPENVINO, "broken", tried["f32"], f"{INSTALL_OPENVINO} --upgrade")]
    bf16 = "float32 and bfloat16" if tried["bf16"] is None else "float32; this CPU has no bfloat16"
    return [Check(OPENVINO, "ok", f"{openvino_engine.version()}, ran a small graph in {bf16}")]


def tensorrt(gpu: bool) -> list[Check]:
    """Check TensorRT and the CUDA library, which runs its engines. TensorRT is not tried: that needs an engine."""
    found = _tensorrt_itself(gpu)
    if found.state != "ok":
        return [found]
    from pairvpr.runtime.engines.tensorrt import cuda, cudart

    try:
        library = cudart.load()
    except EngineError as error:
        return [found, Check(CUDA, "missing", f"optional, for TensorRT engines: {error}")]
    try:
        return [found, Check(CUDA, "ok", f"{cuda.versions()['runtime']}, {library.file}; {cuda.gpu().name}")]
    except EngineError as error:
        return [
            found,
            Check(CUDA, "missing" if gpu else "info", f"optional, for TensorRT engines: {library.file}: {error}"),
        ]


def _tensorrt_itself(gpu: bool) -> Check:
    name = "TensorRT"
    module = next((each for each in TENSORRT if find_module(each) is not None), None)
    if module is None:
        if not gpu:
            return Check(name, "info", "not installed; it needs an NVIDIA GPU")
        remedy = "pip install tensorrt"
        if machine.jetson_release() is not None:
            remedy = "JetPack brings it: make the environment with python3 -m venv --system-site-packages"
        return Check(name, "missing", "optional, not installed", remedy)
    problem = import_problem(module)
    if problem is not None:
        return Check(name, "broken" if gpu else "info", problem)
    version = str(getattr(importlib.import_module(module), "__version__", "0"))
    if module != TENSORRT[0]:
        return Check(name, "ok", f"TensorRT-RTX {version}; `pairvpr engines build` builds engines for it")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < OLDEST_TENSORRT:
        return Check(name, "info", f"{version}: too old; engines need 10.3 or later", JETPACK)
    if numbers < RIGHT_TENSORRT:
        detail = f"{version}; computes vision transformers wrongly on some boards, so engines may come out slower"
        return Check(name, "ok", detail, JETPACK)
    return Check(name, "ok", f"{version}; `pairvpr engines build` builds engines for it")
