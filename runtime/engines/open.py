"""Choose device and precision, and open a bundle's graphs on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pairvpr.errors import EngineError, one_line
from pairvpr.machine import int8_class
from pairvpr.runtime.bundle import Bundle, has_plans
from pairvpr.runtime.engines.base import ARITHMETIC, NO_PAIR_CLASSIFIER, Arrays, Engine, in_place

INT8 = "int8"
"""Key of the INT8 export in a bundle's calibration results."""
PROCESSOR = "processor"
"""Key in the results of the INT8 export: the class of the processor on which INT8 was compared with float32."""

log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda", "tensorrt", "openvino")
PRECISIONS = ("fp32", "fp16", "int8", "int8-fp16", "int8-dynamic", "bf16", "int8-bf16")
# The best precision of a bundle for each device comes first. ONNX Runtime's CUDA multiplies Q/DQ graphs in float.
PREFERENCES = {
    "cpu": ("int8-dynamic", "int8", "fp32", "fp16"),
    "cuda": ("fp16", "fp32"),
    "openvino": ("int8", "fp32", "fp16"),
    "tensorrt": ("fp16", "fp32"),  # preceded by INT8 if it was measured on this device and kept
}


@dataclass(frozen=True)
class Engines:
    """Hold a bundle's opened graphs.

    encoder: the encoder.
    device: one of DEVICES, except "auto".
    precision: one of PRECISIONS.
    description: engine, version, device and precision for people.
    largest_batch: most pictures or pairs in one run, or None without a limit.
    pair_prefix, pair_suffix: the pair classifier. Both raise EngineError if the model has none.
    pair_look: the first look at pairs, None if the bundle has none.
    descriptor: a descriptor of another network, None if the encoder makes the descriptors.
    stage: starts to copy inputs of the pair graphs to the device, while other work goes on. `run` takes its result.
    """

    encoder: Engine
    device: str
    precision: str
    description: str
    largest_batch: int | None = None
    pair_prefix: Engine = NO_PAIR_CLASSIFIER
    pair_suffix: Engine = NO_PAIR_CLASSIFIER
    pair_look: Engine | None = None
    descriptor: Engine | None = None
    stage: Callable[[Arrays], Arrays] = in_place

    @staticmethod
    def from_graphs(
        graphs: Mapping[str, Engine], device: str, precision: str, description: str, **more: Any
    ) -> Engines:
        """Return the engines of graphs by their names in a bundle. more: `largest_batch` and `stage`."""
        named: dict[str, Any] = {**graphs, **more}
        return Engines(**named, device=device, precision=precision, description=description)


def open_engines(
    bundle: Bundle, device: str = "auto", precision: str | None = None, threads: int | None = None
) -> Engines:
    """Open a bundle's graphs on a device.

    device: "auto" takes TensorRT if the bundle has plans for this GPU, else CUDA if ONNX Runtime can use it, else the
    CPU. It logs engines that are present and fail. Any other device is used or refused.
    precision: None takes the bundle's best for the device. "bf16" runs the float32 graphs, or else the float16 ones,
    in bfloat16 arithmetic. "int8-bf16" runs the float part of the INT8 graphs in bfloat16. Both need OpenVINO.
    threads: number of CPU threads, or None for the engine's own choice.
    Raises EngineError or BundleError.
    """
    if device not in DEVICES:
        raise EngineError(f"--device {device}: unknown; choose one of {', '.join(DEVICES)}")
    if threads is not None and threads < 1:
        raise EngineError(f"--threads {threads}: give at least 1")
    if precision in ("bf16", "int8-bf16") and device != "openvino":
        raise EngineError(f"--precision {precision} needs --device openvino, not {device}")
    if precision == "int8-dynamic" and device in ("cuda", "tensorrt", "openvino"):
        raise EngineError(f"--precision int8-dynamic needs --device cpu, not {device}")
    if device == "tensorrt":
        return _open_tensorrt(bundle, precision)
    if device == "auto" and has_plans(bundle):
        try:
            return _open_tensorrt(bundle, precision)
        except EngineError as error:
            log.warning("answers may take 50 times as long, because the TensorRT engines are not used: %s", error)
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
    names = bundle.info.graphs
    files = {name: bundle.graph(precision, name, cpu) if cpu else bundle.cuda_graph(precision, name) for name in names}
    graphs = {name: ort.OnnxRuntimeEngine(file, device, threads) for name, file in files.items()}
    description = f"ONNX Runtime {ort.version()} on {device}, {precision}"
    if cpu and precision == "fp16":
        description += " weights cast up at load (float32 arithmetic)"
    stage = graphs["pair_prefix"].stage if bundle.info.pair_classifier else in_place
    return Engines.from_graphs(graphs, device, precision, description, stage=stage)


