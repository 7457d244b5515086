"""The engine protocol on TensorRT, with what goes from graph to graph staying in GPU memory."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError
from pairvpr.runtime.bundle import ENGINES, GRAPHS, Bundle
from pairvpr.runtime.engines.base import Arrays
from pairvpr.runtime.engines.tensorrt import api, cuda
from pairvpr.runtime.engines.tensorrt.cuda import DeviceArray
from pairvpr.runtime.engines.tensorrt.cuda_graph import RecordedPlan
from pairvpr.runtime.engines.tensorrt.plans import PlanInfo, choose_profile, find_plans, info_file, read_plan

log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]

INT8 = "int8-fp16"
RESIDENT = ("query_state", "database_state", "scores")
"""Outputs that stay in GPU memory until they are looked at: only another graph takes the states, and while scores
are worked out the next candidates can be read and copied."""


class TensorRtEngine:
    """One plan on the GPU. Any batch size that one of its profiles takes.

    The first shape of each profile that comes twice in a row is recorded as a CUDA graph; others are started kernel
    by kernel, as is all where recording fails, which is logged.
    """

    def __init__(self, plan: Path, resident: Collection[str] = RESIDENT) -> None:
        """resident: outputs that `run` leaves in GPU memory, as arrays that numpy fetches when it looks at them."""
        info = PlanInfo.load(info_file(plan))
        self._profiles = info.profiles
        self._largest = info.largest_batch
        self._resident = resident
        self._stream = cuda.stream()
        self.execution = api.Execution(read_plan(plan, info), plan.name, info.version_compatible)
        self._scratch = DeviceArray(self._stream, (self.execution.scratch_bytes,), np.uint8)
        self._context = self.execution.context(self._scratch.address)
        self._recorded: dict[int, RecordedPlan] = {}
        self._last_shapes: dict[int, dict[str, tuple[int, ...]]] = {}
        self._may_record = True

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
                "give a smaller --batch-size, build it again with other --batches, or, for a map of merged tokens, "
                "choose another --device"
            )
        arrays = {name: self._on_gpu(array, types[name]) for name, array in inputs.items()}
        results = self._run_recorded(profile, shapes, arrays) or self._run_plain(profile, shapes, arrays)
        return {
            name: cast("npt.NDArray", array) if name in self._resident else self._stream.fetch(array)
            for name, array in results.items()
        }

    def stage(self, inputs: Arrays) -> Arrays:
        """Host arrays on their way to the GPU, copied while work that was begun goes on; `run` takes them."""
        types = self.execution.inputs
        return {name: cast("npt.NDArray", self._on_gpu(array, types[name])) for name, array in inputs.items()}

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
        """Run as it was recorded, or record it where it is time to; None where this shape has no recording."""
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
            log.warning("%s: runs without CUDA graphs, somewhat slower (%s)", self.execution.name, error)
            return None
        self._recorded[profile] = plan
        return results

    def _on_gpu(self, array: npt.NDArray | DeviceArray, dtype: npt.DTypeLike) -> DeviceArray:
        if isinstance(array, DeviceArray) and array.dtype == dtype:
            return array
        return self._stream.upload(np.asarray(array), dtype)


def matching_plans(bundle: Bundle, precision: str) -> dict[str, Path]:
    """The bundle's plans for this GPU and this TensorRT, by graph. Raises EngineError where they are not there."""
    return find_plans(bundle, precision, cuda.gpu(), api.version())


def kept_int8(bundle: Bundle) -> str | None:
    """The precision of INT8 plans that were measured here, found faster and kept; None without such."""
    if INT8 not in bundle.info.precisions or not any((bundle.path / ENGINES).glob(f"*/*.{INT8}.plan")):
        return None
    try:
        matching_plans(bundle, INT8)
    except EngineError as error:
        log.info("not INT8: %s", error)
        return None
    return INT8


def open_plans(plans: dict[str, Path]) -> dict[str, TensorRtEngine]:
    """An engine for each plan. Raises EngineError."""
    return {graph: TensorRtEngine(plans[graph]) for graph in GRAPHS}


def description() -> str:
    """TensorRT's version and the GPU."""
    return f"TensorRT {api.version()} on {cuda.gpu().name}"


def largest_batch(plans: dict[str, Path]) -> int:
    """Most pictures and pairs that all the plans take at once."""
    return min(PlanInfo.load(info_file(plan)).largest_batch for plan in plans.values())
