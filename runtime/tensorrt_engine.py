"""The engine protocol on TensorRT, with what goes from graph to graph staying in GPU memory."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError
from pairvpr.runtime import cuda, tensorrt_api
from pairvpr.runtime.bundle import GRAPHS, Bundle
from pairvpr.runtime.engine import Arrays, Engine
from pairvpr.runtime.plans import PlanInfo, choose_profile, find_plans, info_file, read_plan

RESIDENT = ("query_state", "database_state")
"""Outputs that only another graph takes: they stay in GPU memory."""


class TensorRtEngine:
    """One plan on the GPU. Any batch size that one of its profiles takes."""

    def __init__(self, plan: Path, resident: Collection[str] = RESIDENT) -> None:
        """resident: outputs that `run` leaves in GPU memory, as arrays that numpy fetches when it looks at them."""
        info = PlanInfo.load(info_file(plan))
        self._profiles = info.profiles
        self._largest = info.largest_batch
        self._resident = resident
        self._stream = cuda.stream()
        self.execution = tensorrt_api.Execution(read_plan(plan, info), plan.name, info.version_compatible)

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray]:
        """Run the graph on arrays of the host or the GPU; float inputs are cast to the type the graph takes."""
        types = self.execution.inputs
        if inputs.keys() != types.keys():
            raise EngineError(f"{self.execution.name}: takes {', '.join(types)}, got {', '.join(inputs)}")
        shapes = {name: tuple(array.shape) for name, array in inputs.items()}
        profile = choose_profile(self._profiles, shapes)
        if profile is None:
            raise EngineError(
                f"{self.execution.name}: built for batches of 1 to {self._largest}, got {shapes}; "
                "give a smaller --batch-size, or build it again with other --batches"
            )
        stream, handle = self._stream, self._stream.handle
        arrays = {name: self._on_gpu(array, types[name]) for name, array in inputs.items()}
        results = {
            name: cuda.DeviceArray(stream, shape, self.execution.outputs[name])
            for name, shape in self.execution.set_shapes(profile, shapes, handle).items()
        }
        self.execution.enqueue({name: array.address for name, array in {**arrays, **results}.items()}, handle)
        return {
            name: cast("npt.NDArray", array) if name in self._resident else stream.fetch(array)
            for name, array in results.items()
        }

    def _on_gpu(self, array: npt.NDArray | cuda.DeviceArray, dtype: npt.DTypeLike) -> cuda.DeviceArray:
        if isinstance(array, cuda.DeviceArray) and array.dtype == dtype:
            return array
        return self._stream.upload(np.ascontiguousarray(array, dtype=dtype))


def matching_plans(bundle: Bundle, precision: str) -> dict[str, Path]:
    """The bundle's plans for this GPU and this TensorRT, by graph. Raises EngineError where they are not there."""
    return find_plans(bundle, precision, cuda.gpu(), tensorrt_api.version())


def open_plans(plans: dict[str, Path]) -> dict[str, Engine]:
    """An engine for each plan. Raises EngineError."""
    return {graph: TensorRtEngine(plans[graph]) for graph in GRAPHS}


def description() -> str:
    """TensorRT's version and the GPU."""
    return f"TensorRT {tensorrt_api.version()} on {cuda.gpu().name}"


def largest_batch(plans: dict[str, Path]) -> int:
    """Most pictures and pairs that all the plans take at once."""
    return min(PlanInfo.load(info_file(plan)).largest_batch for plan in plans.values())
