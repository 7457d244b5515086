"""Test the binding to the CUDA runtime: on a small library of C on the host's memory, and against CUDA's header."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pairvpr.errors import EngineError
from pairvpr.runtime.engines.tensorrt import cuda, cudart
from pairvpr.runtime.engines.tensorrt.cuda import Gpu

STUB = Path(__file__).with_name("cudart_stub.c")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a function that compiles the stub with some versions and returns its path."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("cuda")
    numbers = itertools.count()

    def build(driver: int = 12060, runtime: int = 12060, integrated: int = 0) -> str:
        library = folder / f"libcudart{next(numbers)}.so"
        defined = [f"-DDRIVER={driver}", f"-DRUNTIME={runtime}", f"-DINTEGRATED={integrated}"]
        # -Bsymbolic: its functions call each other, also where torch has loaded functions of the same names.
        flags = ["-shared", "-fPIC", "-w", "-Wl,-Bsymbolic"]
        subprocess.run([compiler, *flags, *defined, "-o", library, STUB], check=True)
        return str(library)

    return build


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Forget the library and the stream of other tests, before and after."""
    for each in (cudart.load, cuda.stream):
        each.cache_clear()
    yield
    gc.collect()
    for each in (cudart.load, cuda.stream):
        each.cache_clear()


def use(monkeypatch: pytest.MonkeyPatch, *files: str) -> None:
    monkeypatch.setattr(cudart, "candidates", lambda: iter(files))


def test_the_gpu_is_described(compiled: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, compiled())
    assert cuda.gpu() == Gpu("Orin", "8.7", 8)
    assert cuda.memory() == 7 << 30
    assert cuda.versions() == {"driver": "12.6", "runtime": "12.6"}


@pytest.mark.parametrize("integrated", [0, 1])
def test_arrays_go_there_and_back(
    compiled: Callable[..., str], monkeypatch: pytest.MonkeyPatch, integrated: int
) -> None:
    use(monkeypatch, compiled(integrated=integrated))
    stream = cuda.stream()
    copies = []
    call = cuda._call
    monkeypatch.setattr(cuda, "_call", lambda name, *rest: copies.append(name) or call(name, *rest))
    values = np.arange(1 << 11, dtype=np.float32).reshape(4, -1)
    there = stream.upload(values, np.float16)
    # A GPU that shares the host's memory reads what was written for it; nothing is copied.
    assert copies.count("cudaMemcpyAsync") == 1 - integrated
    again = cuda.DeviceArray(stream, there.shape, there.dtype)
    stream.copy(there, again)
    np.testing.assert_array_equal(np.asarray(again), values.astype(np.float16))
    assert stream.milliseconds(lambda: None) == 1.5
    del there, again
    gc.collect()
    stream.release()


