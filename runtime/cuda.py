"""The GPU's memory and copies, through cuda-python, which only this module imports."""

from __future__ import annotations

import functools
import weakref
from collections import defaultdict
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError

INSTALL = 'pip install "pairvpr[tensorrt]"; with CUDA 12, as on JetPack 6, pip install "cuda-python<13" too'


@dataclass(frozen=True)
class Gpu:
    """What decides whether a plan runs: Jetsons of different size have the same name."""

    name: str
    compute_capability: str
    multiprocessors: int


def load() -> ModuleType:
    """cuda-python's runtime module; raises EngineError with the line that installs it."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError(f"cuda-python cannot be imported ({error}); run {INSTALL}") from error
    return runtime


def _call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; what it returns. Raises EngineError."""
    cuda = load()
    code, *results = getattr(cuda, name)(*arguments)
    if code != cuda.cudaError_t.cudaSuccess:
        if code == cuda.cudaError_t.cudaErrorMemoryAllocation:
            raise EngineError("not enough GPU memory; close other programs or give a smaller --batch-size")
        raise EngineError(f"CUDA failed in {name} ({code.name}); see `pairvpr doctor` and nvidia-smi")
    return results[0] if results else None


def gpu() -> Gpu:
    """The GPU that is used, the first one. Raises EngineError where there is none."""
    found = _call("cudaGetDeviceProperties", 0)
    name = found.name.decode(errors="replace").strip("\0 ")
    return Gpu(name, f"{found.major}.{found.minor}", int(found.multiProcessorCount))


def versions() -> dict[str, str]:
    """CUDA's version as the driver and as the runtime library have it."""
    numbers = {"driver": _call("cudaDriverGetVersion"), "runtime": _call("cudaRuntimeGetVersion")}
    return {name: f"{number // 1000}.{number % 1000 // 10}" for name, number in numbers.items()}


class DeviceArray:
    """An array in GPU memory that an engine computed and another one takes; numpy fetches it when it looks at it."""

    def __init__(self, stream: Stream, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._stream = stream
        self.address = stream.take(self.nbytes)
        weakref.finalize(self, stream.give_back, self.address, self.nbytes)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray:
        return self._stream.fetch(self).astype(dtype or self.dtype, copy=False)


class Stream:
    """The order of work on the GPU, and the memory it works on: freed blocks are kept for arrays of their size.

    A block can be taken again as soon as its array is gone, for all work and all copies go through this stream.
    """

    def __init__(self) -> None:
        self.handle = int(_call("cudaStreamCreate"))
        self._free: defaultdict[int, list[int]] = defaultdict(list)

    def take(self, nbytes: int) -> int:
        """Address of a block of GPU memory. Raises EngineError."""
        if self._free[nbytes]:
            return self._free[nbytes].pop()
        try:
            return int(_call("cudaMalloc", max(nbytes, 1)))
        except EngineError:
            self.release()  # what other batch sizes have left
            return int(_call("cudaMalloc", max(nbytes, 1)))

    def give_back(self, address: int, nbytes: int) -> None:
        """A block that `take` gave is free again."""
        self._free[nbytes].append(address)

    def release(self) -> None:
        """Give the free blocks back to the system."""
        self.wait()
        for blocks in self._free.values():
            while blocks:
                _call("cudaFree", blocks.pop())

    def upload(self, array: npt.NDArray) -> DeviceArray:
        """A copy of a contiguous host array on the GPU."""
        there = DeviceArray(self, array.shape, array.dtype)
        kind = load().cudaMemcpyKind.cudaMemcpyHostToDevice
        # From memory that is not pinned the call returns when the array has been read.
        _call("cudaMemcpyAsync", there.address, array.ctypes.data, array.nbytes, kind, self.handle)
        return there

    def fetch(self, there: DeviceArray) -> npt.NDArray:
        """A copy of a GPU array on the host, once all work before it is done."""
        array = np.empty(there.shape, there.dtype)
        kind = load().cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call("cudaMemcpyAsync", array.ctypes.data, there.address, array.nbytes, kind, self.handle)
        self.wait()
        return array

    def wait(self) -> None:
        """Until all work is done."""
        _call("cudaStreamSynchronize", self.handle)


@functools.lru_cache(maxsize=1)
def stream() -> Stream:
    """The one stream of this process: arrays of one graph are inputs of another."""
    return Stream()
