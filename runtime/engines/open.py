"""What runs a graph: one protocol, and the one place that chooses device and precision."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from pairvpr.errors import EngineError
from pairvpr.runtime.bundle import GRAPHS, Bundle, has_plans
from pairvpr.runtime.engines.base import ARITHMETIC, Arrays, Engine, in_place

log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda", "tensorrt", "openvino")
PRECISIONS = ("fp32", "fp16", "int8", "int8-fp16", "int8-dynamic", "bf16", "int8-bf16")
# What each device prefers among the precisions a bundle has. ONNX Runtime's CUDA multiplies Q/DQ graphs in float.
PREFERENCES = {
    "cpu": ("int8-dynamic", "int8", "fp32", "fp16"),
    "cuda": ("fp16", "fp32"),
    "openvino": ("int8", "fp32", "fp16"),
    "tensorrt": ("fp16", "fp32"),  # and before them INT8 where it was measured on this device and kept
}


@dataclass(frozen=True)
class Engines:
    """A bundle's three graphs, ready to run, and what they run on.

    largest_batch: most pictures or pairs that they take at once, None without a limit. stage: starts to copy inputs of
    the pair graphs to where these run, beside the work that is under way; `run` takes what it gives.
    """

    encoder: Engine
    pair_prefix: Engine
    pair_suffix: Engine
    device: str
    precision: str
    description: str
    largest_batch: int | None
    stage: Callable[[Arrays], Arrays] = in_place


def open_engines(
    bundle: Bundle, device: str = "auto", precision: str | None = None, threads: int | None = None
) -> Engines:
    """Load a bundle's graphs on a device.

    device: "auto" takes TensorRT where the bundle has plans for this GPU, else CUDA where ONNX Runtime has it and it
    works, else the CPU, and logs what is there and does not work; anything else is obtained or refused. precision:
    None takes the device's best that the bundle has; "bf16" runs the float32 graphs, or else the float16 ones, in
    bfloat16 arithmetic, "int8-bf16" what is not INT8 in the INT8 graphs, which only OpenVINO does. threads: CPU
    threads, None for the engine's own choice. Raises EngineError or BundleError.
    """
    if device not in DEVICES:
        raise EngineError(f"device {device}: unknown; choose one of {', '.join(DEVICES)}")
    if threads is not None and threads < 1:
        raise EngineError(f"threads {threads}: give at least 1")
    if precision in ("bf16", "int8-bf16") and device != "openvino":
        raise EngineError(f"precision {precision}: not on device {device}; it needs --device openvino")
    if precision == "int8-dynamic" and device in ("cuda", "tensorrt", "openvino"):
        raise EngineError(f"precision int8-dynamic: not on device {device}; it is for --device cpu")
    if device == "tensorrt":
        return _open_tensorrt(bundle, precision)
    if device == "auto" and has_plans(bundle):
        try:
            return _open_tensorrt(bundle, precision)
        except EngineError as error:
            log.info("not TensorRT: %s", error)
    if device == "openvino":
        return _open_openvino(bundle, precision, threads)
    return _open_onnxruntime(bundle, device, precision, threads)


def _open_onnxruntime(bundle: Bundle, device: str, precision: str | None, threads: int | None) -> Engines:
    from pairvpr.runtime.engines import onnxruntime as ort

    if device == "auto":
        device = "cuda" if "cuda" in ort.working_devices() else "cpu"
        if device == "cpu" and (problem := ort.try_devices().get("cuda")):
            log.warning("not CUDA: %s", problem)
    precision = _choose_precision(bundle, device, precision)
    cpu = device == "cpu"
    files = {name: bundle.graph(precision, name, cpu) if cpu else bundle.cuda_graph(precision, name) for name in GRAPHS}
    graphs = {name: ort.OnnxRuntimeEngine(file, device, threads) for name, file in files.items()}
    description = f"ONNX Runtime {ort.version()} on {device}, {precision}"
    if cpu and precision == "fp16":
        description += " weights cast up at load (float32 arithmetic)"
    return Engines(
        **graphs,
        device=device,
        precision=precision,
        description=description,
        largest_batch=None,
        stage=graphs["pair_prefix"].stage,
    )


def _open_tensorrt(bundle: Bundle, precision: str | None) -> Engines:
    from pairvpr.runtime.engines.tensorrt import engine as trt

    precision = _choose_precision(bundle, "tensorrt", precision or trt.kept_int8(bundle))
    plans = trt.matching_plans(bundle, precision)
    graphs = trt.open_plans(plans)
    description = f"{trt.description()}, {precision}"
    return Engines(
        **graphs,
        device="tensorrt",
        precision=precision,
        description=description,
        largest_batch=trt.largest_batch(plans),
        stage=graphs["pair_prefix"].stage,
    )


def _open_openvino(bundle: Bundle, precision: str | None, threads: int | None) -> Engines:
    """OpenVINO computes in an arithmetic of its own choice unless told: float32, but for "bf16" and "int8-bf16"."""
    from pairvpr.runtime.engines import openvino as ov

    floats = "fp32" if "fp32" in bundle.info.precisions else "fp16"
    in_bfloat16 = {"bf16": floats, "int8-bf16": "int8"}
    stored = _choose_precision(bundle, "openvino", in_bfloat16.get(precision or "", precision))
    arithmetic = "bf16" if precision in in_bfloat16 else "f32"
    graphs = {name: ov.OpenVinoEngine(bundle.graph(stored, name, cpu=False), arithmetic, threads) for name in GRAPHS}
    remainder = " for what is not INT8" if stored.startswith("int8") else ""
    description = f"OpenVINO {ov.version()} on cpu, {stored} weights, {ARITHMETIC[arithmetic]} arithmetic{remainder}"
    precision = precision or stored
    return Engines(
        **graphs, device="openvino", precision=precision, description=description, largest_batch=None, stage=in_place
    )


def _choose_precision(bundle: Bundle, device: str, asked: str | None) -> str:
    present = list(bundle.info.precisions)
    if asked is None:
        for precision in PREFERENCES[device]:
            if precision in present:
                return precision
    elif asked in present:
        return asked
    floats = [name for name in PREFERENCES[device] if not name.startswith("int8")]
    wanted = asked or " or ".join(floats)
    kind = (asked or floats[0]).partition("-")[0]
    images = " --calibration-images DIR" if kind == "int8" else ""
    raise EngineError(
        f"{bundle.path}: no {wanted} graphs in this bundle (it has: {', '.join(present) or 'none'}); "
        f"export the same checkpoint with `pairvpr export --{kind}{images} --out BUNDLE` and give --model BUNDLE"
    )
