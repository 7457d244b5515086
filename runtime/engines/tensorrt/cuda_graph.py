"""A plan at one shape of its inputs, recorded as a CUDA graph: started by one call instead of one for each kernel.

TensorRT binds a recording to the execution context, shapes and addresses it was made with, and leaves open what it
does where one of them changes. So each has a context and buffers of its own that nobody else touches.
"""

from __future__ import annotations

from collections.abc import Mapping

from pairvpr.runtime.engines.tensorrt.api import Context, Execution, Shape
from pairvpr.runtime.engines.tensorrt.cuda import DeviceArray, Recording, Stream


class RecordedPlan:
    """Fixed buffers for the inputs and outputs of one shape, and the work between them.

    Its first run is an ordinary one: TensorRT puts work off until then that a recording must not contain.
    """

    def __init__(
        self, execution: Execution, context: Context, stream: Stream, profile: int, shapes: Mapping[str, Shape]
    ) -> None:
        """Raises EngineError where memory is short."""
        self.shapes = dict(shapes)
        self._stream, self._context = stream, context
        found = context.set_shapes(profile, shapes, stream.handle)
        self._inputs = {name: DeviceArray(stream, shape, execution.inputs[name]) for name, shape in shapes.items()}
        self._outputs = {name: DeviceArray(stream, shape, execution.outputs[name]) for name, shape in found.items()}
        self._recording: Recording | None = None

    def run(self, inputs: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """Start the plan on arrays of its shapes; the outputs, in memory of their own. Raises EngineError."""
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
        """From the next run on, start what is recorded now. Raises EngineError where it cannot be recorded."""
        self._stream.wait()
        self._recording = self._stream.record(self._enqueue)

    def _enqueue(self) -> None:
        arrays = {**self._inputs, **self._outputs}
        self._context.enqueue({name: array.address for name, array in arrays.items()}, self._stream.handle)
