"""Allocate and copy GPU memory."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError
from pairvpr.runtime.engines.tensorrt import cudart
from pairvpr.runtime.engines.tensorrt.cudart import Attribute

MORE_MEMORY = "close other programs, or build engines of smaller --batches (`pairvpr engines build --batches 1,8`)"


@dataclass(frozen=True)
class Gpu:
    """Identify a GPU, to decide whether a plan runs on it. Jetsons of different sizes share a name."""

    name: str
    compute_capability: str
    multiprocessors: int


def _call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime and return its result. Raises EngineError."""
    library = cudart.load()
    code, *results = library.call(name, *arguments)
    if code != cudart.SUCCESS:
        if code == cudart.OUT_OF_MEMORY:
            raise EngineError(f"not enough GPU memory; {MORE_MEMORY}")
        raise EngineError(f"CUDA failed in {name} ({library.error_name(code)}); see `pairvpr doctor` and nvidia-smi")
    return results[0] if len(results) == 1 else results


def gpu() -> Gpu:
    """Return the first GPU, the only one used. Raises EngineError if there is none."""
    name = _call("cudaGetDeviceProperties", 0).decode(errors="replace").strip()
    return Gpu(
        name, f"{_attribute(Attribute.MAJOR)}.{_attribute(Attribute.MINOR)}", _attribute(Attribute.MULTIPROCESSORS)
    )


def _attribute(which: Attribute) -> int:
    return int(_call("cudaDeviceGetAttribute", which, 0))


def versions() -> dict[str, str]:
    """Return CUDA's version in the driver and in the runtime library."""
    numbers = {"driver": _call("cudaDriverGetVersion"), "runtime": _call("cudaRuntimeGetVersion")}
    return {name: f"{number // 1000}.{number % 1000 // 10}" for name, number in numbers.items()}


def memory() -> int:
    """Return the bytes of memory of the GPU. A Jetson's GPU has all memory of the board."""
    return int(_call("cudaMemGetInfo")[1])


class DeviceArray:
    """Hold an array in GPU memory, passed from graph to graph. numpy copies it to the host on access."""

    def __init__(self, stream: Stream, shape: tuple[int, ...], dtype: npt.DTypeLike, staged: bool = False) -> None:
        """Allocate. staged: filled by a copy beside the stream's work, so only in memory that no work uses any more."""
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._stream = stream
        self.address, give_back = stream.take(self.nbytes, staged)
        weakref.finalize(self, give_back, self.address, self.nbytes)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self._stream.fetch(self).astype(dtype or self.dtype, copy=False)


class _Pool:
    """Allocate blocks of one kind of memory. Freed blocks are kept for later blocks of the same size."""

    def __init__(self, allocate: str, free: str) -> None:
        self._names = allocate, free
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._resting: list[tuple[int, int]] = []

    def take(self, nbytes: int) -> int:
        """Return the address of a block. Raises EngineError if memory is short."""
        kept = self._free[nbytes]
        return kept.pop() if kept else int(_call(self._names[0], max(nbytes, 1)))

    def give_back(self, address: int, nbytes: int) -> None:
        """Free a block at once."""
        self._free[nbytes].append(address)

    def rest(self, address: int, nbytes: int) -> None:
        """Free a block once all work started so far is done."""
        self._resting.append((address, nbytes))

    def settle(self) -> None:
        """Free the resting blocks, after all work is done."""
        while self._resting:
            self.give_back(*self._resting.pop())

    def release(self) -> None:
        """Return the free blocks to the system."""
        for blocks in self._free.values():
            while blocks:
                _call(self._names[1], blocks.pop())


class RecordedGraph:
    """Hold work recorded on a stream. One call starts all of it again."""

    def __init__(self, executable: Any, stream: Stream) -> None:
        self._executable, self._stream = executable, stream
        weakref.finalize(self, cudart.load().call, "cudaGraphExecDestroy", executable).atexit = False

    def start(self) -> None:
        """Start the work, on the memory it was recorded with. Raises EngineError."""
        _call("cudaGraphLaunch", self._executable, self._stream.handle)


