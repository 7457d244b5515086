"""What works on this computer and what is missing: every part is looked at, the engines and the model are tried.

Nothing is imported before it is its turn, so that a part that is missing or broken is one line of the report.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pairvpr import __version__, machine
from pairvpr.errors import BundleError, EngineError, MapError, one_line

if TYPE_CHECKING:
    from pairvpr.runtime.bundle import Bundle

State = Literal["ok", "missing", "broken", "info"]

ENGINE, OPENVINO, MODEL, TUNED = "ONNX Runtime", "OpenVINO", "default model", "tuned setting"
REQUIRED = {
    "numpy": "numpy",
    "pillow": "PIL",
    "faiss-cpu": "faiss",
    "click": "click",
    "safetensors": "safetensors",
}
"""Base dependencies: distribution and module."""
EXPORT = ("torch", "timm", "onnx", "onnxscript")
ENGINES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
"""Distributions that all bring the module onnxruntime and overwrite each other's files."""

INSTALL_CPU, INSTALL_GPU = 'pip install "pairvpr[cpu]"', 'pip install "pairvpr[gpu]"'
INSTALL_OPENVINO = 'pip install "pairvpr[openvino]"'
INSTALL_CUDA = 'pip install "pairvpr[tensorrt]", with CUDA 12 pip install "pairvpr[tensorrt]" "cuda-python<13"'
OLDEST_TENSORRT = (10, 3)
REINSTALL = "pip install --force-reinstall --no-deps pairvpr"


@dataclass(frozen=True)
class Check:
    """One part: ok, missing, broken, or info where there is nothing to judge.

    remedy: what to run or do about it, None where nothing is to be done.
    """

    name: str
    state: State
    detail: str
    remedy: str | None = None


def examine(db: Path | None = None) -> list[Check]:
    """Look at everything that recognition, export and cameras need. Takes some seconds; never raises.

    db: a map, to see whether the setting tuned for it can be had here.
    """
    graphics = _graphics()
    return [
        *_computer(),
        *graphics,
        *_dependencies(),
        *_tried(ENGINE, lambda: _engine(gpu=bool(graphics))),
        *_tried(OPENVINO, _openvino),
        *_tried(MODEL, _default_model),
        *([] if db is None else _tried(TUNED, lambda: [_tuned_setting(db)])),
        *_tensorrt(gpu=bool(graphics)),
        _extra("PyAV", "av", "video", "for videos, cameras and streams"),
        _extra("rosbags", "rosbags", "bags", "for ROS bags"),
        _extra("h11", "h11", "serve", "for answering other programs over HTTP"),
        _extra("rerun-sdk", "rerun", "viz", "for recording runs for Rerun's viewer"),
        *_export_parts(),
        _cameras(),
    ]


def healthy(checks: Sequence[Check]) -> bool:
    """Whether places can be recognised here: nothing is broken, and no part that this needs is missing."""
    needed = {ENGINE, MODEL, *REQUIRED}
    return not any(check.state == "broken" or (check.state == "missing" and check.name in needed) for check in checks)


