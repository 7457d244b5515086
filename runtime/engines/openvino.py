"""The engine protocol on OpenVINO, on CPUs."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError
from pairvpr.runtime.engines.base import ARITHMETIC, Arrays, try_engine

DEVICE = "CPU"
INSTALL = 'pip install "pairvpr[openvino]"'

_kept: list[Any] = []
_keeping = threading.Lock()


def load() -> ModuleType:
    """The openvino module; raises EngineError with the line that installs it."""
    try:
        import openvino
        import openvino.preprocess
    except ImportError as error:
        raise EngineError(f"OpenVINO cannot be imported ({error}); run {INSTALL}") from error
    return openvino


def version() -> str:
    """Version of OpenVINO, without its build."""
    return str(load().__version__).partition("-")[0]


def core() -> Any:
    """The one Core of this process, which lives as long as the process does.

    A Core's CPU plugin gives the thread that loads it a stack for signal handlers, and takes it away when it goes. Of
    two Cores that go in the order they came, the second puts back the stack of the first, which is gone: the next
    signal that Python handles (Ctrl-C, SIGTERM, the end of a child) kills the process without a word.
    """
    with _keeping:
        if not _kept:
            _kept.append(load().Core())
        return _kept[0]


class OpenVinoEngine:
    """One graph, pure ONNX, compiled for the CPU. Any batch size runs without compiling again.

    arithmetic: "f32" or "bf16", whatever the graph's weights are stored in. Left to itself OpenVINO takes bfloat16
    wherever the CPU has it.
    """

    def __init__(self, model: Path | bytes, arithmetic: str = "f32", threads: int | None = None) -> None:
        ov = load()
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": arithmetic,
            "PERFORMANCE_HINT": "LATENCY",
            # A thread that is bound to a core waits there while another program has it.
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
        # A CPU without an arithmetic gets another one with no word: what was obtained is read back.
        if devices != [DEVICE] or obtained != arithmetic:
            raise EngineError(
                f"OpenVINO cannot compute in {ARITHMETIC[arithmetic]} here (got: {obtained} on {', '.join(devices)}); "
                "this CPU lacks it, choose another --precision"
            )
        # Ports of the compiled graph have further names: those of the casts that became one with them.
        types = [port.element_type.to_dtype() for port in self.compiled.inputs]
        self.types = dict(zip(inputs, types, strict=True))

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray]:
        """Run the graph on host arrays; float inputs are cast to the type the graph takes."""
        self._check(inputs)
        feed = {name: np.ascontiguousarray(array, dtype=self.types[name]) for name, array in inputs.items()}
        try:
            # A request of its own: the one that OpenVINO keeps cannot serve two threads.
            results = self.compiled.create_infer_request().infer(feed, share_inputs=True)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed ({_last_line(error)}); try a smaller batch") from error
        return dict(zip(self.outputs, results.values(), strict=True))

    def _check(self, inputs: Arrays) -> None:
        """Refuse what OpenVINO would take for something else: it runs without inputs, and casts any type."""
        if inputs.keys() != self.types.keys():
            raise EngineError(f"OpenVINO failed (inputs {', '.join(inputs)}, the graph takes {', '.join(self.types)})")
        for name, array in inputs.items():
            wanted = self.types[name]
            if array.dtype != wanted and not (array.dtype.kind == wanted.kind == "f"):
                raise EngineError(f"OpenVINO failed ({name} is {array.dtype}, the graph takes {wanted})")


def try_arithmetics() -> dict[str, str | None]:
    """Float32 and bfloat16 tried on a tiny graph: None where it works, else the problem. Raises EngineError."""
    load()
    return {name: try_engine(functools.partial(OpenVinoEngine, arithmetic=name)) for name in ARITHMETIC}


def _with_float32_ports(ov: ModuleType, graph: Any) -> Any:
    """Float16 inputs and outputs as float32: a graph that is computed in float32 then rounds nothing to half."""
    ports = ov.preprocess.PrePostProcessor(graph)
    for port in graph.inputs:
        if port.element_type == ov.Type.f16:
            ports.input(port.any_name).tensor().set_element_type(ov.Type.f32)
    for port in graph.outputs:
        if port.element_type == ov.Type.f16:
            ports.output(port.any_name).tensor().set_element_type(ov.Type.f32)
    return ports.build()


def _last_line(error: Exception) -> str:
    """What went wrong, after the lines that say where in the library."""
    return str(error).strip().splitlines()[-1][:300] if str(error).strip() else type(error).__name__