def _open_tensorrt(bundle: Bundle, precision: str | None) -> Engines:
    from pairvpr.runtime.engines.tensorrt import engine as trt

    precision = _choose_precision(bundle, "tensorrt", precision or trt.find_kept_int8(bundle))
    plans = trt.find_matching_plans(bundle, precision)
    graphs = trt.open_plans(plans)
    description = f"{trt.describe()}, {precision}"
    most, stage = trt.largest_batch(plans), graphs["pair_prefix"].stage if bundle.info.pair_classifier else in_place
    return Engines.from_graphs(graphs, "tensorrt", precision, description, largest_batch=most, stage=stage)


def _open_openvino(bundle: Bundle, precision: str | None, threads: int | None) -> Engines:
    """Open OpenVINO with float32 arithmetic, or bfloat16 for "bf16" and "int8-bf16". Its own choice would vary."""
    from pairvpr.runtime.engines import openvino as ov

    floats = "fp32" if "fp32" in bundle.info.precisions else "fp16"
    in_bfloat16 = {"bf16": floats, "int8-bf16": "int8"}
    stored = _choose_precision(bundle, "openvino", in_bfloat16.get(precision or "", precision))
    arithmetic = "bf16" if precision in in_bfloat16 else "f32"
    files = {name: bundle.graph(stored, name, cpu=False) for name in bundle.info.graphs}
    graphs = {name: ov.OpenVinoEngine(file, arithmetic, threads) for name, file in files.items()}
    remainder = " for what is not INT8" if stored.startswith("int8") else ""
    description = f"OpenVINO {ov.version()} on cpu, {stored} weights, {ARITHMETIC[arithmetic]} arithmetic{remainder}"
    return Engines.from_graphs(graphs, "openvino", precision or stored, description)


def _choose_precision(bundle: Bundle, device: str, asked: str | None) -> str:
    present = list(bundle.info.precisions)
    if asked is None:
        preferred = [precision for precision in PREFERENCES[device] if precision in present]
        floats = [precision for precision in preferred if not precision.startswith("int8")]
        if floats and preferred[0] not in floats and (doubt := _doubt_int8(bundle)):
            log.warning("%s: %s runs, because %s", bundle.path, floats[0], doubt)
            preferred = floats
        if preferred:
            return preferred[0]
    elif asked in present:
        overflows = device in ("cpu", "openvino") and int8_class().endswith("without VNNI")
        if overflows and asked.startswith("int8") and (doubt := _doubt_int8(bundle)):
            log.warning("%s: %s may give wrong answers, because %s", bundle.path, asked, doubt)
        return asked
    floats = [name for name in PREFERENCES[device] if not name.startswith("int8")]
    wanted = asked or " or ".join(floats)
    kind = (asked or floats[0]).partition("-")[0]
    images = " --calibration-images DIR" if kind == "int8" else ""
    raise EngineError(
        f"{bundle.path}: no {wanted} graphs in this bundle (it has: {', '.join(present) or 'none'}); "
        f"export the same checkpoint with `pairvpr export --{kind}{images} --out BUNDLE` and give --model BUNDLE"
    )


def _doubt_int8(bundle: Bundle) -> str | None:
    """Return a reason not to trust the comparison of INT8 with float32 on this processor, None without one.

    ONNX Runtime and OpenVINO choose other 8-bit arithmetic on other processors.
    """
    made = bundle.info.calibration.get(INT8)
    judged = made.get(PROCESSOR) if isinstance(made, dict) else None
    here = int8_class()
    if judged == here:
        return None
    where = one_line(judged, 60) if isinstance(judged, str) else "a processor that is not named"
    return f"its INT8 graphs were compared with float32 on {where}, and this is {here}: export --int8 again here"
