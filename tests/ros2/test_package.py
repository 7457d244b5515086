"""What colcon and ROS would look for: names that agree across the package's files, and messages that exist."""

from __future__ import annotations

import ast
import dataclasses
import re
import runpy
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import setuptools

pytest.importorskip("rosbags", reason="message definitions come with the extra pairvpr[bags]")

from pairvpr_ros import names
from pairvpr_ros.parameters import Parameters
from rosbags.interfaces import Nodetype
from ruamel.yaml import YAML

import pairvpr
from pairvpr.errors import PairVPRError
from tests.runtime.outputs.ros_contract import DISTRIBUTIONS

ROOT = Path(__file__).resolve().parents[2] / "ros2"
MODULES = {path.stem: ast.parse(path.read_text()) for path in (ROOT / "pairvpr_ros").glob("*.py")}
LAUNCH = ROOT / "launch" / "visual_localization.launch.py"
PACKAGE = ET.parse(ROOT / "package.xml").getroot()
TRIGGER = {"Request": {}, "Response": {"success": bool, "message": str}}  # of std_srvs, which rosbags does not have


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_names_and_versions_agree(setup: dict[str, Any]) -> None:
    name = PACKAGE.findtext("name")
    assert name == setup["name"] == "pairvpr_ros"
    assert PACKAGE.findtext("version") == setup["version"] == pairvpr.__version__
    assert PACKAGE.findtext("export/build_type") == "ament_python"
    assert f"/lib/{name}" in (ROOT / "setup.cfg").read_text()
    installed = {
        Path(target) / Path(source).name: ROOT / source for target, files in setup["data_files"] for source in files
    }
    assert all(source.is_file() for source in installed.values())
    assert Path(f"share/ament_index/resource_index/packages/{name}") in installed
    assert Path(f"share/{name}/package.xml") in installed
    assert set(installed.values()) >= {*(ROOT / "launch").iterdir(), *(ROOT / "config").iterdir()}
    (script,) = setup["entry_points"]["console_scripts"]
    executable, module, function = re.fullmatch(r"(\w+) = ([\w.]+):(\w+)", script).groups()
    assert module == "pairvpr_ros.main"
    assert function in {each.name for each in MODULES["main"].body if isinstance(each, ast.FunctionDef)}
    assert executable == "visual_localization"


def test_versions_and_dates_of_the_changelogs_agree() -> None:
    """ROS's release tools take only headings of this form as versions."""
    project = re.findall(r"^## (\S+) - (\S+)$", (ROOT.parent / "CHANGELOG.md").read_text(), re.MULTILINE)
    package = re.findall(
        r"^(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)\n-+$", (ROOT / "CHANGELOG.rst").read_text(), re.MULTILINE
    )
    assert package == project


def test_every_package_that_is_imported_is_a_dependency() -> None:
    needed = {each.text for each in PACKAGE.findall("exec_depend")}
    imported = set()
    for tree in (*MODULES.values(), ast.parse(LAUNCH.read_text())):
        for each in ast.walk(tree):
            if isinstance(each, ast.ImportFrom):
                imported.add((each.module or "").partition(".")[0])
            elif isinstance(each, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in each.names}
    elsewhere = {*sys.stdlib_module_names, "pairvpr", "pairvpr_ros", "numpy", "PIL", "tf2_ros"}
    # The Debian packages of numpy and Pillow, and the package with the module tf2_ros.
    assert imported - elsewhere == needed - {"python3-numpy", "python3-pil", "tf2_ros_py"}


def test_the_parameters_file_has_every_parameter_with_its_default() -> None:
    content = YAML(typ="safe").load((ROOT / "config" / "visual_localization.yaml").read_text())
    ((name, of_node),) = content.items()
    assert name == "/**"
    defaults = {field.name: field.default for field in dataclasses.fields(Parameters)}
    stored = of_node["ros__parameters"]
    assert stored == defaults
    assert {key: type(value) for key, value in stored.items()} == {key: type(value) for key, value in defaults.items()}
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in (*defaults, *names.OUTPUTS, names.TRIGGER))


