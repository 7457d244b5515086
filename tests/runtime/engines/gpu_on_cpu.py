"""A computer without a GPU plays one: its own memory is the device's, ONNX Runtime is what runs a "plan".

Nothing of the code under test is in here: what it does with addresses, shapes and types has to be right, or the
numbers come out wrong.
"""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from pairvpr.errors import EngineError
from pairvpr.runtime.engines.tensorrt import api, cuda, cudart, engine, network

NAME = "Test Board"


COMPUTE, COPIES = 7, 8


class Driver:
    """The CUDA runtime library on host memory. Freed memory is overwritten, and must have been allocated.

    Work on its two streams is done as late as can be, when somebody waits for it. `eager_copies`: or, what a GPU
    may do as well, copies on the second stream at once, before work that was begun earlier on the first.
    `integrated`: the GPU reads the host's pinned memory too.
    """

    file = "libcudart.so.12"
    errors: ClassVar = {
        2: "cudaErrorMemoryAllocation",
        100: "cudaErrorNoDevice",
        900: "cudaErrorStreamCaptureUnsupported",
    }

    def __init__(self, limit: int = 1 << 32) -> None:
        self.blocks: dict[int, ctypes.Array] = {}
        self.pinned: dict[int, ctypes.Array] = {}
        self.limit = limit
        self.copied = dict.fromkeys(("to device", "to host", "within"), 0)
        self.staged: list[int] = []
        self.name = NAME.encode()
        self.memory = 16 << 30
        self.integrated = False
        self.eager_copies = False
        self.waiting: dict[int, deque[Callable[[], None]]] = {}
        self.marks: dict[object, tuple[int, Callable[[], None]]] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.can_capture = True
        self.launches = 0
        self.clock = 0.0
        self.costs: dict[str, float] = {}
        self.times: dict[object, float] = {}

    def call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        assert len(arguments) == sum(not hasattr(kind, "contents") for kind in cudart.FUNCTIONS[name]), name
        return getattr(self, name)(*arguments)

    def error_name(self, code: int) -> str:
        return self.errors[code]

    def done(self, *results):
        return (cudart.SUCCESS, *results)

    def start(self, stream: int, work: Callable[[], None]) -> None:
        """Work that begins on a stream."""
        if stream == COMPUTE and self.capturing is not None:
            self.capturing.append(work)
            return
        self.waiting[stream].append(work)
        if self.eager_copies and stream == COPIES:
            self.finish(COPIES)

    def finish(self, stream: int, until: Callable[[], None] | None = None) -> None:
        """Do the work of a stream, up to a mark in it."""
        if until is None or until in self.waiting[stream]:
            while self.waiting[stream]:
                work = self.waiting[stream].popleft()
                work()
                if work is until:
                    break

    def cudaGetDeviceProperties(self, device: int):  # noqa: N802
        return self.done(self.name)

    def cudaDeviceGetAttribute(self, attribute: int, device: int):  # noqa: N802
        assert device == 0
        return self.done({16: 16, 18: int(self.integrated), 75: 8, 76: 7}[attribute])

    def cudaMemGetInfo(self):  # noqa: N802
        return self.done(self.memory, self.memory)

    def cudaDriverGetVersion(self):  # noqa: N802
        return self.done(12060)

    cudaRuntimeGetVersion = cudaDriverGetVersion  # noqa: N815

    def cudaStreamCreate(self):  # noqa: N802
        stream = COMPUTE + len(self.waiting)
        self.waiting[stream] = deque()
        return self.done(stream)

    def cudaStreamSynchronize(self, stream: int):  # noqa: N802
        assert self.capturing is None
        self.finish(stream)
        return self.done()

    def cudaEventCreateWithFlags(self, flags: int):  # noqa: N802
        return self.done(object())

    def cudaEventCreate(self):  # noqa: N802
        return self.done(object())

    def cudaEventDestroy(self, event: object):  # noqa: N802
        del self.times[event]
        return self.done()

    def cudaEventElapsedTime(self, begin: object, end: object):  # noqa: N802
        return self.done(self.times[end] - self.times[begin])

    def cudaEventRecord(self, event: object, stream: int):  # noqa: N802
        def mark() -> None:
            self.times[event] = self.clock

        self.marks[event] = stream, mark
        self.start(stream, mark)
        return self.done()

    def cudaStreamWaitEvent(self, stream: int, event: object, flags: int):  # noqa: N802
        self.start(stream, functools.partial(self.finish, *self.marks[event]))
        return self.done()

    def cudaStreamBeginCapture(self, stream: int, mode):  # noqa: N802
        assert mode == cudart.CAPTURE_THREAD_LOCAL
        assert stream == COMPUTE
        assert self.capturing is None
        self.capturing = []
        return self.done()

    def cudaStreamEndCapture(self, stream: int):  # noqa: N802
        recorded, self.capturing = self.capturing, None
        return self.done(recorded) if self.can_capture else (900, None)

    def cudaGraphInstantiateWithFlags(self, graph: list[Callable[[], None]], flags: int):  # noqa: N802
        return self.done(tuple(graph))

    def cudaGraphDestroy(self, graph):  # noqa: N802
        graph.clear()
        return self.done()

    def cudaGraphExecDestroy(self, executable):  # noqa: N802
        return self.done()

    def cudaGraphLaunch(self, executable, stream: int):  # noqa: N802
        self.launches += 1
        for work in executable:
            self.start(stream, work)
        return self.done()

    def cudaGetLastError(self):  # noqa: N802
        return self.done()

    def cudaMalloc(self, size: int):  # noqa: N802
        assert self.capturing is None
        if sum(len(block) for block in self.blocks.values()) + size > self.limit:
            return cudart.OUT_OF_MEMORY, 0
        return self.done(self._allocate(self.blocks, size))

    def cudaMallocHost(self, size: int):  # noqa: N802
        return self.done(self._allocate(self.pinned, size))

    def _allocate(self, blocks: dict[int, ctypes.Array], size: int) -> int:
        block = (ctypes.c_char * size)()
        ctypes.memset(block, 0xFF, size)  # NaN for floats
        blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def cudaFree(self, address: int):  # noqa: N802
        del self.blocks[address]
        return self.done()

    def cudaFreeHost(self, address: int):  # noqa: N802
        del self.pinned[address]
        return self.done()

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind, stream: int):  # noqa: N802
        assert kind == cudart.COPY_BY_ADDRESS
        for address in (target, source):
            assert len((self.pinned if address in self.pinned else self.blocks)[address]) >= size
        direction = "to host" if target in self.pinned else "to device" if source in self.pinned else "within"
        self.copied[direction] += size
        if stream == COPIES:
            self.staged.append(size)
        self.start(stream, functools.partial(ctypes.memmove, target, source, size))
        return self.done()

    def check(self, address: int, size: int) -> None:
        """Check that this number of bytes can be used by the GPU from there."""
        blocks = self.pinned if self.integrated and address in self.pinned else self.blocks
        assert len(blocks[address]) >= size