def format_report(checks: Sequence[Check]) -> str:
    """The checks as an aligned page: state, name and detail, with the remedy below."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.state:<8} {check.name:<{width}}  {check.detail}")
        if check.remedy is not None:
            lines.append(f"{'':<8} {'':<{width}}  -> {check.remedy}")
    counts = {state: sum(check.state == state for check in checks) for state in ("missing", "broken")}
    if not healthy(checks):
        verdict = "Recognition does not work here, or a part of it does not: see above."
    elif counts["missing"]:
        verdict = "Recognition works here. What is missing is optional."
    else:
        verdict = "Everything works here."
    return "\n".join([*lines, "", verdict])


def _computer() -> list[Check]:
    cpu, size, board = machine.processor(), machine.memory(), machine.board()
    cores = f"{cpu.cores} of {cpu.all_cores} may be used"
    if cpu.quota is not None and cpu.quota < cpu.cores:
        cores += f", for {cpu.quota:g} cores' worth of time"
    available = "not known"
    if size is not None:
        available = f"{size[0] / machine.GIB:.1f} of {size[1] / machine.GIB:.1f} GiB available"
    checks = [
        Check("pairvpr", "info", __version__),
        Check("Python", "info", f"{platform.python_version()}, {sys.executable}"),
        Check("system", "info", machine.system()),
        Check("CPU", "info", f"{cpu.model} ({', '.join(cpu.flags) or 'no vector instructions named'})"),
        Check("cores", "info", cores),
        Check("memory", "info", available),
    ]
    if board is not None:
        checks.insert(3, Check("board", "info", board))
    return checks


def _graphics() -> list[Check]:
    """The NVIDIA GPUs; nothing where there is none."""
    checks = []
    release = machine.jetson_release()
    if release is not None:
        checks.append(Check("Jetson Linux", "info", release))
    found = machine.nvidia_gpus()
    if isinstance(found, str):
        # On a Jetson nvidia-smi may be there and know nothing; the GPU works all the same.
        state: State = "info" if release is not None else "broken"
        remedy = None if release is not None else "restart, or install the NVIDIA driver again"
        return [*checks, Check("GPU", state, found, remedy)]
    return [*checks, *(Check("GPU", "info", gpu) for gpu in found)]


def _dependencies() -> list[Check]:
    checks = []
    for distribution, module in REQUIRED.items():
        problem = _import_problem(module)
        version = _version(distribution) or "version not known"
        if problem is None:
            checks.append(Check(distribution, "ok", version))
        elif _find(module) is None:
            checks.append(Check(distribution, "missing", "not installed", f"pip install {distribution}"))
        else:
            remedy = f"pip install --force-reinstall {distribution}"
            checks.append(Check(distribution, "broken", f"{version}, {problem}", remedy))
    return checks


def _engine(gpu: bool) -> list[Check]:
    """ONNX Runtime, and every device it claims tried on a small graph."""
    installed = [name for name in ENGINES if _version(name) is not None]
    # The registry has no onnxruntime-gpu for Jetsons.
    install = INSTALL_GPU if gpu and machine.jetson_release() is None else INSTALL_CPU
    if len(installed) > 1:
        remedy = f"pip uninstall -y {' '.join(installed)} && {install}"
        detail = f"{' and '.join(installed)} are both installed and overwrite each other"
        return [Check(ENGINE, "broken", detail, remedy)]
    problem = _import_problem("onnxruntime")
    if problem is not None and not installed:
        return [Check(ENGINE, "missing", "not installed", install)]
    if problem is not None:
        return [Check(ENGINE, "broken", problem, f"pip install --force-reinstall --no-deps {installed[0]}")]
    problem = _import_problem("pairvpr.runtime")
    if problem is not None:
        return [Check(ENGINE, "broken", f"cannot be tried: {problem}", REINSTALL)]
    from pairvpr.runtime import onnxruntime_engine

    try:
        version, tried = onnxruntime_engine.version(), onnxruntime_engine.try_devices()
    except EngineError as error:
        return [Check(ENGINE, "broken", str(error), install)]
    title = ", ".join(f"{name} {_version(name)}" for name in installed) or f"version {version}"
    checks = [Check(ENGINE, "ok", title), *(_device(name, fault, gpu) for name, fault in tried.items())]
    if gpu and "cuda" not in tried:
        remedy = "install the onnxruntime-gpu that NVIDIA builds for this JetPack in its place"
        if install == INSTALL_GPU:
            remedy = f"pip uninstall -y {' '.join(installed or ENGINES[:1])} && {install}"
        checks.append(Check(f"{ENGINE} on cuda", "missing", "optional: it was built without CUDA", remedy))
    return checks


def _device(name: str, problem: str | None, gpu: bool) -> Check:
    title = f"{ENGINE} on {name}"
    if problem is None:
        return Check(title, "ok", "ran a small graph")
    if name == "cuda" and not gpu:
        return Check(title, "info", "this computer has no NVIDIA GPU", INSTALL_CPU)
    remedy = "install the CUDA and cuDNN that this ONNX Runtime was built for" if name == "cuda" else None
    return Check(title, "broken", problem, remedy)


def _openvino() -> list[Check]:
    """OpenVINO, tried on a small graph in both its arithmetics."""
    if _find(OPENVINO.lower()) is None:
        return [Check(OPENVINO, "missing", "optional, for bfloat16 on a CPU: not installed", INSTALL_OPENVINO)]
    problem = _import_problem("pairvpr.runtime")
    if problem is not None:
        return [Check(OPENVINO, "broken", f"cannot be tried: {problem}", REINSTALL)]
    from pairvpr.runtime import openvino_engine

    try:
        tried = openvino_engine.try_arithmetics()
    except EngineError as error:
        return [Check(OPENVINO, "broken", str(error), f"{INSTALL_OPENVINO} --force-reinstall")]
    if tried["f32"] is not None:
        return [Check(OPENVINO, "broken", tried["f32"], f"{INSTALL_OPENVINO} --upgrade")]
    bf16 = "float32 and bfloat16" if tried["bf16"] is None else "float32; bfloat16 is not to be had on this CPU"
    return [Check(OPENVINO, "ok", f"{openvino_engine.version()}, ran a small graph in {bf16}")]


def _default_model() -> list[Check]:
    """The default bundle: its files, the origin of its weights, and its reference check on this engine."""
    problem = _import_problem("pairvpr.runtime")
    if problem is not None:
        return [Check(MODEL, "broken", f"cannot be opened: {problem}", REINSTALL)]
    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.model import default_bundle

    if not default_bundle().exists():
        return [Check(MODEL, "missing", f"{default_bundle()}: not there", REINSTALL)]
    try:
        bundle = Bundle.open(default_bundle())
        bundle.verify()
    except BundleError as error:
        return [Check(MODEL, "broken", str(error), REINSTALL)]
    info = bundle.info
    detail = f"{info.preset} ({', '.join(info.precisions)}), {len(info.files)} files verified, {bundle.path}"
    origin = f"{info.weights.origin}, licence {info.weights.licence}"
    if not info.weights.trained:
        origin += "; never trained: it runs, but does not recognise places"
    return [
        Check(MODEL, "ok", detail),
        Check("its weights", "ok" if info.weights.trained else "info", origin),
        _reference(bundle),
    ]


def _reference(bundle: Bundle) -> Check:
    """The bundle's reference pictures through the engine, compared with what the network made of them."""
    from pairvpr.runtime.model import load_model
    from pairvpr.runtime.reference import check_reference

    name = "reference check"
    try:
        model = load_model(bundle.path)
        errors = check_reference(model)
    except BundleError as error:
        return Check(name, "broken", str(error), REINSTALL)
    except EngineError as error:
        return Check(name, "broken", str(error), "see the engine's lines above")
    detail = (
        f"{model.engines.description}: descriptors within {errors.descriptors:.1e}, "
        f"scores within {errors.scores:.1e} of the network's"
    )
    if errors.ok:
        return Check(name, "ok", detail)
    return Check(name, "broken", detail, "try another version of onnxruntime, and report this page")


