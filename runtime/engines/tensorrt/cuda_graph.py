"""Record a plan at one shape of its inputs as a CUDA graph. One call then starts it, instead of one per kernel.

TensorRT binds a recording to its execution context, shapes and addresses. If one of them changes, the result is
undefined. Each recording therefore has its own context and buffers.
"""

from __future__ import annotations

from collections.abc import Mapping

from pairvpr.runtime.engines.tensorrt.cuda import DeviceArray, RecordedGraph, Stream
from pairvpr.runtime.engines.tensorrt.execution import Context, Execution
from pairvpr.runtime.engines.tensorrt.plans import Shape


class RecordedPlan:
    """Run a plan on fixed buffers for the inputs and outputs of one shape.

    The first run is an ordinary one: in it TensorRT does deferred work that a recording must not contain.
    """

    def __init__(
        self, execution: Execution, context: Context, stream: Stream, profile: int, shapes: Mapping[str, Shape]
    ) -> None:
        """Allocate the buffers. Raises EngineError if memory is short."""
        self.shapes = dict(shapes)
        self._stream, self._context = stream, context
        found = context.set_shapes(profile, shapes, stream.handle)
        self._inputs = {name: DeviceArray(stream, shape, execution.inputs[name]) for name, shape in shapes.items()}
        self._outputs = {name: DeviceArray(stream, shape, execution.outputs[name]) for name, shape in found.items()}
        self._recording: RecordedGraph | None = None

    def run(self, inputs: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """Start the plan on arrays of its shapes. Return the outputs in new memory. Raises EngineError."""
        for name, array in inputs.items():
            self._stream.copy(array, self._inputs[name])
        if self._recording is None:
            self._enqueue()
        else:
            self._recording.start()
        results = {name: DeviceArray(self._stream, each.shape, each.dtype) for name, each in self._outputs.items()}
        for name, result in results.items():
            self._stream.copy(self._outputs[name], result)
        return results

    def record(self) -> None:
        """Record the work, for all later runs. Raises EngineError if it cannot be recorded."""
        self._stream.wait()
        self._recording = self._stream.record(self._enqueue)

    def _enqueue(self) -> None:
        arrays = {**self._inputs, **self._outputs}
        self._context.enqueue({name: array.address for name, array in arrays.items()}, self._stream.handle)
