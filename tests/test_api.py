"""The public names: there, light, and enough for the Python lines of the documents."""

from __future__ import annotations

import importlib.resources
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pairvpr
import pairvpr.errors
import pairvpr.runtime

ROOT = Path(__file__).resolve().parent.parent
TOWN = Path(str(importlib.resources.files("pairvpr.demo"))) / "town"
NIGHT = TOWN / "queries" / "night" / "@2.90@17.06@86@night@4@.jpg"


@pytest.mark.parametrize("package", [pairvpr, pairvpr.runtime], ids=lambda package: package.__name__)
def test_every_public_name_is_there(package) -> None:
    assert sorted(package.__all__) == sorted(set(package.__all__))
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
        assert name in dir(package)


def test_all_errors_are_public() -> None:
    errors = {name for name, value in vars(pairvpr.errors).items() if isinstance(value, type)}
    assert errors <= set(pairvpr.__all__)


@pytest.mark.parametrize("package", [pairvpr, pairvpr.runtime], ids=lambda package: package.__name__)
def test_another_name_is_refused(package) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


def test_public_names_need_no_torch() -> None:
    script = """
import sys
import pairvpr
assert not {"numpy", "torch", "PIL", "faiss", "click"} & set(sys.modules)
for name in pairvpr.__all__:
    getattr(pairvpr, name)
assert not {"torch", "timm", "onnx"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the documents' lines run in: two drives and a photo."""
    for drive in ("drive1", "drive2"):
        (tmp_path / drive).mkdir()
        for file in sorted((TOWN / "database").iterdir())[:10]:
            shutil.copy(file, tmp_path / drive)
    shutil.copy(NIGHT, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python_blocks(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def test_the_lines_of_the_readme_run(robot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lines,) = python_blocks("README.md")
    assert len(lines.splitlines()) <= 8
    names: dict[str, Any] = {}
    exec(compile(lines, "README.md", "exec"), names)
    names["recognizer"].close()
    assert "@3.19@17.06@81@overcast@0@.jpg" in capsys.readouterr().out


def test_the_lines_of_the_python_page_run(robot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but those that need a bag or torch."""
    run = [lines for lines in python_blocks("docs/python.md") if "drive.bag" not in lines and ".pth" not in lines]
    assert len(run) == 3
    for lines in run:
        names: dict[str, Any] = {}
        exec(compile(lines, "docs/python.md", "exec"), names)
        if "recognizer" in names:
            names["recognizer"].close()
    assert len(capsys.readouterr().out.splitlines()) == 1 + 10


def test_a_map_keeps_pictures_that_are_apart(robot: Path) -> None:
    report = pairvpr.build_map("drive1", "map", min_distance=100.0)
    assert (report.added, report.left_out) == (5, 5)
    with pairvpr.Map.open("map") as database:
        assert len(database.records) == 5
