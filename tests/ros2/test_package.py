"""What colcon and ROS would look for: names that agree across the package's files, and messages that exist."""

from __future__ import annotations

import ast
import dataclasses
import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import setuptools

pytest.importorskip("rosbags", reason="message definitions come with the extra pairvpr[bags]")

from pairvpr_ros.localizer import IMAGE
from pairvpr_ros.parameters import Parameters
from rosbags.interfaces import Nodetype
from ruamel.yaml import YAML

import pairvpr
from pairvpr.runtime.outputs.ros_messages import TOPICS
from tests.ros2.fake_ros import TRIGGER
from tests.runtime.outputs.ros_contract import DISTRIBUTIONS

ROOT = Path(__file__).resolve().parents[2] / "ros2"
NODE = ast.parse((ROOT / "pairvpr_ros" / "node.py").read_text())
LAUNCH = ast.parse((ROOT / "launch" / "visual_localization.launch.py").read_text())
PACKAGE = ET.parse(ROOT / "package.xml").getroot()


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
    assert {source.parent.name for source in installed.values()} >= {"launch", "config"}
    (script,) = setup["entry_points"]["console_scripts"]
    executable, module, function = re.fullmatch(r"(\w+) = ([\w.]+):(\w+)", script).groups()
    assert module == "pairvpr_ros.node"
    assert function in {each.name for each in NODE.body if isinstance(each, ast.FunctionDef)}
    (node,) = calls(LAUNCH, "Node")
    told = {each.arg: each.value.value for each in node.keywords if isinstance(each.value, ast.Constant)}
    assert (told["package"], told["executable"]) == (name, executable)


def test_every_package_that_is_imported_is_a_dependency() -> None:
    needed = {each.text for each in PACKAGE.findall("exec_depend")}
    imported = set()
    for each in (*ast.walk(NODE), *ast.walk(LAUNCH)):
        if isinstance(each, ast.ImportFrom):
            imported.add(each.module.partition(".")[0])
        elif isinstance(each, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in each.names}
    ours = {"__future__", "dataclasses", "logging", "sys", "pairvpr", "pairvpr_ros", "numpy"}
    assert imported - ours - {"tf2_ros"} == needed - {"python3-numpy", "tf2_ros_py"}  # which has the module tf2_ros


def test_the_parameters_file_has_every_parameter_with_its_default() -> None:
    content = YAML(typ="safe").load((ROOT / "config" / "visual_localization.yaml").read_text())
    ((name, of_node),) = content.items()
    assert name == "visual_localization"
    defaults = {field.name: field.default for field in dataclasses.fields(Parameters)}
    stored = of_node["ros__parameters"]
    assert stored == defaults
    assert {key: type(value) for key, value in stored.items()} == {key: type(value) for key, value in defaults.items()}
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in defaults)


def test_the_launch_file_declares_what_it_uses() -> None:
    used = {call.args[0].value for call in calls(LAUNCH, "LaunchConfiguration")}
    declared = {call.args[0].value for call in calls(LAUNCH, "DeclareLaunchArgument")}
    assert used == declared
    assert IMAGE in {each.value for each in ast.walk(LAUNCH) if isinstance(each, ast.Constant)}


# The node's syntax tree


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    found = [each for each in ast.walk(tree) if isinstance(each, ast.Call)]
    return [each for each in found if isinstance(each.func, ast.Name) and each.func.id == name]


class Reader:
    """Follows values of message classes through a function of the node; every field on the way has to exist."""

    def __init__(self, store: Any) -> None:
        self.store, self.fields_seen = store, 0
        self.classes = {f"Trigger.{name}": f"Trigger.{name}" for name in TRIGGER}
        for each in NODE.body:
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
        (target,), value = assignment.targets, assignment.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            return list(zip(target.elts, value.elts, strict=True))
        return [(target, value)]

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


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_message_and_field_that_the_node_uses_exists(distribution: str) -> None:
    reader = Reader(DISTRIBUTIONS[distribution])
    (table,) = [each.value for each in NODE.body if isinstance(each, ast.Assign) and each.targets[0].id == "CLASSES"]
    for key, value in zip(table.keys, table.values, strict=True):
        assert reader.classes[value.id] == key.value
    for function in (each for each in ast.walk(NODE) if isinstance(each, ast.FunctionDef)):
        reader.read(function)
    assert reader.fields_seen >= 13  # of the service's response, and of odometry's transform


@pytest.mark.parametrize("line", ["found.transform.translations", "found.transform.translation.x.y", "found.stamp"])
def test_a_field_that_is_none_is_found(line: str) -> None:
    code = f"def read(found: TransformStamped):\n    return {line}"
    with pytest.raises(AssertionError):
        Reader(DISTRIBUTIONS["humble"]).read(ast.parse(code).body[0])


def test_the_table_has_every_type_that_messages_are_made_of() -> None:
    """Of those that answers and transforms need, none is missing and none is there for nothing."""
    store, (table,) = (
        DISTRIBUTIONS["humble"],
        [each.value for each in NODE.body if isinstance(each, ast.Assign) and each.targets[0].id == "CLASSES"],
    )
    needed, left = set(), [*TOPICS.values(), "geometry_msgs/msg/TransformStamped"]
    while left:
        kind = left.pop()
        needed.add(kind)
        for _, (node, inner) in store.fielddefs[kind][1]:
            if node == Nodetype.NAME:
                left.append(inner)
            elif node == Nodetype.SEQUENCE and inner[0][0] == Nodetype.NAME:
                left.append(inner[0][1])
    assert {key.value for key in table.keys} == needed