# The launch file


class Launched:
    """What the launch file made, with arguments given to it, on stand-ins for launch that keep what they are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **given: str) -> None:
        self.declared: dict[str, str | None] = {}
        self.nodes: list[dict[str, Any]] = []

        class Configuration:
            def __init__(this, name: str) -> None:  # noqa: N805
                this.name = name

            def perform(this, context: Any) -> str:  # noqa: N805
                assert this.name in self.declared, f"{this.name} is used and not declared"
                return given.get(this.name, str(self.declared[this.name]))

        def declare(name: str, default_value: Any = None, description: str = "") -> None:
            assert description
            self.declared[name] = default_value

        functions: list[Any] = []
        modules = {
            "launch": {"LaunchContext": object, "LaunchDescription": list},
            "launch.actions": {
                "DeclareLaunchArgument": declare,
                "OpaqueFunction": lambda function: functions.append(function),
            },
            "launch.substitutions": {
                "LaunchConfiguration": Configuration,
                "PathJoinSubstitution": lambda parts: "/".join(parts),
            },
            "launch_ros": {},
            "launch_ros.actions": {"Node": lambda **told: self.nodes.append(told)},
            "launch_ros.substitutions": {"FindPackageShare": lambda name: f"/share/{name}"},
        }
        for name, content in modules.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
        runpy.run_path(str(LAUNCH))["generate_launch_description"]()
        assert set(given) <= set(self.declared)
        for function in functions:
            function(None)


def test_every_parameter_is_an_argument_of_the_launch_file(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = Launched(monkeypatch)
    assert {*Parameters.describe(), "use_sim_time", "namespace", "params_file"} <= set(launched.declared)
    (node,) = launched.nodes
    assert node["parameters"] == ["/share/pairvpr_ros/config/visual_localization.yaml", {"use_sim_time": False}]
    assert (node["package"], node["executable"]) == (PACKAGE.findtext("name"), "visual_localization")


def test_the_launch_file_passes_on_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "map_dir": "12", "top_k": "50", "max_rate": "2", "autostart": "False", "use_sim_time": "true",
        "namespace": "left", "image": "/front/image_raw", "pose": "initialpose",
    }  # fmt: skip
    (node,) = Launched(monkeypatch, **given).nodes
    expected = {"map_dir": "12", "top_k": 50, "max_rate": 2.0, "autostart": False, "use_sim_time": True}
    assert node["parameters"][1] == expected
    assert {name: type(value) for name, value in node["parameters"][1].items()} == {
        name: type(value) for name, value in expected.items()
    }
    assert node["namespace"] == "left"
    remapped = dict(node["remappings"])
    assert remapped[names.image_topic(0, "raw")] == "/front/image_raw"
    assert remapped[names.image_topic(0, "compressed")] == "/front/image_raw/compressed"
    assert remapped["visual_localization/pose"] == "initialpose"


@pytest.mark.parametrize("given", [{"top_k": "many"}, {"autostart": "perhaps"}])
def test_arguments_of_another_type_are_refused(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    with pytest.raises(PairVPRError, match="is not of the parameter's type"):
        Launched(monkeypatch, **given)


# The node's syntax tree


class Reader:
    """Follows values of message classes through a function of the node; every field on the way has to exist."""

    def __init__(self, store: Any, tree: ast.Module) -> None:
        self.store, self.fields_seen = store, 0
        self.classes = {f"Trigger.{name}": f"Trigger.{name}" for name in TRIGGER}
        for each in tree.body:
            package, _, kind = (each.module or "").partition(".") if isinstance(each, ast.ImportFrom) else ("", "", "")
            if kind == "msg":
                for alias in each.names:
                    self.classes[alias.asname or alias.name] = f"{package}/msg/{alias.name}"
                    assert f"{package}/msg/{alias.name}" in store.fielddefs

    def read(self, function: ast.FunctionDef) -> None:
        known: dict[str, str | None] = {}
        for each in ast.walk(function):
            if isinstance(each, ast.arg) and each.annotation is not None:
                known[each.arg] = self.classes.get(ast.unparse(each.annotation))
            elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                known[each.target.id] = self.classes.get(ast.unparse(each.annotation))
        for each in ast.walk(function):
            if isinstance(each, ast.Assign):
                for target, value in self.pairs(each):
                    if isinstance(target, ast.Name) and target.id not in known:
                        known[target.id] = self.kind_of(value, known)
        for each in ast.walk(function):
            self.fields_seen += isinstance(each, ast.Attribute) and self.kind_of(each, known) is not None

    @staticmethod
    def pairs(assignment: ast.Assign) -> list[tuple[ast.expr, ast.expr]]:
        found: list[tuple[ast.expr, ast.expr]] = []
        for target in assignment.targets:
            if isinstance(target, ast.Tuple) and isinstance(assignment.value, ast.Tuple):
                found += zip(target.elts, assignment.value.elts, strict=True)
            else:
                found.append((target, assignment.value))
        return found

    def kind_of(self, value: ast.expr, known: dict[str, str | None]) -> str | None:
        """The type of a value that comes from a message, None for all others."""
        if isinstance(value, ast.Name):
            return known.get(value.id)
        if not isinstance(value, ast.Attribute):
            return None
        kind = self.kind_of(value.value, known)
        if kind is None:
            return None
        if kind.startswith("Trigger."):
            return TRIGGER[kind.partition(".")[2]][value.attr].__name__
        assert kind in self.store.fielddefs, f"{ast.unparse(value)}: {kind} has no fields"
        fields = dict(self.store.fielddefs[kind][1])
        assert value.attr in fields, f"{ast.unparse(value)}: {kind} has no such field"
        node, inner = fields[value.attr]
        return inner if node == Nodetype.NAME else str(inner)


def table() -> ast.Dict:
    """The message classes that are built."""
    (found,) = [
        each.value
        for each in MODULES["messages"].body
        if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name) and each.targets[0].id == "CLASSES"
    ]
    assert isinstance(found, ast.Dict)
    return found


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_message_and_field_that_the_node_uses_exists(distribution: str) -> None:
    readers = {name: Reader(DISTRIBUTIONS[distribution], tree) for name, tree in MODULES.items()}
    for key, value in zip(table().keys, table().values, strict=True):
        assert readers["messages"].classes[value.id] == key.value
    for name, tree in MODULES.items():
        for function in (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)):
            readers[name].read(function)
    assert sum(reader.fields_seen for reader in readers.values()) >= 13  # the service's response, and tf's transforms


@pytest.mark.parametrize("line", ["found.transform.translations", "found.transform.translation.x.y", "found.stamp"])
def test_a_field_that_is_none_is_found(line: str) -> None:
    code = f"def read(found: TransformStamped):\n    return {line}"
    with pytest.raises(AssertionError):
        Reader(DISTRIBUTIONS["humble"], MODULES["tf"]).read(ast.parse(code).body[0])


def test_the_table_has_every_type_that_messages_are_made_of() -> None:
    """Of those that answers and transforms need, none is missing and none is there for nothing."""
    store = DISTRIBUTIONS["humble"]
    needed, left = set(), [*names.OUTPUTS.values(), "geometry_msgs/msg/TransformStamped"]
    while left:
        kind = left.pop()
        needed.add(kind)
        for _, (node, inner) in store.fielddefs[kind][1]:
            if node == Nodetype.NAME:
                left.append(inner)
            elif node == Nodetype.SEQUENCE and inner[0][0] == Nodetype.NAME:
                left.append(inner[0][1])
    assert {key.value for key in table().keys} == needed
