"""ARCHITECTURE.md names every folder of code, and every module that stands beside folders."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"[\w./]+", TABLE))


def test_every_folder_has_a_row() -> None:
    rows = {name.rstrip("/") for row in re.findall(r"^\| (`[^|]*)\|", TABLE, re.MULTILINE) for name in row.split("`")}
    folders = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("runtime/**/__init__.py")}
    folders |= {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("pairvpr/*/__init__.py")}
    links = {"pairvpr/calibration", "pairvpr/export", "pairvpr/runtime"}
    assert len(folders) > 20
    assert folders - links <= rows, folders - links - rows


def test_modules_beside_folders_are_named() -> None:
    modules = {path.stem for folder in ("pairvpr", "runtime") for path in (ROOT / folder).glob("[a-z]*.py")}
    assert len(modules) > 15
    assert modules <= WORDS, modules - WORDS
