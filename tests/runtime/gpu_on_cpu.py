"""A computer without a GPU plays one: its own memory is the device's, ONNX Runtime is what runs a "plan".

Nothing of the code under test is in here: what it does with addresses, shapes and types has to be right, or the
numbers come out wrong.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pairvpr.errors import EngineError
from pairvpr.runtime import cuda, tensorrt_api

NAME = "Test Board"


class Driver:
    """cuda-python's runtime module on host memory. Freed memory is overwritten, and must have been allocated."""

    class cudaError_t(enum.Enum):  # noqa: N801
        cudaSuccess = 0  # noqa: N815
        cudaErrorMemoryAllocation = 2  # noqa: N815
        cudaErrorNoDevice = 100  # noqa: N815

    class cudaMemcpyKind(enum.Enum):  # noqa: N801
        cudaMemcpyHostToDevice = 1  # noqa: N815
        cudaMemcpyDeviceToHost = 2  # noqa: N815

    def __init__(self, limit: int = 1 << 32) -> None:
        self.blocks: dict[int, ctypes.Array] = {}
        self.limit = limit
        self.copied = dict.fromkeys(self.cudaMemcpyKind, 0)
        self.name = NAME.encode() + b"\0"

    def cudaGetDeviceProperties(self, device: int):  # noqa: N802
        properties = SimpleNamespace(name=self.name, major=8, minor=7, multiProcessorCount=16)
        return self.cudaError_t.cudaSuccess, properties

    def cudaDriverGetVersion(self):  # noqa: N802
        return self.cudaError_t.cudaSuccess, 12060

    cudaRuntimeGetVersion = cudaDriverGetVersion  # noqa: N815

    def cudaStreamCreate(self):  # noqa: N802
        return self.cudaError_t.cudaSuccess, 7

    def cudaStreamSynchronize(self, stream: int):  # noqa: N802
        assert stream == 7
        return (self.cudaError_t.cudaSuccess,)

    def cudaMalloc(self, size: int):  # noqa: N802
        if sum(len(block) for block in self.blocks.values()) + size > self.limit:
            return self.cudaError_t.cudaErrorMemoryAllocation, 0
        block = (ctypes.c_char * size)()
        ctypes.memset(block, 0xFF, size)  # NaN for floats
        self.blocks[ctypes.addressof(block)] = block
        return self.cudaError_t.cudaSuccess, ctypes.addressof(block)

    def cudaFree(self, address: int):  # noqa: N802
        del self.blocks[address]
        return (self.cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind, stream: int):  # noqa: N802
        device = target if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        self.check(device, size)
        self.copied[kind] += size
        ctypes.memmove(target, source, size)
        return (self.cudaError_t.cudaSuccess,)

    def check(self, address: int, size: int) -> None:
        """Whether so many bytes from there are allocated."""
        assert len(self.blocks[address]) >= size


class Execution:
    """A "plan" that is the path of an ONNX file, run on device memory by ONNX Runtime."""

    driver: Driver

    def __init__(self, plan: bytes, name: str, version_compatible: bool = False) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        self.name = name
        self.session = onnxruntime.InferenceSession(plan.decode(), providers=["CPUExecutionProvider"])
        types = {"float": np.float32, "float16": np.float16, "uint8": np.uint8, "int64": np.int64}
        self.inputs, self.outputs = (
            {port.name: np.dtype(types[port.type[7:-1]]) for port in ports}
            for ports in (self.session.get_inputs(), self.session.get_outputs())
        )
        self.profiles: list[int] = []

    def set_shapes(self, profile: int, shapes: Mapping[str, tuple[int, ...]], stream: int):
        assert stream == 7
        self.profiles.append(profile)
        self.shapes = shapes
        sizes: dict[str, int] = {}
        for port in self.session.get_inputs():
            sizes.update(each for each in zip(map(str, port.shape), shapes[port.name], strict=True))
        # Axes are numbers, names, or a sum of both ("length + 1").
        return {
            port.name: tuple(
                sum(sizes.get(part) or int(part) for part in str(axis).split(" + ")) for axis in port.shape
            )
            for port in self.session.get_outputs()
        }

    def enqueue(self, addresses: Mapping[str, int], stream: int) -> None:
        feed = {name: self.view(addresses[name], shape, self.inputs[name]) for name, shape in self.shapes.items()}
        for name, array in zip(self.outputs, self.session.run(list(self.outputs), feed), strict=True):
            self.view(addresses[name], array.shape, self.outputs[name])[...] = array

    def view(self, address: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        self.driver.check(address, size)
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    def layer_types(self) -> dict[str, int]:
        return {"fp16": 9, "fp32": 1}


class Network:
    """An ONNX file whose "plan" is its own path."""

    types = {"float16": 3}  # noqa: RUF012

    def __init__(self, file: Path) -> None:
        self.file, self.name = file, file.name

    def product_types(self) -> dict[str, int]:
        return dict(self.types)

    def quantized_tensors(self) -> int:
        return 0

    def build(self, profiles, settings, timing_cache: bytes, monitor) -> tensorrt_api.Built:
        monitor.start("Building engine", None, 2)
        if not (monitor.step("Building engine", 0) and monitor.step("Building engine", 1)):
            raise EngineError("TensorRT could not build it")
        monitor.finish("Building engine")
        return tensorrt_api.Built(str(self.file).encode(), timing_cache + self.file.name.encode())


def install(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Put the players in the places of the library's."""
    driver = Driver()
    monkeypatch.setattr(cuda, "load", lambda: driver)
    monkeypatch.setattr(Execution, "driver", driver, raising=False)
    monkeypatch.setattr(tensorrt_api, "Execution", Execution)
    monkeypatch.setattr(tensorrt_api, "load", lambda: SimpleNamespace(__version__="10.3.0"))
    cuda.stream.cache_clear()
    return driver
