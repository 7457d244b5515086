"""Every name of cuda-python that the code uses is there, and takes as many arguments as it is given."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pairvpr.runtime.engines.tensorrt import cuda

runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")

TREE = ast.parse(Path(cuda.__file__).read_text(encoding="utf-8"))


def takes(name: str) -> int:
    """How many arguments a function takes, by its signature in the first line of its documentation."""
    signature = re.match(rf"{name}\((.*)\)$", getattr(runtime, name).__doc__.splitlines()[0])
    assert signature is not None
    return len([part for part in signature[1].split(",") if part.strip()])


def test_calls_fit() -> None:
    calls = [node for node in ast.walk(TREE) if isinstance(node, ast.Call)]
    checked = set()
    for call in calls:
        if isinstance(call.func, ast.Name) and call.func.id == "_call" and isinstance(call.args[0], ast.Constant):
            name, given = str(call.args[0].value), len(call.args) - 1
        elif isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "cuda":
            name, given = call.func.attr, len(call.args)
        else:
            continue
        assert takes(name) == given, name
        checked.add(name)
    assert {"cudaGraphInstantiateWithFlags", "cudaMemcpyAsync", "cudaEventElapsedTime", "cudaGetLastError"} <= checked


def test_names_exist() -> None:
    """Functions given by name, members of enumerations, constants."""
    enumerations = (runtime.cudaMemcpyKind, runtime.cudaError_t, runtime.cudaStreamCaptureMode)
    known = set(dir(runtime)).union(*(dir(each) for each in enumerations))
    used = {
        str(node.value)
        for node in ast.walk(TREE)
        if isinstance(node, ast.Constant) and re.fullmatch(r"cuda[A-Z]\w+", str(node.value))
    } | {node.attr for node in ast.walk(TREE) if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")}
    assert len(used) > 20
    assert used <= known
    for allocate in ("cudaMalloc", "cudaMallocHost", "cudaFree", "cudaFreeHost"):
        assert allocate in used
        assert takes(allocate) == 1


def test_the_test_sees_a_wrong_name() -> None:
    assert not hasattr(runtime, "cudaGraphInstantiateWithFlag")
    assert takes("cudaMemcpyAsync") == 5
