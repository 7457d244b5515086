"""The engine protocol on ONNX Runtime, CPU and CUDA."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError
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
    "cuda": 'pip uninstall -y onnxruntime, then pip install "pairvpr[gpu]"',  # side by side they break each other
}


def load() -> ModuleType:
    """The onnxruntime module; raises EngineError with the line that installs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"ONNX Runtime cannot be imported ({error}); run {INSTALL['cpu']}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        # What is left when onnxruntime and onnxruntime-gpu were both installed and one was removed.
        raise EngineError(
            "the onnxruntime package is broken; run pip uninstall -y onnxruntime onnxruntime-gpu, "
            f"then {INSTALL['cpu']} or {INSTALL['cuda']}"
        )
    return onnxruntime


def version() -> str:
    """Version of ONNX Runtime."""
    return str(load().__version__)


class OnnxRuntimeEngine:
    """One graph in an inference session on one device."""

    def __init__(
        self, model: Path | bytes, device: str = "cpu", threads: int | None = None, options: Any = None
    ) -> None:
        """options: the library's own, None for its defaults."""
        ort = load()
        provider = PROVIDERS[device]
        available = ort.get_available_providers()
        if provider not in available:
            raise EngineError(
                f"device {device}: this ONNX Runtime {ort.__version__} has no {provider} "
                f"(it has: {', '.join(available)}); run {INSTALL[device]}"
            )
        options = options or ort.SessionOptions()
        options.log_severity_level = 3  # errors; a warning of the library's is not the user's concern
        if threads is not None:
            options.intra_op_num_threads = threads
        # Each session has threads of its own, which by default spin for a while after a run: those of one graph would
        # take the cores from the next one's, and nano's pairs twice the time.
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
        except Exception as error:  # the library raises its own kinds, which share no base class
            raise EngineError(f"{name}: ONNX Runtime cannot load it on {device} ({_first_line(error)})") from error
        # ONNX Runtime falls back to the CPU with no more than a log line: what was obtained is read back.
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
        """Inputs in the memory of the device, for `run`."""
        return inputs if self.bound is None else self.bound.stage(inputs)

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray]:
        """Run the graph on host arrays or staged ones; float inputs are cast to the type the graph takes."""
        try:
            if self.bound is not None:
                return self.bound.run(inputs)
            feed = {name: np.ascontiguousarray(array, dtype=self.types[name]) for name, array in inputs.items()}
            results = self.session.run(self.outputs, feed)
        except Exception as error:  # as above
            raise EngineError(f"ONNX Runtime failed ({_first_line(error)}); try a smaller batch") from error
        return dict(zip(self.outputs, results, strict=True))


def profile(model: Path, inputs: Arrays) -> tuple[dict[str, npt.NDArray], list[dict[str, Any]]]:
    """Run a graph once as it stands, not optimised: its outputs, and what ONNX Runtime notes of every node that ran.

    A node's notes: `op_name`, `input_type_shape` and `output_type_shape` (lists of {type: shape}). Raises EngineError.
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
    """The devices that really ran a tiny graph here."""
    return {device: None for device, problem in try_devices().items() if problem is None}


def try_devices() -> dict[str, str | None]:
    """Each device this ONNX Runtime claims, tried on a tiny graph: None where it works, else the problem."""
    claimed = load().get_available_providers()
    return {
        device: try_engine(functools.partial(OnnxRuntimeEngine, device=device))
        for device, provider in PROVIDERS.items()
        if provider in claimed
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
