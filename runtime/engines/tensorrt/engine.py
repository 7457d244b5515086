"""Run graphs with TensorRT. Arrays passed from graph to graph stay in GPU memory."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError
from pairvpr.runtime.bundle import Bundle, plan_folders
from pairvpr.runtime.engines.base import Arrays
from pairvpr.runtime.engines.tensorrt import api, cuda
from pairvpr.runtime.engines.tensorrt.cuda import DeviceArray
from pairvpr.runtime.engines.tensorrt.cuda_graph import RecordedPlan
from pairvpr.runtime.engines.tensorrt.execution import Execution
from pairvpr.runtime.engines.tensorrt.plans import PlanInfo, choose_profile, find_plans, info_file, read_plan

log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]

INT8 = "int8-fp16"
RESIDENT = ("query_state", "database_state", "scores")
"""Outputs that stay in GPU memory until they are accessed. Only another graph takes the states. While the scores are
computed, the next candidates can be read and copied."""


class TensorRtEngine:
    """Run one plan on the GPU, at any batch size that one of its profiles accepts.

    For each profile, the first shape that occurs twice in a row is recorded as a CUDA graph. Other shapes are started
    kernel by kernel. If recording fails, all are, and a warning is logged.
    """

    def __init__(self, info: PlanInfo, execution: Execution, scratch: DeviceArray, resident: Collection[str]) -> None:
        """Prepare to run a loaded plan. Raises EngineError.

        scratch: memory for the values between layers. Engines share it, because they run on one stream.
        resident: outputs that `run` leaves in GPU memory; numpy copies them on access.
        """
        self._profiles = info.profiles
        self._largest = info.largest_batch
        self._resident = resident
        self._stream = cuda.stream()
        self.execution = execution
        self._scratch = scratch
        self._context = execution.context(scratch.address)
        self._recorded: dict[int, RecordedPlan] = {}
        self._last_shapes: dict[int, dict[str, tuple[int, ...]]] = {}
        self._may_record = True

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on arrays on the host or the GPU. Float inputs are cast to the type that the graph takes.

        Raises EngineError.
        """
        types = self.execution.inputs
        if inputs.keys() != types.keys():
            raise EngineError(f"{self.execution.name}: takes {', '.join(types)}, got {', '.join(inputs)}")
        shapes = {name: tuple(array.shape) for name, array in inputs.items()}
        profile = choose_profile(self._profiles, shapes)
        if profile is None:
            raise EngineError(
                f"{self.execution.name}: built for batches of 1 to {self._largest}, got {shapes}; "
                "give a smaller --batch-size or build it again with other --batches; for a map of merged tokens, "
                "choose another --device"
            )
        arrays = {name: self._on_gpu(array, types[name]) for name, array in inputs.items()}
        results = self._run_recorded(profile, shapes, arrays) or self._run_plain(profile, shapes, arrays)
        return {
            name: cast("npt.NDArray[Any]", array) if name in self._resident else self._stream.fetch(array)
            for name, array in results.items()
        }

    def stage(self, inputs: Arrays) -> Arrays:
        """Start to copy host arrays to the GPU, beside the work in progress. `run` takes the result."""
        types = self.execution.inputs
        return {name: cast("npt.NDArray[Any]", self._on_gpu(array, types[name])) for name, array in inputs.items()}

    def _run_plain(self, profile: int, shapes: Shapes, arrays: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        stream, outputs = self._stream, self.execution.outputs
        results = {
            name: DeviceArray(stream, shape, outputs[name])
            for name, shape in self._context.set_shapes(profile, shapes, stream.handle).items()
        }
        addresses = {name: array.address for name, array in {**arrays, **results}.items()}
        self._context.enqueue(addresses, stream.handle)
        return results

    def _run_recorded(
        self, profile: int, shapes: Shapes, arrays: Mapping[str, DeviceArray]
    ) -> dict[str, DeviceArray] | None:
        """Run the recording of this shape, or record it if it is due. Return None if the shape has no recording."""
        known = self._recorded.get(profile)
        if known is not None:
            return known.run(arrays) if known.shapes == shapes else None
        again = self._last_shapes.get(profile) == shapes
        self._last_shapes[profile] = dict(shapes)
        if not (again and self._may_record):
            return None
        try:
            context = self.execution.context(self._scratch.address)
            plan = RecordedPlan(self.execution, context, self._stream, profile, shapes)
            results = plan.run(arrays)
            plan.record()
        except EngineError as error:
            self._may_record = False
            log.warning("%s: runs without CUDA graphs, which is slower (%s)", self.execution.name, error)
            return None
        self._recorded[profile] = plan
        return results

    def _on_gpu(self, array: npt.NDArray[Any] | DeviceArray, dtype: npt.DTypeLike) -> DeviceArray:
        if isinstance(array, DeviceArray) and array.dtype == dtype:
            return array
        return self._stream.upload(np.asarray(array), dtype)


def find_matching_plans(bundle: Bundle, precision: str) -> dict[str, Path]:
    """Return the bundle's plans for this GPU and this TensorRT, by graph. Raises EngineError if one is missing."""
    return find_plans(bundle, precision, cuda.gpu(), api.version())


def find_kept_int8(bundle: Bundle) -> str | None:
    """Return the precision of INT8 plans that were measured faster here and kept, or None without such plans."""
    if INT8 not in bundle.info.precisions or not any(
        any(folder.glob(f"*.{INT8}.plan")) for folder in plan_folders(bundle)
    ):
        return None
    try:
        find_matching_plans(bundle, INT8)
    except EngineError as error:
        log.info("not INT8: %s", error)
        return None
    return INT8


def open_plans(plans: Mapping[str, Path], resident: Collection[str] = RESIDENT) -> dict[str, TensorRtEngine]:
    """Load plans, which share one block of scratch memory. Raises EngineError.

    resident: see `TensorRtEngine`.
    """
    infos = {name: PlanInfo.load(info_file(plan)) for name, plan in plans.items()}
    executions = {
        name: Execution(read_plan(plan, infos[name]), plan.name, infos[name].version_compatible)
        for name, plan in plans.items()
    }
    largest = max(execution.scratch_bytes for execution in executions.values())
    scratch = DeviceArray(cuda.stream(), (largest,), np.uint8)
    return {name: TensorRtEngine(infos[name], executions[name], scratch, resident) for name in plans}


def describe() -> str:
    """Return TensorRT's version and the GPU's name."""
    return f"TensorRT {api.version()} on {cuda.gpu().name}"


def largest_batch(plans: dict[str, Path]) -> int:
    """Return the largest batch that the plans accept. The encoder, which answers one picture, may take fewer."""
    return min(PlanInfo.load(info_file(plan)).largest_batch for name, plan in plans.items() if name != "encoder")