def test_work_is_recorded(compiled: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = compiled()
    use(monkeypatch, file)
    stream = cuda.stream()
    source, target = stream.upload(np.ones(8), np.float32), stream.upload(np.zeros(8), np.float32)
    recording = stream.record(lambda: stream.copy(source, target))
    assert not np.asarray(target).any()
    recording.start()
    recording.start()
    assert ctypes.CDLL(file).launched() == 2


def test_errors_have_names_and_remedies(compiled: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, compiled())
    with pytest.raises(EngineError, match=r"CUDA failed in cudaStreamSynchronize \(cudaErrorInvalidValue\)"):
        cuda._call("cudaStreamSynchronize", 5)
    with pytest.raises(EngineError, match=r"not enough GPU memory; .*`pairvpr engines build --batches 1,8`"):
        cuda.DeviceArray(cuda.stream(), (7 << 30,), np.uint8)


def test_a_library_that_the_driver_runs_comes_first(
    compiled: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library of CUDA 13, as a Python package may bring it, is of no use on a driver of CUDA 12."""
    newer, fitting = compiled(runtime=13000), compiled(runtime=12090)
    use(monkeypatch, "libcudart.so.77", newer, fitting)
    assert cudart.load().file == fitting
    cudart.load.cache_clear()
    use(monkeypatch, newer)  # better than none: CUDA then says what is wrong
    assert cudart.load().file == newer


def test_the_systems_library_is_tried_first() -> None:
    files = list(cudart.candidates())
    assert files[:3] == ["libcudart.so.13", "libcudart.so.12", "libcudart.so"]
    assert files[3:6] == [f"/usr/local/cuda/lib64/{name}" for name in files[:3]]


def test_without_any_library(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "libcudart.so.77")
    with pytest.raises(EngineError, match=r"cannot be loaded \(libcudart.so.77: .*\); on a Jetson it comes with"):
        cudart.load()


def test_a_library_that_lacks_a_function(compiled: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, compiled())
    monkeypatch.setitem(cudart.FUNCTIONS, "cudaDoSomething", ())
    with pytest.raises(EngineError, match=r"cannot be loaded \(.*undefined symbol: cudaDoSomething"):
        cudart.load()


def header() -> Path:
    """CUDA's header, from the toolkit or a Python package."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path("/usr/local/cuda"), Path("/usr/local/cuda-13.0")]
    folders += [] if spec is None else sorted(Path(spec.submodule_search_locations[0]).glob("*"))
    found = [file for folder in folders if (file := folder / "include" / "cuda_runtime_api.h").exists()]
    if not found:
        pytest.skip("needs CUDA's header cuda_runtime_api.h")
    return found[0]


def kind(parameter: str) -> str:
    """The kind of a parameter as it is written in the header, in the words of `described`."""
    words = parameter.replace("*", " * ").split()[:-1]  # without the parameter's own name
    words = [word for word in words if word not in ("const", "enum", "struct")]
    handles = ("cudaStream_t", "cudaEvent_t", "cudaGraph_t", "cudaGraphExec_t")
    name, stars = " ".join(word for word in words if word != "*"), words.count("*")
    name = name.replace("unsigned long long", "size_t")
    if name in handles or name == "void":
        stars += name in handles
        return {1: "pointer", 2: "result pointer"}[stars]
    if stars:
        return f"result {name}"
    return "int" if name.startswith("cuda") else name


def described(argument: type) -> str:
    """The kind of an argument in the binding."""
    names = {
        ctypes.c_void_p: "pointer",
        ctypes.c_int: "int",
        ctypes.c_uint: "unsigned int",
        ctypes.c_size_t: "size_t",  # and unsigned long long: the same on 64 bits
        ctypes.c_float: "float",
        cudart._Properties: "cudaDeviceProp",
    }
    return f"result {names[argument._type_]}" if hasattr(argument, "contents") else names[argument]


def test_arguments_are_those_of_cudas_header() -> None:
    text = header().read_text(encoding="utf-8", errors="replace")
    for name, arguments in cudart.FUNCTIONS.items():
        found = re.search(rf"CUDARTAPI {name}\((.*?)\);", text)
        assert found is not None, name
        written = re.sub(r"__dv\([^)]*\)", "", found[1])
        parameters = [] if written.strip() in ("", "void") else [each.strip() for each in written.split(",")]
        assert [kind(each) for each in parameters] == [described(each) for each in arguments], name
    numbers = header().with_name("driver_types.h").read_text(encoding="utf-8", errors="replace")
    for constant, value in {
        "cudaDevAttrMultiProcessorCount": cudart.Attribute.MULTIPROCESSORS,
        "cudaDevAttrIntegrated": cudart.Attribute.INTEGRATED,
        "cudaDevAttrComputeCapabilityMajor": cudart.Attribute.MAJOR,
        "cudaDevAttrComputeCapabilityMinor": cudart.Attribute.MINOR,
        "cudaErrorMemoryAllocation": cudart.OUT_OF_MEMORY,
        "cudaMemcpyDefault": cudart.COPY_BY_ADDRESS,
        "cudaStreamCaptureModeThreadLocal": cudart.CAPTURE_THREAD_LOCAL,
    }.items():
        assert re.search(rf"\b{constant}\s*=\s*{value}\b", numbers), constant
    assert re.search(rf"cudaEventDisableTiming\s+0x0?{cudart.EVENT_WITHOUT_TIMING}\b", numbers)


def test_a_real_library_has_every_function() -> None:
    try:
        library = cudart.load()
    except EngineError as error:
        pytest.skip(str(error))
    code, version = library.call("cudaRuntimeGetVersion")
    assert (code, version // 1000) in ((0, 12), (0, 13))
    assert library.error_name(cudart.OUT_OF_MEMORY) == "cudaErrorMemoryAllocation"
