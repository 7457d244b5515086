"""Test that all packages are installed: setuptools silently leaves out a package that pyproject.toml does not list."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info < (3, 11):
    pytest.skip("needs tomllib", allow_module_level=True)

import tomllib

from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import FILE
from pairvpr.runtime.model import default_bundle

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
MAPPED = {name: ROOT / folder for name, folder in SETUPTOOLS["package-dir"].items()}


def folder_of(package: str) -> Path:
    """Where a package's files are: the longest mapped name before it, and the rest as folders."""
    above = [name for name in MAPPED if package == name or package.startswith(f"{name}.")]
    if not above:
        return ROOT / package.replace(".", "/")
    name = max(above, key=len)
    return MAPPED[name] / package[len(name) :].lstrip(".").replace(".", "/")


def packages_on_disk() -> set[str]:
    found = set()
    for name, top in {"pairvpr": ROOT / "pairvpr", **MAPPED}.items():
        for file in top.rglob("__init__.py"):
            inside = file.parent.relative_to(top).parts
            if not any((top / Path(*inside[: i + 1])).is_symlink() for i in range(len(inside))):
                found.add(".".join([name, *inside]))
    return found


def test_every_package_is_listed_and_none_that_is_not_there() -> None:
    assert SETUPTOOLS["packages"] == sorted(SETUPTOOLS["packages"])
    assert set(SETUPTOOLS["packages"]) == packages_on_disk()
    assert {"pairvpr", "pairvpr.runtime.map", "pairvpr.export"} <= packages_on_disk()


def test_every_folder_with_modules_is_a_package() -> None:
    for name, top in {"pairvpr": ROOT / "pairvpr", **MAPPED}.items():
        for file in top.rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), f"{name}: {file}"


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_every_package_has_a_docstring(package: str) -> None:
    text = (folder_of(package) / "__init__.py").read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", sorted(MAPPED))
def test_links_for_editors(name: str) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("an unpacked source distribution has no links")
    link = ROOT / name.replace(".", "/")
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == MAPPED[name]


def test_the_default_bundle_ships() -> None:
    folder, bundle = folder_of("pairvpr.weights"), Bundle.open(default_bundle())
    assert bundle.path.parent.resolve() == folder
    globs = SETUPTOOLS["package-data"]["pairvpr.weights"]
    for name in [*bundle.info.files, FILE]:
        path = (bundle.path / name).resolve().relative_to(folder).as_posix()
        assert any(fnmatch.fnmatch(path, pattern) for pattern in globs), name
    # Setuptools' glob does not enter folders, and takes all that lies there.
    assert {file.name for file in bundle.path.iterdir()} == {*bundle.info.files, FILE}


def test_types_ship() -> None:
    assert "py.typed" in SETUPTOOLS["package-data"]["pairvpr"]
    assert (ROOT / "pairvpr" / "py.typed").exists()


@pytest.mark.parametrize("command", sorted(PROJECT["project"]["scripts"]))
def test_commands_are_there(command: str) -> None:
    module, _, name = PROJECT["project"]["scripts"][command].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_installed_version_is_this_one() -> None:
    installed = importlib.metadata.distribution("pairvpr")
    assert installed.version == importlib.import_module("pairvpr").__version__
    scripts = {entry.name: entry.value for entry in installed.entry_points if entry.group == "console_scripts"}
    assert scripts == PROJECT["project"]["scripts"]


def test_the_version_is_written_once() -> None:
    """The rest reads `pairvpr.__version__`; ROS's files, which cannot, are compared with it in tests/ros2."""
    assert "version" in PROJECT["project"]["dynamic"]
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "pairvpr.__version__"}
    version = importlib.import_module("pairvpr").__version__
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


def test_the_checkpoint_stays_out_of_the_wheel() -> None:
    """A robot needs the bundle alone."""
    shipped = [path for path in (ROOT / "pairvpr" / "weights").rglob("*") if path.is_file()]
    patterns = SETUPTOOLS["package-data"]["pairvpr.weights"]
    names = [path.relative_to(ROOT / "pairvpr" / "weights").as_posix() for path in shipped]
    assert "nano.safetensors" in names
    assert not any(fnmatch.fnmatch("nano.safetensors", pattern) for pattern in patterns)


def test_the_source_distribution_names_everything() -> None:
    """What is in the repository is in the sdist: each folder and file at the top is named in MANIFEST.in."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    taken = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}  # setuptools takes these by itself
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        if line.startswith(("graft ", "include ")):
            taken |= set(line.split()[1:])
    assert {path.partition("/")[0] for path in tracked.splitlines()} <= taken


def test_base_dependencies_are_the_runtimes() -> None:
    """Neither an engine nor what trains: `onnxruntime` and `onnxruntime-gpu` break each other."""
    names = {text.split(">")[0].split("=")[0].strip() for text in PROJECT["project"]["dependencies"]}
    assert names == {"click", "faiss-cpu", "numpy", "pillow", "safetensors"}
    for extra, requirements in PROJECT["project"]["optional-dependencies"].items():
        engines = [text for text in requirements if text.startswith("onnxruntime")]
        assert len(engines) == (extra in ("cpu", "gpu")), extra


def test_the_lowest_versions_tested_are_the_lowest_allowed() -> None:
    """`.ci/lowest.txt` pins the lower bound of each package that a robot runs or a test needs."""
    allowed = list(PROJECT["project"]["dependencies"])
    for extra in ("cpu", "video", "bags", "serve", "hloc", "objects", "test"):
        allowed += PROJECT["project"]["optional-dependencies"][extra]
    allowed.remove("pairvpr[hloc,objects]")  # the test extra has these two
    tested = [line for line in (ROOT / ".ci/lowest.txt").read_text().splitlines() if "==" in line]
    versions = dict(line.split("==") for line in tested)
    assert set(versions) == {text.partition(">=")[0] for text in allowed}
    for text in allowed:
        name, _, lowest = text.partition(">=")
        assert versions[name] in (lowest, f"{lowest}.0", f"{lowest}.0.0"), text


def test_requirements_of_an_extra_are_those_of_the_target() -> None:
    """As pip's own check of wheels for other computers leaves the markers to the Python that it runs in."""
    path = ROOT / ".ci" / "resolve_extras.py"
    pytest.importorskip("packaging")
    spec = importlib.util.spec_from_file_location("resolve_extras", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    there, elsewhere = (script.requirements("dev", "3.12", machine) for machine in ("x86_64", "aarch64"))
    assert set(there) - set(elsewhere) == {"tensorrt-rtx-cu13>=1.7"}
    assert {"numpy>=1.24", "pytest>=8", "mkdocs-material>=9.5"} <= set(elsewhere)
    assert {extra for extra, _, _ in script.WITHOUT_WHEELS} <= set(PROJECT["project"]["optional-dependencies"])
