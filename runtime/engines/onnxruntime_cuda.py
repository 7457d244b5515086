"""Run ONNX Runtime on a GPU: keep arrays there, and refuse graphs that leave heavy work to the CPU."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError

log = logging.getLogger(__name__)

RESIDENT = ("query_state", "database_state")
"""Outputs that only another graph takes. They stay in the device's memory."""
PROVIDER_OPTIONS = {"use_tf32": "0"}
"""Compute float32 in float32. With TF32, products would be rounded to ten bits."""
RECORD_ASSIGNMENT = ("session.record_ep_graph_assignment_info", "1")
HEAVY = frozenset(
    "Attention Conv Erf Exp Gelu Gemm LayerNormalization MatMul MultiHeadAttention Softmax".split()  # noqa: SIM905
)
"""Operators that must run on the GPU. Gelu and Softmax without a kernel decompose into some of them. ONNX Runtime puts
other operators, the arithmetic of shapes, on the CPU by design."""


class OrtArray:
    """Hold an input or output in the device's memory. numpy copies it to the host on access."""

    def __init__(self, value: Any, dtype: npt.DTypeLike) -> None:
        self.value, self.dtype = value, np.dtype(dtype)
        self.shape = tuple(value.shape())

    def __len__(self) -> int:
        return int(self.shape[0])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return cast("npt.NDArray[Any]", self.value.numpy().astype(dtype or self.dtype, copy=False))


class BoundSession:
    """Run a session with inputs and outputs in the device's memory."""

    def __init__(
        self, ort: ModuleType, session: Any, types: Mapping[str, Any], outputs: Sequence[str], memory: str
    ) -> None:
        """Bind a session. memory: ONNX Runtime's name of the device's memory."""
        self._ort, self._session, self._memory = ort, session, memory
        self._types, self._outputs = types, outputs

    def stage(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Copy inputs to the device's memory, as arrays that `run` takes."""
        return {name: self._on_device(array, self._types[name]) for name, array in inputs.items()}

    def run(self, inputs: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph. Outputs that only another graph takes stay in the device's memory."""
        binding = self._session.io_binding()
        staged = self.stage(inputs)
        for name, array in staged.items():
            binding.bind_ortvalue_input(name, array.value)
        for name in self._outputs:
            binding.bind_output(name, self._memory if name in RESIDENT else "cpu")
        self._session.run_with_iobinding(binding)
        results: dict[str, npt.NDArray[Any]] = {}
        for name, value in zip(self._outputs, binding.get_outputs(), strict=True):
            dtype = np.float16 if value.data_type() == "tensor(float16)" else np.float32
            results[name] = cast("npt.NDArray[Any]", OrtArray(value, dtype)) if name in RESIDENT else value.numpy()
        return results

    def _on_device(self, array: npt.NDArray[Any] | OrtArray, dtype: npt.DTypeLike | None) -> OrtArray:
        if isinstance(array, OrtArray) and array.dtype == (dtype or array.dtype):
            return array
        there = np.ascontiguousarray(array, dtype=dtype)
        return OrtArray(self._ort.OrtValue.ortvalue_from_numpy(there, self._memory, 0), there.dtype)


@functools.lru_cache(maxsize=1)
def load_libraries(ort: ModuleType) -> None:
    """Load CUDA and cuDNN from pip's packages. ONNX Runtime itself searches only the system's library folders.

    Its messages about missing libraries go to stdout, where answers belong, so they are redirected to the log.
    """
    if hasattr(ort, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()) as said:
            ort.preload_dlls()
        log.debug("ONNX Runtime: %s", said.getvalue())


def refuse_cpu_work(session: Any, name: str, provider: str) -> None:
    """Raise EngineError if ONNX Runtime put heavy nodes of a graph on the CPU, which it does without a message.

    ONNX Runtime records the assignment of nodes since version 1.24. Older versions are not checked.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return
    left = sorted(
        {
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
            if part.ep_name != provider and node.op_type in HEAVY
        }
    )
    if left:
        raise EngineError(
            f"{name}: {provider} leaves {', '.join(left)} to the CPU; "
            "try another --precision, or another version of onnxruntime-gpu"
        )