SESSIONS: dict[bytes, Any] = {}


def session(file: Path) -> Any:
    """ONNX Runtime's session of a graph; one for all copies of it, for opening one takes longer than running it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = file.read_bytes()  # its weights are the default bundle's in every test
    if graph not in SESSIONS:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        SESSIONS[graph] = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return SESSIONS[graph]


class Execution:
    """A "plan" that is the path of an ONNX file and its form, run on device memory by ONNX Runtime."""

    driver: Driver
    scratch_bytes = 512

    def __init__(self, plan: bytes, name: str, version_compatible: bool = False) -> None:
        file, self.form = plan.decode().split("\n")
        self.name, self.source = name, Path(file).name
        self.session = session(Path(file))
        types = {"float": np.float32, "float16": np.float16, "uint8": np.uint8, "int64": np.int64}
        self.inputs, self.outputs = (
            {port.name: np.dtype(types[port.type[7:-1]]) for port in ports}
            for ports in (self.session.get_inputs(), self.session.get_outputs())
        )
        self.profiles: list[int] = []

    def context(self, scratch: int) -> Context:
        self.driver.check(scratch, self.scratch_bytes)
        return Context(self)

    def layer_types(self) -> dict[str, int]:
        return {"fp16": 9, "fp32": 1, **({"int8": 5} if "int8" in self.name else {})}


class Context:
    """What runs an `Execution`. Work that it began must not find it changed, which leaves TensorRT undefined."""

    def __init__(self, execution: Execution) -> None:
        self.execution, self.driver = execution, execution.driver
        self.shapes: Mapping[str, tuple[int, ...]] = {}

    def set_shapes(self, profile: int, shapes: Mapping[str, tuple[int, ...]], stream: int):
        assert stream == COMPUTE
        self.execution.profiles.append(profile)
        self.shapes = dict(shapes)
        sizes: dict[str, int] = {}
        for port in self.execution.session.get_inputs():
            sizes.update(each for each in zip(map(str, port.shape), shapes[port.name], strict=True))
        # Axes are numbers, names, or a sum of both ("length + 1").
        return {
            port.name: tuple(
                sum(sizes.get(part) or int(part) for part in str(axis).split(" + ")) for axis in port.shape
            )
            for port in self.execution.session.get_outputs()
        }

    def enqueue(self, addresses: Mapping[str, int], stream: int) -> None:
        replayed, shapes, addresses = self.driver.capturing is not None, self.shapes, dict(addresses)

        def work() -> None:
            assert not replayed or self.shapes is shapes
            self.compute(shapes, addresses)

        self.driver.start(stream, work)

    def compute(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        inputs, outputs = self.execution.inputs, self.execution.outputs
        self.driver.clock += self.driver.costs.get(self.execution.name, 1.0)  # milliseconds
        feed = {name: self.view(addresses[name], shape, inputs[name]) for name, shape in shapes.items()}
        for name, array in zip(outputs, self.execution.session.run(list(outputs), feed), strict=True):
            self.view(addresses[name], array.shape, outputs[name])[...] = self.result(name, array)

    def result(self, name: str, array: np.ndarray) -> np.ndarray:
        """What is written as an output."""
        return array

    def view(self, address: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        self.driver.check(address, size)
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


class Network:
    """An ONNX file whose "plan" is its own path, and the form in which it is to be built."""

    types = {"float16": 3}  # noqa: RUF012

    def __init__(self, file: Path) -> None:
        self.file, self.name, self.form = file, file.name, "fused"

    def unfuse_attention(self) -> None:
        self.form = "separate"

    def compute_in_float32(self) -> None:
        assert self.form == "separate"
        self.form = "float32"

    def product_types(self) -> dict[str, int]:
        return dict(self.types)

    def quantized_tensors(self) -> int:
        return int("int8" in self.name)

    def build(self, profiles, settings, timing_cache: bytes, monitor) -> network.Built:
        monitor.start("Building engine", None, 2)
        if not (monitor.step("Building engine", 0) and monitor.step("Building engine", 1)):
            raise EngineError("TensorRT could not build it")
        monitor.finish("Building engine")
        return network.Built(f"{self.file}\n{self.form}".encode(), timing_cache + self.file.name.encode())


def install(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Put the players in the places of the library's."""
    driver = Driver()
    monkeypatch.setattr(cudart, "load", lambda: driver)
    monkeypatch.setattr(Execution, "driver", driver, raising=False)
    monkeypatch.setattr(engine, "Execution", Execution)
    monkeypatch.setattr("pairvpr.export.tensorrt.Execution", Execution)
    monkeypatch.setattr(api, "load", lambda: SimpleNamespace(__name__="tensorrt", __version__="10.3.0"))
    cuda.stream.cache_clear()
    return driver