def _tuned_setting(db: Path) -> Check:
    """The setting that a map's answers are given with here, opened as they would open it."""
    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.tuning import Tuning

    remedy = f"pairvpr tune --db {db} --images PICTURES"
    try:
        with Map.open(db) as places:
            model = places.model_path
        tuning = Tuning.of(Bundle.open(model))
    except (MapError, BundleError) as error:
        return Check(TUNED, "broken", str(error))
    if tuning is None:
        return Check(TUNED, "info", f"{db}: none, the defaults answer", remedy)
    try:
        tuning.open(model)
    except (EngineError, BundleError) as error:
        return Check(TUNED, "missing", f"{db}: {tuning.setting}; not used, the defaults answer: {error}", remedy)
    return Check(TUNED, "ok", f"{db}: {tuning}")


def _tensorrt(gpu: bool) -> list[Check]:
    """TensorRT, and what it takes to run its engines; none of which is tried: that takes an engine."""
    found = _tensorrt_itself(gpu)
    if found.state != "ok":
        return [found]
    name, problem = "cuda-python", _import_problem("cuda.bindings.runtime")
    if problem is None:
        return [found, Check(name, "ok", _version(name) or "version not known")]
    return [found, Check(name, "missing", f"optional, for TensorRT engines: {problem}", INSTALL_CUDA)]


def _tensorrt_itself(gpu: bool) -> Check:
    name, module = "TensorRT", "tensorrt"
    if _find(module) is None:
        if not gpu:
            return Check(name, "info", "not installed, and of no use without an NVIDIA GPU")
        remedy = "pip install tensorrt"
        if machine.jetson_release() is not None:
            remedy = "it comes with JetPack: make the environment with python3 -m venv --system-site-packages"
        return Check(name, "missing", "optional, not installed", remedy)
    problem = _import_problem(module)
    if problem is not None:
        return Check(name, "broken" if gpu else "info", problem)
    version = str(getattr(importlib.import_module(module), "__version__", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST_TENSORRT:
        return Check(name, "info", f"{version}: too old for engines, which need 10.3, as JetPack 6.1 has it")
    return Check(name, "ok", f"{version}; `pairvpr engines build` makes engines for it")


def _extra(name: str, module: str, extra: str, use: str) -> Check:
    """A library that an extra brings; its distribution is called like the module or as it is shown."""
    remedy = f'pip install "pairvpr[{extra}]"'
    if _find(module) is None:
        return Check(name, "missing", f"optional, {use}: not installed", remedy)
    problem = _import_problem(module)
    if problem is not None:
        return Check(name, "broken", problem, f"{remedy} --force-reinstall")
    return Check(name, "ok", _version(module) or _version(name) or "version not known")


def _export_parts() -> list[Check]:
    """The parts of training and export, looked up and not imported: that alone takes seconds."""
    remedy = 'pip install "pairvpr[export]"'
    missing = "optional, for training and export: not installed"
    return [
        Check(name, "missing", missing, remedy) if version is None else Check(name, "ok", version)
        for name, version in ((name, _version(name)) for name in EXPORT)
    ]


def _cameras() -> Check:
    found = machine.cameras()
    return Check("cameras", "info", ", ".join(found) or "none at /dev/video*")


def _tried(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """The checks that `look` makes, or one that says what it raised: a broken library can raise anything."""
    try:
        return look()
    except Exception as error:
        return [Check(name, "broken", f"{type(error).__name__}: {one_line(error)}", REINSTALL)]


def _find(module: str) -> object | None:
    """Where a module would come from; None where it is not there or its import is barred."""
    if module in sys.modules:
        return sys.modules[module]
    return importlib.util.find_spec(module)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_problem(module: str) -> str | None:
    """Why a module cannot be imported, in one line; None where it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation can raise anything while it is imported
        return f"cannot be imported ({one_line(error) or type(error).__name__})"
    return None
