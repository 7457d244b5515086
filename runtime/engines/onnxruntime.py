"""Run graphs with ONNX Runtime, on CPUs and CUDA."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError, one_line
from pairvpr.printing import hide_native_lines
from pairvpr.runtime.engines.base import Arrays, try_engine
from pairvpr.runtime.engines.onnxruntime_cuda import (
    PROVIDER_OPTIONS,
    RECORD_ASSIGNMENT,
    BoundSession,
    load_libraries,
    refuse_cpu_work,
)

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
INSTALL = {
    "cpu": 'pip install "pairvpr[cpu]"',
    "cuda": 'pip uninstall -y onnxruntime, then pip install "pairvpr[gpu]"',  # installed together they break each other
}


def load() -> ModuleType:
    """Return the onnxruntime module. Raises EngineError with the command that installs it."""
    try:
        import_quietly()
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"ONNX Runtime cannot be imported ({error}); run {INSTALL['cpu']}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        # This remains when onnxruntime and onnxruntime-gpu were both installed and one was removed.
        raise EngineError(
            "the onnxruntime package is broken; run pip uninstall -y onnxruntime onnxruntime-gpu, "
            f"then {INSTALL['cpu']} or {INSTALL['cuda']}"
        )
    module: ModuleType = onnxruntime
    return module


def import_quietly() -> None:
    """Import onnxruntime without the warning of some versions that a Jetson's GPU has no PCI vendor.

    It is printed by the import itself, before the level of messages can be set. Raises ImportError.
    """
    if "onnxruntime" not in sys.modules:
        with hide_native_lines("device discovery failed"):
            import onnxruntime  # noqa: F401


def version() -> str:
    """Return the version of ONNX Runtime."""
    return str(load().__version__)


class OnnxRuntimeEngine:
    """Run one graph in an inference session on one device."""

    def __init__(
        self, model: Path | bytes, device: str = "cpu", threads: int | None = None, options: Any = None
    ) -> None:
        """Load a graph. options: the library's session options, or None for its defaults. Raises EngineError."""
        ort = load()
        provider = PROVIDERS[device]
        available = ort.get_available_providers()
        if provider not in available:
            raise EngineError(
                f"device {device}: this ONNX Runtime {ort.__version__} has no {provider} "
                f"(it has: {', '.join(available)}); run {INSTALL[device]}"
            )
        options = options or ort.SessionOptions()
        options.log_severity_level = 3  # errors only: the library's warnings are of no use to the user
        if threads is not None:
            options.intra_op_num_threads = threads
        # Each session has its own threads, which spin for a while after a run by default. The threads of one graph
        # would then take the cores from the next graph, and nano's pairs would take twice the time.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        name, on_gpu = model.name if isinstance(model, Path) else "graph", device == "cuda"
        if on_gpu:
            load_libraries(ort)
            options.add_session_config_entry(*RECORD_ASSIGNMENT)
        asked = (provider, PROVIDER_OPTIONS) if on_gpu else provider
        try:
            self.session: Any = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=[asked]
            )
        except Exception as error:  # the library's exceptions share no base class
            raise EngineError(f"{name}: ONNX Runtime cannot load it on {device} ({one_line(error)})") from error
        # ONNX Runtime falls back to the CPU with only a log line, so the provider in use is read back.
        if self.session.get_providers()[0] != provider:
            raise EngineError(
                f"device {device}: {provider} could not be started (got: {', '.join(self.session.get_providers())}); "
                "see `pairvpr doctor`"
            )
        self.types = {i.name: TYPES.get(i.type) for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.bound: BoundSession | None = None
        if on_gpu:
            refuse_cpu_work(self.session, name, provider)
            self.bound = BoundSession(ort, self.session, self.types, self.outputs, "cuda")

    def stage(self, inputs: Arrays) -> Arrays:
        """Copy inputs to the memory of the device, for `run`."""
        return inputs if self.bound is None else self.bound.stage(inputs)

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on host arrays or staged ones. Float inputs are cast to the type that the graph takes.

        Raises EngineError.
        """
        try:
            if self.bound is not None:
                return self.bound.run(inputs)
            feed = {name: np.ascontiguousarray(array, dtype=self.types[name]) for name, array in inputs.items()}
            results = self.session.run(self.outputs, feed)
        except Exception as error:  # see above
            raise EngineError(f"ONNX Runtime failed ({one_line(error)}); try a smaller batch") from error
        return dict(zip(self.outputs, results, strict=True))


def profile(model: Path, inputs: Arrays) -> tuple[dict[str, npt.NDArray[Any]], list[dict[str, Any]]]:
    """Run a graph once without optimisation. Return its outputs and ONNX Runtime's profile of every node.

    A node's profile holds `op_name`, `input_type_shape` and `output_type_shape` (lists of {type: shape}).
    Raises EngineError.
    """
    ort = load()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="pairvpr-profile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "run")
        engine = OnnxRuntimeEngine(model, options=options)
        outputs = engine.run(inputs)
        events = json.loads(Path(engine.session.end_profiling()).read_text(encoding="utf-8"))
    return outputs, [event["args"] for event in events if "output_type_shape" in event.get("args", {})]


@functools.lru_cache(maxsize=1)
def working_devices() -> dict[str, str | None]:
    """Return the devices that ran a tiny graph correctly."""
    return {device: None for device, problem in try_devices().items() if problem is None}


def try_devices() -> dict[str, str | None]:
    """Try each device of this ONNX Runtime on a tiny graph. Return None, or the problem, for each."""
    claimed = load().get_available_providers()
    return {
        device: try_engine(functools.partial(OnnxRuntimeEngine, device=device))
        for device, provider in PROVIDERS.items()
        if provider in claimed
    }
