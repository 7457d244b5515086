"""Load plans and run them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pairvpr.runtime.engines.tensorrt import api
from pairvpr.runtime.engines.tensorrt.plans import Shape

if TYPE_CHECKING:
    import tensorrt

# The inspector describes types in words ("Row major linear FP16 format", "Half") that differ between versions.
TYPE_WORDS = {
    "int8": r"\bint8\b",
    "fp16": r"\b(fp16|half|float16)\b",
    "fp32": r"\b(fp32|float|float32)\b",
}


class Execution:
    """Load a plan on the GPU. Raises EngineError if TensorRT refuses it."""

    def __init__(self, plan: bytes, name: str, version_compatible: bool = False) -> None:
        trt = api.load()
        self.name = name
        self._runtime: tensorrt.Runtime = trt.Runtime(api.logger())
        if version_compatible:
            self._runtime.engine_host_code_allowed = True  # such plans contain their own runtime
        self._engine: tensorrt.ICudaEngine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise api.fail(f"{name}: TensorRT cannot load it", "build it again with `pairvpr engines build`")
        self.inputs: dict[str, np.dtype] = {}
        self.outputs: dict[str, np.dtype] = {}
        for index in range(self._engine.num_io_tensors):
            tensor = str(self._engine.get_tensor_name(index))
            ports = self.inputs if self._engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT else self.outputs
            ports[tensor] = np.dtype(trt.nptype(self._engine.get_tensor_dtype(tensor)))
        self.scratch_bytes = int(self._engine.device_memory_size_v2)

    def context(self, scratch: int) -> Context:
        """Return a context that runs the plan.

        scratch: address of `scratch_bytes` bytes of GPU memory for the values between layers. Contexts on one stream
        may share it.
        Raises EngineError.
        """
        trt = api.load()
        made = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if made is None:
            raise api.fail(
                f"{self.name}: not enough GPU memory to run it",
                "close other programs, or build it again with smaller --batches",
            )
        return Context(made, self.name, list(self.outputs), scratch, self.scratch_bytes)

    def layer_types(self) -> dict[str, int]:
        """Count the layers by output type, from the library's inspector."""
        trt = api.load()
        inspector: tensorrt.EngineInspector = self._engine.create_engine_inspector()
        return count_layer_types(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


class Context:
    """Run a plan with a profile, shapes and addresses."""

    def __init__(self, made: Any, name: str, outputs: Sequence[str], scratch: int, scratch_bytes: int) -> None:
        self._context: tensorrt.IExecutionContext = made
        self._context.set_device_memory(scratch, scratch_bytes)
        self._name, self._outputs = name, outputs
        self._profile = 0

    def set_shapes(self, profile: int, shapes: Mapping[str, Shape], stream: int) -> dict[str, Shape]:
        """Set a profile and the shapes of the inputs. Return the shapes of the outputs. Raises EngineError."""
        if profile != self._profile:
            try:  # TensorRT 10.3 raises RuntimeError where others return False
                accepted = self._context.set_optimization_profile_async(profile, stream)
            except RuntimeError:
                accepted = False
            if not accepted:
                raise api.fail(f"{self._name}: TensorRT refused profile {profile}", "try another --batch-size")
            self._profile = profile
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise api.fail(f"{self._name}: TensorRT refused {name} of shape {shape}", "try another --batch-size")
        return {name: tuple(int(n) for n in self._context.get_tensor_shape(name)) for name in self._outputs}

    def enqueue(self, addresses: Mapping[str, int], stream: int) -> None:
        """Start the graph. addresses: device memory of all inputs and outputs. Raises EngineError."""
        for name, address in addresses.items():
            self._context.set_tensor_address(name, address)
        if not self._context.execute_async_v3(stream):
            raise api.fail(f"{self._name}: TensorRT failed", "close other programs, and run `pairvpr doctor`")


def count_layer_types(inspected: str) -> dict[str, int]:
    """Count the layers by output type, from the inspector's JSON. Unknown types count as "other"."""
    found: Counter[str] = Counter()
    for entry in json.loads(inspected)["Layers"]:
        outputs = entry.get("Outputs", []) if isinstance(entry, dict) else []  # names only, if not built with DETAILED
        for text in {str(output.get("Format/Datatype", "")).lower() for output in outputs}:
            found[next((name for name, words in TYPE_WORDS.items() if re.search(words, text)), "other")] += 1
    return dict(sorted(found.items()))
