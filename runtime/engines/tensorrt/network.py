"""Build plans: parse an ONNX graph, rewrite it if its engine would be wrong, and let TensorRT build it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError
from pairvpr.runtime.engines.tensorrt import api
from pairvpr.runtime.engines.tensorrt.plans import Profile, Shape

if TYPE_CHECKING:
    import tensorrt


class Monitor:
    """Receive the progress of a build. Phases nest."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Begin a phase of `steps` steps."""

    def step(self, phase: str, step: int) -> bool:
        """Finish a step of a phase. Return False to cancel the build."""
        return True

    def finish(self, phase: str) -> None:
        """Finish a phase."""


@dataclass(frozen=True)
class BuildSettings:
    """Hold the options of a build.

    workspace: bytes of scratch memory for a layer, or None for TensorRT's own limit.
    optimization_level: 0 (fast build) to 5 (fast plan), or None for TensorRT's default.
    version_compatible: whether the plan runs on later versions of the same major version.
    hardware_compatible: whether the plan runs on other GPUs from Ampere on.
    """

    workspace: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False


@dataclass(frozen=True)
class Built:
    """Hold a plan and the timing cache after its build."""

    plan: bytes
    timing_cache: bytes


class Network:
    """Parse an ONNX file. Raises EngineError if TensorRT cannot."""

    def __init__(self, file: Path) -> None:
        trt = api.load()
        self._builder: tensorrt.Builder = trt.Builder(api.logger())
        self._network: tensorrt.INetworkDefinition = self._builder.create_network(api.typing_flags())
        self._parser: tensorrt.OnnxParser = trt.OnnxParser(self._network, api.logger())  # holds the weights
        self._kept: list[npt.NDArray[Any]] = []
        self.name = file.name
        if not self._parser.parse_from_file(str(file)):
            raise EngineError(f"{file.name}: TensorRT {api.version()} cannot parse it ({self._complaint()})")

    def _complaint(self) -> str:
        for index in range(self._parser.num_errors):
            error: tensorrt.ParserError = self._parser.get_error(index)
            return " ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}".split())[:300]
        return "it gives no reason"

    def inputs(self) -> dict[str, Shape]:
        """Return the shape of every input, with -1 for a variable size."""
        shapes = {}
        for index in range(self._network.num_inputs):
            tensor: tensorrt.ITensor = self._network.get_input(index)
            shapes[str(tensor.name)] = tuple(int(size) for size in tensor.shape)
        return shapes

    def product_types(self) -> Counter[str]:
        """Count the matrix products and convolutions by the type they are computed in."""
        trt = api.load()
        products = (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION)
        made = [self._output(layer) for layer in self._layers() if layer.type in products]
        return Counter(np.dtype(trt.nptype(tensor.dtype)).name for tensor in made)

    def quantized_tensors(self) -> int:
        """Count the tensors that are dequantized from 8 bits."""
        trt = api.load()
        return sum(layer.type == trt.LayerType.DEQUANTIZE for layer in self._layers())

    def unfuse_attention(self) -> int:
        """Compute every softmax in separate steps and in float32. Return the number of them.

        The library then finds no attention to fuse into one kernel. Its fused attention may be wrong.
        """
        trt = api.load()
        layers = self._layers()
        found = [layer for layer in layers if layer.type == trt.LayerType.SOFTMAX]
        for softmax in found:
            scores: tensorrt.ITensor = softmax.get_input(0)
            weights: tensorrt.ITensor = softmax.get_output(0)
            users, half = _users(layers, weights), scores.dtype == trt.DataType.HALF
            last = 1 << (len(scores.shape) - 1)
            x = self._cast(scores, trt.DataType.FLOAT) if half else scores
            largest = self._output(self._network.add_reduce(x, trt.ReduceOperation.MAX, last, True))
            x = self._output(self._network.add_elementwise(x, largest, trt.ElementWiseOperation.SUB))
            x = self._output(self._network.add_unary(x, trt.UnaryOperation.EXP))
            total = self._output(self._network.add_reduce(x, trt.ReduceOperation.SUM, last, True))
            x = self._output(self._network.add_elementwise(x, total, trt.ElementWiseOperation.DIV))
            _rewire(users, self._cast(x, trt.DataType.HALF) if half else x)
        return len(found)

    def compute_in_float32(self) -> None:
        """Compute everything in float32. Weights, inputs and outputs keep their types."""
        trt = api.load()
        half, single = trt.DataType.HALF, trt.DataType.FLOAT
        layers = self._layers()
        inputs = [self._network.get_input(index) for index in range(self._network.num_inputs)]
        outputs = [self._network.get_output(index) for index in range(self._network.num_outputs)]
        narrow = [output for output in outputs if output.dtype == half]
        sources = [(tensor, tensor) for tensor in inputs if tensor.dtype == half]
        for layer in layers:
            made: tensorrt.ITensor = layer.get_output(0)
            if made.dtype == half and layer.type == trt.LayerType.CONSTANT:
                sources.append((made, made))
            elif made.dtype == half and layer.type == trt.LayerType.CAST:
                sources.append((made, layer.get_input(0)))
            elif made.dtype == half and layer.type == trt.LayerType.CONVOLUTION:  # its weights are no tensors
                self._widen_convolution(layer)
        uses = [(_users(layers, old), new) for old, new in sources]
        for users, new in uses:
            _rewire(users, self._cast(new, single))
        for wide in narrow:
            name, wide.name = wide.name, f"{wide.name}.float32"
            self._network.unmark_output(wide)
            cast = self._cast(wide, half)
            cast.name = name
            self._network.mark_output(cast)

    def _widen_convolution(self, plain: Any) -> None:
        trt = api.load()
        plain.__class__ = trt.IConvolutionLayer  # the library's way to reach the attributes of a kind of layer
        convolution: tensorrt.IConvolutionLayer = plain
        kernel, bias = (np.asarray(each, np.float32) for each in (convolution.kernel, convolution.bias))
        self._kept += [kernel, bias]  # the library holds no reference
        convolution.kernel, convolution.bias = kernel, bias

    def _layers(self) -> list[tensorrt.ILayer]:
        layers = []
        for index in range(self._network.num_layers):
            layer: tensorrt.ILayer = self._network.get_layer(index)
            layers.append(layer)
        return layers

    def _cast(self, tensor: tensorrt.ITensor, dtype: Any) -> tensorrt.ITensor:
        return self._output(self._network.add_cast(tensor, dtype))

    @staticmethod
    def _output(layer: tensorrt.ILayer) -> tensorrt.ITensor:
        return layer.get_output(0)

    def build(
        self, profiles: Sequence[Profile], settings: BuildSettings, timing_cache: bytes, monitor: Monitor
    ) -> Built:
        """Build a plan for these profiles. Takes minutes. Raises EngineError."""
        trt = api.load()
        config: tensorrt.IBuilderConfig = self._builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it the inspector lists no types
        config.clear_flag(trt.BuilderFlag.TF32)  # compute float32 in float32
        if settings.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
        if settings.optimization_level is not None:
            config.builder_optimization_level = settings.optimization_level
        if settings.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if settings.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        for shapes in profiles:
            profile: tensorrt.IOptimizationProfile = self._builder.create_optimization_profile()
            for name, (smallest, usual, largest) in shapes.items():
                profile.set_shape(name, smallest, usual, largest)
            if config.add_optimization_profile(profile) < 0:
                raise api.fail(f"{self.name}: TensorRT refuses the batch sizes", "give other sizes with --batches")
        # TensorRT refuses an old or foreign cache. Then the build starts with an empty one.
        cache: tensorrt.ITimingCache = config.create_timing_cache(timing_cache)
        if cache is None or not config.set_timing_cache(cache, False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        config.progress_monitor = reporter = _reporter(monitor)
        plan: tensorrt.IHostMemory = self._builder.build_serialized_network(self._network, config)
        del reporter  # kept alive until here: the library holds no reference
        if plan is None:
            raise api.fail(
                f"{self.name}: TensorRT could not build it",
                "free memory, or give less --workspace or smaller --batches",
            )
        after: tensorrt.ITimingCache = config.get_timing_cache()
        return Built(bytes(memoryview(plan)), bytes(memoryview(after.serialize())))


def _users(layers: Sequence[tensorrt.ILayer], tensor: tensorrt.ITensor) -> list[tuple[tensorrt.ILayer, int]]:
    """Return the layers that take a tensor, each with the index of that input."""
    users = []
    for layer in layers:
        for index in range(layer.num_inputs):
            taken: tensorrt.ITensor | None = layer.get_input(index)
            if taken is not None and taken.name == tensor.name:
                users.append((layer, index))
    return users


def _rewire(users: Sequence[tuple[tensorrt.ILayer, int]], tensor: tensorrt.ITensor) -> None:
    """Let layers take another tensor."""
    for layer, index in users:
        layer.set_input(index, tensor)


def _reporter(monitor: Monitor) -> Any:
    trt = api.load()

    class Reporter(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            monitor.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return monitor.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            monitor.finish(phase_name)

    return Reporter()
