"""Call TensorRT, from building a plan to running it. No other module calls the library.

The same code serves TensorRT 10.3 to 11 and TensorRT-RTX: precision is in the graph, and networks are strongly typed.
Every object of the library is annotated with its class, so that a test can look up each attribute in each version.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError

if TYPE_CHECKING:
    import tensorrt

log = logging.getLogger(__name__)

INSTALL = (
    "on a Jetson it comes with JetPack: make the environment with python3 -m venv --system-site-packages; "
    "elsewhere run pip install tensorrt (or tensorrt-rtx, for RTX GPUs)"
)
# The inspector describes types in words ("Row major linear FP16 format", "Half") that differ between versions.
TYPE_WORDS = {
    "int8": r"\bint8\b",
    "fp16": r"\b(fp16|half|float16)\b",
    "fp32": r"\b(fp32|float|float32)\b",
}

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""The smallest, usual and largest shape of each input."""


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


def load() -> ModuleType:
    """Return the module of TensorRT, or else of TensorRT-RTX. Raises EngineError with a remedy."""
    try:
        import tensorrt
    except ImportError as error:
        try:
            import tensorrt_rtx_bindings as tensorrt  # the module tensorrt_rtx only re-exports it
        except ImportError:
            raise EngineError(f"TensorRT cannot be imported ({error}); {INSTALL}") from error
    if not hasattr(tensorrt, "Builder"):
        raise EngineError(f"the tensorrt package is broken (it has no Builder); {INSTALL}")
    module: ModuleType = tensorrt
    return module


def version() -> str:
    """Return the version. TensorRT-RTX's begins with "rtx-": neither library loads the other's plans."""
    trt = load()
    return f"rtx-{trt.__version__}" if _is_rtx(trt) else str(trt.__version__)


def _is_rtx(trt: ModuleType) -> bool:
    return trt.__name__ == "tensorrt_rtx_bindings"


def _major(trt: ModuleType) -> int:
    return int(str(trt.__version__).partition(".")[0])


