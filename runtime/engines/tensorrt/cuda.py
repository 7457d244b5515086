"""The GPU's memory and copies, through cuda-python, which only this module imports."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections import defaultdict
from collections.abc import Callable
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

    def __init__(self, stream: Stream, shape: tuple[int, ...], dtype: npt.DTypeLike, staged: bool = False) -> None:
        """staged: filled by a copy that runs beside the stream's work, so only of memory that no work uses any more."""
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._stream = stream
        self.address, give_back = stream.take(self.nbytes, staged)
        weakref.finalize(self, give_back, self.address, self.nbytes)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray:
        return self._stream.fetch(self).astype(dtype or self.dtype, copy=False)


class _Pool:
    """Blocks of one kind of memory; freed ones are kept for others of their size."""

    def __init__(self, allocate: str, free: str) -> None:
        self._names = allocate, free
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._resting: list[tuple[int, int]] = []

    def take(self, nbytes: int) -> int:
        """Address of a block. Raises EngineError where there is none left."""
        kept = self._free[nbytes]
        return kept.pop() if kept else int(_call(self._names[0], max(nbytes, 1)))

    def give_back(self, address: int, nbytes: int) -> None:
        """The block is free at once."""
        self._free[nbytes].append(address)

    def rest(self, address: int, nbytes: int) -> None:
        """The block is free once all work begun so far is done."""
        self._resting.append((address, nbytes))

    def settle(self) -> None:
        """All work is done: what rested is free."""
        while self._resting:
            self.give_back(*self._resting.pop())

    def release(self) -> None:
        """Give free blocks to the system."""
        for blocks in self._free.values():
            while blocks:
                _call(self._names[1], blocks.pop())


class Recording:
    """Work on a stream that was recorded once and is started again by one call."""

    def __init__(self, executable: Any, stream: Stream) -> None:
        self._executable, self._stream = executable, stream
        weakref.finalize(self, load().cudaGraphExecDestroy, executable).atexit = False

    def start(self) -> None:
        """Start it, on the memory it was recorded with. Raises EngineError."""
        _call("cudaGraphLaunch", self._executable, self._stream.handle)


class Stream:
    """The order of work on the GPU, and the memory it works on.

    A block that work has written can be taken again as soon as its array is gone, for all such work is in order. Host
    arrays come by a second stream, from pinned memory, while that work runs: their blocks rest until it is done.
    """

    def __init__(self) -> None:
        cuda = load()
        self.handle = int(_call("cudaStreamCreate"))
        self._copies = int(_call("cudaStreamCreate"))
        self._copied = _call("cudaEventCreateWithFlags", int(cuda.cudaEventDisableTiming))
        self._device = _Pool("cudaMalloc", "cudaFree")
        self._staged = _Pool("cudaMalloc", "cudaFree")
        self._pinned = _Pool("cudaMallocHost", "cudaFreeHost")

    def take(self, nbytes: int, staged: bool = False) -> tuple[int, Callable[[int, int], None]]:
        """Address of a block of GPU memory, and what gives it back. Raises EngineError."""
        pool = self._staged if staged else self._device
        return self._take(pool, nbytes), pool.rest if staged else pool.give_back

    def _take(self, pool: _Pool, nbytes: int) -> int:
        try:
            return pool.take(nbytes)
        except EngineError:
            self.release()  # what other batch sizes have left
            return pool.take(nbytes)

    def release(self) -> None:
        """Give the free blocks back to the system."""
        self.wait()
        for pool in (self._device, self._staged, self._pinned):
            pool.release()

    def upload(self, array: npt.NDArray, dtype: npt.DTypeLike) -> DeviceArray:
        """A copy of a host array on the GPU, as another type if need be. All work begun after it waits for it."""
        there = DeviceArray(self, array.shape, dtype, staged=True)
        here, size = self._pinned_like(there)
        self._view(here, there)[...] = array
        self._copy(there.address, here, there.nbytes, "cudaMemcpyHostToDevice", self._copies)
        self._pinned.rest(here, size)
        _call("cudaEventRecord", self._copied, self._copies)
        _call("cudaStreamWaitEvent", self.handle, self._copied, 0)
        return there

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """Copy an array within the GPU, once all work before it is done."""
        self._copy(target.address, source.address, source.nbytes, "cudaMemcpyDeviceToDevice", self.handle)

    def fetch(self, there: DeviceArray) -> npt.NDArray:
        """A copy of a GPU array on the host, once all work before it is done."""
        here, size = self._pinned_like(there)
        try:
            self._copy(here, there.address, there.nbytes, "cudaMemcpyDeviceToHost", self.handle)
            self.wait()
            return self._view(here, there).copy()
        finally:
            self._pinned.rest(here, size)

    def record(self, work: Callable[[], None]) -> Recording:
        """Record what `work` would start on this stream. Raises EngineError where it cannot be recorded."""
        cuda = load()
        _call("cudaStreamBeginCapture", self.handle, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            cuda.cudaStreamEndCapture(self.handle)
            cuda.cudaGetLastError()  # else the next call of whoever asks for it would fail with this one's error
            raise
        try:
            graph = _call("cudaStreamEndCapture", self.handle)
            try:
                # Takes the same arguments in CUDA 11.4 to 13, cudaGraphInstantiate does not.
                return Recording(_call("cudaGraphInstantiateWithFlags", graph, 0), self)
            finally:
                _call("cudaGraphDestroy", graph)
        except EngineError:
            cuda.cudaGetLastError()
            raise

    def milliseconds(self, work: Callable[[], object]) -> float:
        """How long the GPU takes from where `work` begins to where all that it started is done."""
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
        """Until all work is done."""
        _call("cudaStreamSynchronize", self.handle)
        for pool in (self._staged, self._pinned):
            pool.settle()

    def _pinned_like(self, array: DeviceArray) -> tuple[int, int]:
        """Pinned memory for an array: address and size, a power of two, so that few sizes are kept."""
        size = 1 << (max(array.nbytes, 1) - 1).bit_length()
        return self._take(self._pinned, size), size

    @staticmethod
    def _view(address: int, array: DeviceArray) -> npt.NDArray:
        """Host memory seen as such an array."""
        memory: Any = (ctypes.c_char * array.nbytes).from_address(address)
        return np.frombuffer(memory, array.dtype).reshape(array.shape)

    @staticmethod
    def _copy(target: int, source: int, nbytes: int, kind: str, stream: int) -> None:
        _call("cudaMemcpyAsync", target, source, nbytes, getattr(load().cudaMemcpyKind, kind), stream)


@functools.lru_cache(maxsize=1)
def stream() -> Stream:
    """The one stream of this process: arrays of one graph are inputs of another."""
    return Stream()
