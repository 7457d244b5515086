"""What is different where ONNX Runtime computes on a GPU: arrays stay there, and no work is left to the CPU unseen."""

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
"""Outputs that only another graph takes: they stay in the device's memory."""
PROVIDER_OPTIONS = {"use_tf32": "0"}
"""Float32 that was asked for is float32: else products are rounded to ten bits."""
RECORD_ASSIGNMENT = ("session.record_ep_graph_assignment_info", "1")
HEAVY = frozenset(
    "Attention Conv Erf Exp Gelu Gemm LayerNormalization MatMul MultiHeadAttention Softmax".split()  # noqa: SIM905
)
"""Operators that must run on the GPU, and what Gelu and Softmax are taken apart into where they have no kernel; ONNX
Runtime itself puts the arithmetic of shapes on the CPU."""


class OrtArray:
    """An array in the device's memory that a graph takes or made; numpy fetches it when it looks at it."""

    def __init__(self, value: Any, dtype: npt.DTypeLike) -> None:
        self.value, self.dtype = value, np.dtype(dtype)
        self.shape = tuple(value.shape())

    def __len__(self) -> int:
        return int(self.shape[0])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray:
        return cast("npt.NDArray", self.value.numpy().astype(dtype or self.dtype, copy=False))


class BoundSession:
    """A session whose inputs and outputs lie where they are needed."""

    def __init__(
        self, ort: ModuleType, session: Any, types: Mapping[str, Any], outputs: Sequence[str], memory: str
    ) -> None:
        """memory: the device's, by ONNX Runtime's name."""
        self._ort, self._session, self._memory = ort, session, memory
        self._types, self._outputs = types, outputs

    def stage(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs in the device's memory, as arrays that `run` takes."""
        return {name: self._on_device(array, self._types[name]) for name, array in inputs.items()}

    def run(self, inputs: Mapping[str, Any]) -> dict[str, npt.NDArray]:
        """Run the graph; outputs that only another graph takes are left in the device's memory."""
        binding = self._session.io_binding()
        staged = self.stage(inputs)
        for name, array in staged.items():
            binding.bind_ortvalue_input(name, array.value)
        for name in self._outputs:
            binding.bind_output(name, self._memory if name in RESIDENT else "cpu")
        self._session.run_with_iobinding(binding)
        results: dict[str, npt.NDArray] = {}
        for name, value in zip(self._outputs, binding.get_outputs(), strict=True):
            dtype = np.float16 if value.data_type() == "tensor(float16)" else np.float32
            results[name] = cast("npt.NDArray", OrtArray(value, dtype)) if name in RESIDENT else value.numpy()
        return results

    def _on_device(self, array: npt.NDArray | OrtArray, dtype: npt.DTypeLike | None) -> OrtArray:
        if isinstance(array, OrtArray) and array.dtype == (dtype or array.dtype):
            return array
        there = np.ascontiguousarray(array, dtype=dtype)
        return OrtArray(self._ort.OrtValue.ortvalue_from_numpy(there, self._memory, 0), there.dtype)


@functools.lru_cache(maxsize=1)
def load_libraries(ort: ModuleType) -> None:
    """Load CUDA and cuDNN where pip installed them: of itself ONNX Runtime looks where the system has libraries alone.

    What it says of those that are not there it prints, where answers go.
    """
    if hasattr(ort, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()) as said:
            ort.preload_dlls()
        log.debug("ONNX Runtime: %s", said.getvalue())


def refuse_cpu_work(session: Any, name: str, provider: str) -> None:
    """Raise EngineError where ONNX Runtime left heavy nodes of a graph to the CPU, which it says nowhere.

    It is asked which nodes went where, which it can be since it keeps notes of it (1.24).
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