@functools.lru_cache(maxsize=1)
def _logger() -> Any:
    """Return the logger that forwards to ours. The library uses one for all its objects, and it must outlive them."""
    trt = load()

    class Log(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last_error = message
            log.debug("TensorRT: %s", message)

    return Log()


def _fail(what: str, remedy: str) -> EngineError:
    """Return an error that quotes the library's last error message."""
    complaint = " ".join(_logger().last_error.split())[:300] or "it gives no reason"
    return EngineError(f"{what} ({complaint}); {remedy}")


class Network:
    """Parse an ONNX file. Raises EngineError if TensorRT cannot."""

    def __init__(self, file: Path) -> None:
        trt = load()
        self._builder: tensorrt.Builder = trt.Builder(_logger())
        flags = 0
        if not _is_rtx(trt) and _major(trt) < 11:  # in TensorRT-RTX and from 11 on every network is strongly typed
            flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network: tensorrt.INetworkDefinition = self._builder.create_network(flags)
        self._parser: tensorrt.OnnxParser = trt.OnnxParser(self._network, _logger())  # holds the weights
        self._kept: list[npt.NDArray[Any]] = []
        self.name = file.name
        if not self._parser.parse_from_file(str(file)):
            raise EngineError(f"{file.name}: TensorRT {version()} cannot parse it ({self._complaint()})")

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
        trt = load()
        products = (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION)
        made = [self._output(layer) for layer in self._layers() if layer.type in products]
        return Counter(np.dtype(trt.nptype(tensor.dtype)).name for tensor in made)

    def quantized_tensors(self) -> int:
        """Count the tensors that are dequantized from 8 bits."""
        trt = load()
        return sum(layer.type == trt.LayerType.DEQUANTIZE for layer in self._layers())

    def unfuse_attention(self) -> int:
        """Compute every softmax in separate steps and in float32. Return the number of them.

        The library then finds no attention to fuse into one kernel. Its fused attention may be wrong.
        """
        trt = load()
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
        trt = load()
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
        trt = load()
        plain.__class__ = trt.IConvolutionLayer  # the library's way to reach the attributes of a kind of layer
        convolution: tensorrt.IConvolutionLayer = plain
        kernel, bias = (np.asarray(each, np.float32) for each in (convolution.kernel, convolution.bias))
        self._kept += [kernel, bias]  # the library holds no reference
        convolution.kernel, convolution.bias = kernel, bias

    def _layers(self) -> list[tensorrt.ILayer]:
        return [self._network.get_layer(index) for index in range(self._network.num_layers)]

    def _cast(self, tensor: tensorrt.ITensor, dtype: Any) -> tensorrt.ITensor:
        return self._output(self._network.add_cast(tensor, dtype))

    @staticmethod
    def _output(layer: tensorrt.ILayer) -> tensorrt.ITensor:
        return layer.get_output(0)

    def build(
        self, profiles: Sequence[Profile], settings: BuildSettings, timing_cache: bytes, monitor: Monitor
    ) -> Built:
        """Build a plan for these profiles. Takes minutes. Raises EngineError."""
        trt = load()
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
                raise _fail(f"{self.name}: TensorRT refuses the batch sizes", "give other sizes with --batches")
        # TensorRT refuses an old or foreign cache. Then the build starts with an empty one.
        cache: tensorrt.ITimingCache = config.create_timing_cache(timing_cache)
        if cache is None or not config.set_timing_cache(cache, False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        config.progress_monitor = reporter = _reporter(monitor)
        plan: tensorrt.IHostMemory = self._builder.build_serialized_network(self._network, config)
        del reporter  # kept alive until here: the library holds no reference
        if plan is None:
            raise _fail(
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
    trt = load()

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


class Execution:
    """Load a plan on the GPU. Raises EngineError if TensorRT refuses it."""

    def __init__(self, plan: bytes, name: str, version_compatible: bool = False) -> None:
        trt = load()
        self.name = name
        self._runtime: tensorrt.Runtime = trt.Runtime(_logger())
        if version_compatible:
            self._runtime.engine_host_code_allowed = True  # such plans contain their own runtime
        self._engine: tensorrt.ICudaEngine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise _fail(f"{name}: TensorRT cannot load it", "build it again with `pairvpr engines build`")
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
        trt = load()
        made = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if made is None:
            raise _fail(
                f"{self.name}: not enough GPU memory to run it",
                "close other programs, or build it again with smaller --batches",
            )
        return Context(made, self.name, list(self.outputs), scratch, self.scratch_bytes)

    def layer_types(self) -> dict[str, int]:
        """Count the layers by output type, from the library's inspector."""
        trt = load()
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
                raise _fail(f"{self._name}: TensorRT refused profile {profile}", "try another --batch-size")
            self._profile = profile
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise _fail(f"{self._name}: TensorRT refused {name} of shape {shape}", "try another --batch-size")
        return {name: tuple(int(n) for n in self._context.get_tensor_shape(name)) for name in self._outputs}

    def enqueue(self, addresses: Mapping[str, int], stream: int) -> None:
        """Start the graph. addresses: device memory of all inputs and outputs. Raises EngineError."""
        for name, address in addresses.items():
            self._context.set_tensor_address(name, address)
        if not self._context.execute_async_v3(stream):
            raise _fail(f"{self._name}: TensorRT failed", "close other programs, and run `pairvpr doctor`")


def count_layer_types(inspected: str) -> dict[str, int]:
    """Count the layers by output type, from the inspector's JSON. Unknown types count as "other"."""
    found: Counter[str] = Counter()
    for entry in json.loads(inspected)["Layers"]:
        outputs = entry.get("Outputs", []) if isinstance(entry, dict) else []  # names only, if not built with DETAILED
        for text in {str(output.get("Format/Datatype", "")).lower() for output in outputs}:
            found[next((name for name, words in TYPE_WORDS.items() if re.search(words, text)), "other")] += 1
    return dict(sorted(found.items()))
