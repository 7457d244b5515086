"""Bind the functions of the CUDA runtime library that are used, through ctypes. Nothing needs to be installed for it.

On a Jetson this is JetPack's own library. A Python package would bring the library of a server, of another version.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Callable, Iterator
from ctypes import c_char, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from enum import IntEnum
from pathlib import Path
from typing import Any

from pairvpr.errors import EngineError, one_line

NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
TOOLKIT = Path("/usr/local/cuda/lib64")
INSTALL = (
    "on a Jetson it comes with JetPack (sudo apt install nvidia-jetpack); elsewhere run pip install "
    "nvidia-cuda-runtime, or nvidia-cuda-runtime-cu12 for CUDA 12"
)

SUCCESS, OUT_OF_MEMORY = 0, 2
CAPTURE_THREAD_LOCAL = 1
COPY_BY_ADDRESS = 4
"""Kind of a copy whose direction the library finds from the addresses."""
EVENT_WITHOUT_TIMING = 2


class Attribute(IntEnum):
    """Properties of a GPU."""

    MULTIPROCESSORS = 16
    INTEGRATED = 18
    MAJOR = 75
    MINOR = 76


# The structure of properties differs between versions, and grows. It begins with the name in all of them.
_Properties = c_char * (1 << 16)

FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cudaDeviceGetAttribute": (ctypes.POINTER(c_int), c_int, c_int),
    "cudaDriverGetVersion": (ctypes.POINTER(c_int),),
    "cudaEventCreate": (ctypes.POINTER(c_void_p),),
    "cudaEventCreateWithFlags": (ctypes.POINTER(c_void_p), c_uint),
    "cudaEventDestroy": (c_void_p,),
    "cudaEventElapsedTime": (ctypes.POINTER(c_float), c_void_p, c_void_p),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaFree": (c_void_p,),
    "cudaFreeHost": (c_void_p,),
    "cudaGetDeviceProperties": (ctypes.POINTER(_Properties), c_int),
    "cudaGetLastError": (),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGraphInstantiateWithFlags": (ctypes.POINTER(c_void_p), c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaMalloc": (ctypes.POINTER(c_void_p), c_size_t),
    "cudaMallocHost": (ctypes.POINTER(c_void_p), c_size_t),
    "cudaMemGetInfo": (ctypes.POINTER(c_size_t), ctypes.POINTER(c_size_t)),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaRuntimeGetVersion": (ctypes.POINTER(c_int),),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamCreate": (ctypes.POINTER(c_void_p),),
    "cudaStreamEndCapture": (c_void_p, ctypes.POINTER(c_void_p)),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamWaitEvent": (c_void_p, c_void_p, c_uint),
}
"""Argument types of each function. All return an error code, and write their results through the pointers."""
_RESULTS = tuple(kind for kinds in FUNCTIONS.values() for kind in kinds if hasattr(kind, "contents"))


class Library:
    """A loaded CUDA runtime library."""

    def __init__(self, file: str) -> None:
        """Load a library by its path or name. Raises OSError, or AttributeError if it lacks a function."""
        loaded = ctypes.CDLL(file)
        self._functions: dict[str, Callable[..., int]] = {}
        for name, kinds in FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = c_int, list(kinds)
            self._functions[name] = function
        loaded.cudaGetErrorName.restype, loaded.cudaGetErrorName.argtypes = c_char_p, [c_int]
        self._error_name = loaded.cudaGetErrorName
        self.file = file

    def call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """Call a function with its arguments except pointers to results. Return its error code and the results."""
        given, slots, passed = iter(arguments), [], []
        for kind in FUNCTIONS[name]:
            if kind in _RESULTS:
                slots.append(kind._type_())
                passed.append(ctypes.byref(slots[-1]))
            else:
                passed.append(next(given))
        code = self._functions[name](*passed)
        return (code, *(slot.value for slot in slots))

    def error_name(self, code: int) -> str:
        """Return the name of an error code."""
        name: bytes = self._error_name(code)
        return name.decode()

    def fits_driver(self) -> bool:
        """Tell whether the installed driver runs this library: its CUDA is of the same major version, or later."""
        driver, runtime = (self.call(name)[1] for name in ("cudaDriverGetVersion", "cudaRuntimeGetVersion"))
        return bool(driver // 1000 >= runtime // 1000)


def candidates() -> Iterator[str]:
    """Yield libraries to try: the linker's, the toolkit's, and those in Python packages."""
    yield from NAMES
    yield from (str(TOOLKIT / name) for name in NAMES)
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    yield from (
        str(file) for folder in folders for name in NAMES for file in sorted(Path(folder).glob(f"*/lib/{name}"))
    )


@functools.lru_cache(maxsize=1)
def load() -> Library:
    """Return the first library that the driver runs, or else the first that loads. Raises EngineError without one."""
    loaded, problems = [], []
    for file in candidates():
        try:
            library = Library(file)
        except (OSError, AttributeError) as error:
            problems.append(one_line(error))
            continue
        if library.fits_driver():
            return library
        loaded.append(library)
    if loaded:
        return loaded[0]
    raise EngineError(f"the CUDA runtime library cannot be loaded ({problems[0]}); {INSTALL}")