class Stream:
    """Order the work on the GPU, and manage its memory.

    All work is in order, so a block is free as soon as its array is deleted. Host arrays are copied on a second
    stream, from pinned memory, while that work runs. Their blocks rest until the work is done. A GPU that shares the
    host's memory, as on a Jetson, reads the pinned memory itself, and nothing is copied.
    """

    def __init__(self) -> None:
        self.handle = int(_call("cudaStreamCreate"))
        self._copies = int(_call("cudaStreamCreate"))
        self._copied = _call("cudaEventCreateWithFlags", cudart.EVENT_WITHOUT_TIMING)
        self._integrated = bool(_attribute(Attribute.INTEGRATED))
        self._device = _Pool("cudaMalloc", "cudaFree")
        self._pinned = _Pool("cudaMallocHost", "cudaFreeHost")
        self._staged = self._pinned if self._integrated else _Pool("cudaMalloc", "cudaFree")

    def take(self, nbytes: int, staged: bool = False) -> tuple[int, Callable[[int, int], None]]:
        """Return the address of a block of GPU memory and the function that frees it. Raises EngineError."""
        pool = self._staged if staged else self._device
        return self._take(pool, nbytes), pool.rest if staged else pool.give_back

    def _take(self, pool: _Pool, nbytes: int) -> int:
        try:
            return pool.take(nbytes)
        except EngineError:
            self.release()  # blocks left by other batch sizes
            return pool.take(nbytes)

    def release(self) -> None:
        """Return the free blocks to the system."""
        self.wait()
        for pool in (self._device, self._staged, self._pinned):
            pool.release()

    def upload(self, array: npt.NDArray[Any], dtype: npt.DTypeLike) -> DeviceArray:
        """Copy a host array to the GPU, converted to `dtype`. All later work waits for the copy."""
        there = DeviceArray(self, array.shape, dtype, staged=True)
        if self._integrated:
            self._view(there.address, there)[...] = array
            return there
        here, size = self._pinned_like(there)
        self._view(here, there)[...] = array
        self._copy(there.address, here, there.nbytes, self._copies)
        self._pinned.rest(here, size)
        _call("cudaEventRecord", self._copied, self._copies)
        _call("cudaStreamWaitEvent", self.handle, self._copied, 0)
        return there

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """Copy an array within the GPU, after all earlier work."""
        self._copy(target.address, source.address, source.nbytes, self.handle)

    def fetch(self, there: DeviceArray) -> npt.NDArray[Any]:
        """Copy a GPU array to the host, after all earlier work."""
        here, size = self._pinned_like(there)
        try:
            self._copy(here, there.address, there.nbytes, self.handle)
            self.wait()
            copied: npt.NDArray[Any] = self._view(here, there).copy()
            return copied
        finally:
            self._pinned.rest(here, size)

    def record(self, work: Callable[[], None]) -> RecordedGraph:
        """Record the work that `work` starts on this stream. Raises EngineError if it cannot be recorded."""
        library = cudart.load()
        _call("cudaStreamBeginCapture", self.handle, cudart.CAPTURE_THREAD_LOCAL)
        try:
            work()
        except BaseException:
            library.call("cudaStreamEndCapture", self.handle)
            library.call("cudaGetLastError")  # clear the error, or a later check would report it
            raise
        try:
            graph = _call("cudaStreamEndCapture", self.handle)
            try:
                # Unlike cudaGraphInstantiate, it has the same arguments in CUDA 11.4 to 13.
                return RecordedGraph(_call("cudaGraphInstantiateWithFlags", graph, 0), self)
            finally:
                _call("cudaGraphDestroy", graph)
        except EngineError:
            library.call("cudaGetLastError")
            raise

    def milliseconds(self, work: Callable[[], object]) -> float:
        """Return the milliseconds of GPU time for the work that `work` starts."""
        begin, end = _call("cudaEventCreate"), _call("cudaEventCreate")
        try:
            _call("cudaEventRecord", begin, self.handle)
            work()
            _call("cudaEventRecord", end, self.handle)
            self.wait()
            return float(_call("cudaEventElapsedTime", begin, end))
        finally:
            for event in (begin, end):
                _call("cudaEventDestroy", event)

    def wait(self) -> None:
        """Wait until all work is done."""
        _call("cudaStreamSynchronize", self.handle)
        for pool in (self._staged, self._pinned):
            pool.settle()

    def _pinned_like(self, array: DeviceArray) -> tuple[int, int]:
        """Return address and size of pinned memory for an array. Sizes are powers of two, so that blocks are reused."""
        size = 1 << (max(array.nbytes, 1) - 1).bit_length()
        return self._take(self._pinned, size), size

    @staticmethod
    def _view(address: int, array: DeviceArray) -> npt.NDArray[Any]:
        """View host memory as an array of the same shape and type."""
        memory: Any = (ctypes.c_char * array.nbytes).from_address(address)
        return np.frombuffer(memory, array.dtype).reshape(array.shape)

    @staticmethod
    def _copy(target: int, source: int, nbytes: int, stream: int) -> None:
        _call("cudaMemcpyAsync", target, source, nbytes, cudart.COPY_BY_ADDRESS, stream)


@functools.lru_cache(maxsize=1)
def stream() -> Stream:
    """Return the only stream of this process. One graph's outputs are another graph's inputs."""
    return Stream()
