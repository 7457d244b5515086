"""Every name of TensorRT that the code uses is there in each version it is written for."""

from __future__ import annotations

import ast
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from pairvpr.errors import EngineError
from pairvpr.runtime.engines.tensorrt import api as tensorrt_api
from pairvpr.runtime.engines.tensorrt import execution, network
from tests.conftest import shared

ROOT = Path(__file__).resolve().parents[4]
FOLDER = ROOT / "runtime" / "engines" / "tensorrt"
MODULES_OF_THE_LIBRARY = ("api", "network", "execution")
MODULES = {"trt", "tensorrt"}


def trees() -> Iterator[ast.Module]:
    """Parse the modules that call the library."""
    for module in MODULES_OF_THE_LIBRARY:
        yield ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))


def dotted(node: ast.AST) -> str | None:
    """`a.b.c` as text; None for what is not names all the way."""
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return None if inner is None else f"{inner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def uses(tree: ast.Module) -> Iterator[tuple[int, list[str]]]:
    """Line and names of each use: ["Builder", "create_network"], also through what is annotated with a class."""
    classes: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            annotated, target = dotted(node.annotation), dotted(node.target)
            if annotated is not None and annotated.startswith("tensorrt."):
                assert target is not None
                assert classes.setdefault(target, annotated[9:]) == annotated[9:], f"{target} has two classes"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        name = dotted(node)
        if name is None:
            continue
        root, *rest = name.split(".")
        if root in MODULES:
            yield node.lineno, rest
        for variable, of in classes.items():
            if name.startswith(f"{variable}."):
                yield node.lineno, [of, *name[len(variable) + 1 :].split(".")]


def missing(names: dict[str, dict[str, list[str]]], used: list[str]) -> str | None:
    """The part of a use that a version does not have."""
    first, *rest = used
    if first in ("__name__", "__version__"):
        return None
    if first not in names:
        return first
    known = names[first].get("attributes", []) + names[first].get("members", [])
    # ILogger.Severity.ERROR: the listing has the members of an inner enumeration among those of its class.
    return next((f"{first}.{name}" for name in rest if name not in known and name != "__init__"), None)


def made_by_call(tree: ast.Module) -> Iterator[int]:
    """Lines where something is asked of what a call into the library returns, before it has a class to look up."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
            name = dotted(node.value.func) or ""
            if name.startswith(("trt.", "self._network", "self._builder", "self._parser", "self._engine")):
                yield node.lineno


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.0.106"])
def test_every_name_exists(version: str) -> None:
    names = json.loads(shared(f"tensorrt_api/{version}.json").read_text())["names"]
    found = [use for tree in trees() for use in uses(tree)]
    assert len(found) > 60
    assert [(line, gone) for line, used in found if (gone := missing(names, used)) is not None] == []


def test_every_name_exists_in_tensorrt_rtx() -> None:
    rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX (pip install tensorrt-rtx)")
    gone = set()
    for _, used in (use for tree in trees() for use in uses(tree)):
        try:
            functools.reduce(getattr, used, rtx)
        except AttributeError:
            gone.add(".".join(used))
    assert gone == set()


@pytest.mark.parametrize(
    ("there", "version", "flags"),
    [
        ({"tensorrt": "10.3.0", "tensorrt_rtx_bindings": "1.7.1"}, "10.3.0", 1),
        ({"tensorrt": "11.4.0", "tensorrt_rtx_bindings": None}, "11.4.0", 0),
        ({"tensorrt": None, "tensorrt_rtx_bindings": "1.7.1"}, "rtx-1.7.1", 0),
    ],
)
def test_editions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: dict[str, str | None], version: str, flags: int
) -> None:
    """TensorRT before TensorRT-RTX; only TensorRT before 11 is asked for strong types, which the others always have."""
    asked = []

    class Builder:
        def __init__(self, logger: object) -> None: ...

        create_network = asked.append

    parser = SimpleNamespace(parse_from_file=lambda file: True)
    for name, number in there.items():
        module = None
        if number is not None:
            module = ModuleType(name)
            module.__version__, module.Builder = number, Builder
            module.OnnxParser = lambda network, logger: parser
            module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=0)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(tensorrt_api, "logger", lambda: None)
    assert tensorrt_api.version() == version
    network.Network(tmp_path / "graph.onnx")
    assert asked == [flags]


def test_the_test_sees_what_is_missing() -> None:
    """Flags that are gone, methods that came later, misspelt ones: all in the way the code is written."""
    source = """
