"""Run graphs with OpenVINO, on CPUs."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError, one_line
from pairvpr.runtime.engines.base import ARITHMETIC, Arrays, try_engine

DEVICE = "CPU"
INSTALL = 'pip install "pairvpr[openvino]"'

_kept: list[Any] = []
_keeping = threading.Lock()


def load() -> ModuleType:
    """Return the openvino module. Raises EngineError with the command that installs it."""
    try:
        import openvino
        import openvino.preprocess
    except ImportError as error:
        raise EngineError(f"OpenVINO cannot be imported ({error}); run {INSTALL}") from error
    module: ModuleType = openvino
    return module


def version() -> str:
    """Return the version of OpenVINO, without its build number."""
    return str(load().__version__).partition("-")[0]


def core() -> Any:
    """Return the only Core of this process, which lives as long as the process.

    A Core's CPU plugin gives the thread that loads it a stack for signal handlers, and restores the previous stack
    when it is destroyed. If two Cores are destroyed in the order of their creation, the second restores the stack of
    the first, which is freed by then. The next signal that Python handles (Ctrl-C, SIGTERM, the end of a child) then
    kills the process without a message.
    """
    with _keeping:
        if not _kept:
            _kept.append(load().Core())
        return _kept[0]


class OpenVinoEngine:
    """Run one graph, pure ONNX, compiled for the CPU. Any batch size runs without compiling again.

    arithmetic: "f32" or "bf16", whatever the graph's weights are stored in. By default OpenVINO would choose bfloat16
    on every CPU that supports it.
    """

    def __init__(self, model: Path | bytes, arithmetic: str = "f32", threads: int | None = None) -> None:
        ov = load()
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": arithmetic,
            "PERFORMANCE_HINT": "LATENCY",
            # A thread bound to a core would wait while another program uses that core.
            "ENABLE_CPU_PINNING": False,
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        name = model.name if isinstance(model, Path) else "graph"
        try:
            graph = core().read_model(model)
            inputs, self.outputs = ([port.any_name for port in ports] for ports in (graph.inputs, graph.outputs))
            graph = _with_float32_ports(ov, graph)
            self.compiled: Any = core().compile_model(graph, DEVICE, settings)
            devices = self.compiled.get_property("EXECUTION_DEVICES")
            obtained = self.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        except RuntimeError as error:
            raise EngineError(f"{name}: OpenVINO cannot load it ({_last_line(error)})") from error
        # OpenVINO silently replaces an arithmetic that the CPU lacks, so the one in use is read back.
        if devices != [DEVICE] or obtained != arithmetic:
            raise EngineError(
                f"OpenVINO cannot compute in {ARITHMETIC[arithmetic]} here (got: {obtained} on {', '.join(devices)}); "
                "this CPU lacks it; choose another --precision"
            )
        # Ports of the compiled graph have additional names, from the casts that were fused into them.
        types = [port.element_type.to_dtype() for port in self.compiled.inputs]
        self.types = dict(zip(inputs, types, strict=True))

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on host arrays. Float inputs are cast to the type that the graph takes. Raises EngineError."""
        self._check(inputs)
        feed = {name: np.ascontiguousarray(array, dtype=self.types[name]) for name, array in inputs.items()}
        try:
            # A new request: the one that OpenVINO keeps cannot serve two threads.
            results = self.compiled.create_infer_request().infer(feed, share_inputs=True)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed ({_last_line(error)}); try a smaller batch") from error
        return dict(zip(self.outputs, results.values(), strict=True))

    def _check(self, inputs: Arrays) -> None:
        """Raise EngineError for wrong inputs. OpenVINO itself runs with missing inputs and casts any type."""
        if inputs.keys() != self.types.keys():
            raise EngineError(f"OpenVINO failed (inputs {', '.join(inputs)}, the graph takes {', '.join(self.types)})")
        for name, array in inputs.items():
            wanted = self.types[name]
            if array.dtype != wanted and not (array.dtype.kind == wanted.kind == "f"):
                raise EngineError(f"OpenVINO failed ({name} is {array.dtype}, the graph takes {wanted})")


def try_arithmetics() -> dict[str, str | None]:
    """Try float32 and bfloat16 on a tiny graph. Return None, or the problem, for each. Raises EngineError."""
    load()
    return {name: try_engine(functools.partial(OpenVinoEngine, arithmetic=name)) for name in ARITHMETIC}


def _with_float32_ports(ov: ModuleType, graph: Any) -> Any:
    """Make float16 inputs and outputs float32, so that a graph computed in float32 rounds nothing to half."""
    ports = ov.preprocess.PrePostProcessor(graph)
    for port in graph.inputs:
        if port.element_type == ov.Type.f16:
            ports.input(port.any_name).tensor().set_element_type(ov.Type.f32)
    for port in graph.outputs:
        if port.element_type == ov.Type.f16:
            ports.output(port.any_name).tensor().set_element_type(ov.Type.f32)
    return ports.build()


def _last_line(error: Exception) -> str:
    """Return the last line of a message. The lines before it name places in the library."""
    return one_line(str(error).strip().splitlines()[-1] if str(error).strip() else error)
