"""Docstrings, help texts and documents are free of a few phrases that made sentences hard to read.

CONTRIBUTING.md has the rules; ruff (D401) checks that docstrings begin with an imperative verb.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pairvpr.cli.main import main
from pairvpr.cli.run import main as run

ROOT = Path(__file__).resolve().parent.parent
BANNED = re.compile(
    r"\b(so many|that of|to be had|None where|as far as|what becomes|what became|where nothing|of one's own)\b"
)
FOLDERS = ("benchmarks", "calibration", "examples", "export", "pairvpr", "ros2", "runtime")
MODULES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if not any(parent.is_symlink() for parent in path.parents)
)
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "ros2/README.md"]
DOCUMENTS += [ROOT / "pairvpr/weights/README.md", ROOT / "benchmarks/results/README.md"]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def docstrings(module: Path) -> Iterator[str]:
    """All docstrings of a module, those below its constants and fields too."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def found(text: str) -> list[str]:
    return BANNED.findall(" ".join(text.split()))


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from commands(below, f"{path} {below.name}")


def helps() -> Iterator[tuple[str, str]]:
    """Each command and option, and its help text."""
    for program, command in (("pairvpr", main), ("pairvpr-run", run)):
        for path, each in commands(command, program):
            yield path, each.help or ""
            for parameter in each.params:
                if isinstance(parameter, click.Option):
                    yield f"{path} {parameter.opts[0]}", parameter.help or ""


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_docstrings_are_plain(module: Path) -> None:
    assert not [text for text in docstrings(module) if found(text)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_documents_are_plain(document: Path) -> None:
    assert not found(document.read_text(encoding="utf-8"))


def test_help_is_plain() -> None:
    assert not [(where, found(text)) for where, text in helps() if found(text)]


def test_the_phrases_are_found() -> None:
    """The check would see them, also across the end of a line."""
    assert found("Factor by which\nthat\n  of a picture") == ["that of"]
    assert any(list(docstrings(module)) for module in MODULES)
    assert len(list(helps())) > 100