builder: tensorrt.Builder = trt.Builder(x)
builder.build_engine_with_config(n, c)
self.config: tensorrt.IBuilderConfig = builder.create_builder_config()
self.config.set_flag(trt.BuilderFlag.FP16)
self.config.int8_calibrator = c
trt.Bilder(x)
"""
    found = [used for _, used in uses(ast.parse(source))]
    gone = {}
    for version in ("10.3.0", "11.4.0.106"):
        names = json.loads(shared(f"tensorrt_api/{version}.json").read_text())["names"]
        gone[version] = {missing(names, used) for used in found} - {None}
    assert gone["10.3.0"] == {"Builder.build_engine_with_config", "Bilder"}
    assert gone["11.4.0.106"] == {"BuilderFlag.FP16", "IBuilderConfig.int8_calibrator", "Bilder"}


def test_nothing_escapes_the_test() -> None:
    assert [line for tree in trees() for line in made_by_call(tree)] == []
    assert list(made_by_call(ast.parse("trt.Builder(x).create_network(0)"))) == [1]


def test_one_module_knows_the_library() -> None:
    for top in ("runtime", "export", "calibration", "pairvpr"):
        for file in (ROOT / top).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            imported = {
                name.partition(".")[0]
                for node in ast.walk(tree)
                if isinstance(node, ast.Import | ast.ImportFrom)
                for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names])
            }
            if file.resolve() not in {FOLDER / f"{module}.py" for module in MODULES_OF_THE_LIBRARY}:
                assert not imported & {"tensorrt", "tensorrt_rtx_bindings"}, file
            assert "cuda" not in imported, file


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        EngineError, match=r"comes with JetPack.*--system-site-packages; elsewhere run pip install tens"
    ):
        tensorrt_api.version()


@pytest.mark.parametrize("raises", [False, True])
def test_a_refused_profile_is_an_error_in_every_version(monkeypatch: pytest.MonkeyPatch, raises: bool) -> None:
    """TensorRT 10.3 raises RuntimeError, and later versions return False."""

    def set_profile(profile: int, stream: int) -> bool:
        if raises:
            raise RuntimeError("Error in set optimization profile async.")
        return False

    made = SimpleNamespace(set_device_memory=lambda *_: None, set_optimization_profile_async=set_profile)
    monkeypatch.setattr(tensorrt_api, "logger", lambda: SimpleNamespace(last_error="index out of range"))
    context = execution.Context(made, "encoder.fp16.plan", [], 0, 0)
    with pytest.raises(EngineError, match=r"encoder.fp16.plan: TensorRT refused profile 2 \(index out of range\)"):
        context.set_shapes(2, {}, 7)


def test_the_inspectors_words() -> None:
    """As TensorRT's documentation and its users' reports have them."""
    texts = ["Thirty-two wide channel vectorized row major Int8 format.", "Row major linear FP16 format", "Half"]
    texts += ["Float", "Row major linear FP32", "BFloat16"]
    layers = [{"Name": "x", "Outputs": [{"Format/Datatype": text}]} for text in texts]
    inspected = json.dumps({"Layers": [*layers, "only a name", {"Name": "no outputs"}], "Bindings": []})
    assert execution.count_layer_types(inspected) == {"fp16": 2, "fp32": 2, "int8": 1, "other": 1}
