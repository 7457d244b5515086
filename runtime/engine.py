"""What runs a graph: one protocol, and the one place that chooses device and precision."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy.typing as npt

from pairvpr.errors import EngineError
from pairvpr.runtime.bundle import GRAPHS, Bundle

log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda")
# What each device prefers among the precisions a bundle has.
PREFERENCES = {"cpu": ("fp32", "fp16"), "cuda": ("fp16", "fp32")}
PRECISIONS = ("fp32", "fp16")

Arrays = Mapping[str, npt.NDArray]


class Engine(Protocol):
    """A graph on a device: named arrays in, named arrays out."""

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray]:
        """Run the graph on host arrays; float inputs are cast to the type the graph takes."""
        ...


@dataclass(frozen=True)
class Engines:
    """A bundle's three graphs, ready to run, and what they run on."""

    encoder: Engine
    pair_prefix: Engine
    pair_suffix: Engine
    device: str
    precision: str
    description: str


def open_engines(
    bundle: Bundle, device: str = "auto", precision: str | None = None, threads: int | None = None
) -> Engines:
    """Load a bundle's graphs on a device.

    device: "auto" takes CUDA where ONNX Runtime has it and it works, else the CPU; anything else is obtained or
    refused. precision: None takes the device's best that the bundle has. threads: CPU threads, None for the
    engine's own choice. Raises EngineError or BundleError.
    """
    from pairvpr.runtime import onnxruntime_engine as ort

    if device not in DEVICES:
        raise EngineError(f"device {device}: unknown; choose one of {', '.join(DEVICES)}")
    if device == "auto":
        device = "cuda" if "cuda" in ort.working_devices() else "cpu"
    precision = _choose_precision(bundle, device, precision)
    cpu = device == "cpu"
    graphs = {name: ort.OnnxRuntimeEngine(bundle.graph(precision, name, cpu), device, threads) for name in GRAPHS}
    description = f"ONNX Runtime {ort.version()} on {device}, {precision}"
    if cpu and precision == "fp16":
        description += " weights cast up at load (float32 arithmetic)"
    log.info("engine: %s", description)
    return Engines(**graphs, device=device, precision=precision, description=description)


def _choose_precision(bundle: Bundle, device: str, asked: str | None) -> str:
    present = list(bundle.info.precisions)
    if asked is None:
        for precision in PREFERENCES[device]:
            if precision in present:
                return precision
    elif asked in present:
        return asked
    wanted = asked or " or ".join(PREFERENCES[device])
    export = f"`pairvpr export --{asked or PREFERENCES[device][0]} --out BUNDLE`"
    raise EngineError(
        f"{bundle.path}: no {wanted} graphs in this bundle (it has: {', '.join(present) or 'none'}); "
        f"export them into a bundle ({export}) and give it as the model"
    )
