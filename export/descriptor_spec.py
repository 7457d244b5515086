"""Parse the specification of a descriptor's code, and call its entry."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pairvpr.errors import ExportError, one_line

UNSTATED = "not stated"
HUB = "torchhub:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(:[\w./-]+)?")
_CALL = re.compile(r"(\w+)(\(.*\))?", re.DOTALL)


@dataclass(frozen=True)
class DescriptorSpec:
    """Name the code that makes a network.

    where: a repository on GitHub, a folder, or a module on the path. kind: "github", "folder" or "module".
    entry, arguments: the function to call, and its keyword arguments.
    """

    where: str
    kind: str
    entry: str
    arguments: Mapping[str, Any]

    @staticmethod
    def parse(text: str) -> DescriptorSpec:
        """Parse `torchhub:OWNER/REPO:ENTRY`, `FOLDER:ENTRY` or `MODULE:FUNCTION`. Raises ExportError."""
        name, bracket, values = text.partition("(")  # arguments may hold colons themselves
        where, colon, entry = name.rpartition(":")
        match = _CALL.fullmatch(entry + bracket + values)
        hub, where = where.startswith(HUB), where.removeprefix(HUB)
        kind = "folder" if Path(where).is_dir() and where else "github" if hub else "module"
        if not colon or match is None or (kind == "github" and not _REPOSITORY.fullmatch(where)) or not where:
            raise ExportError(
                f"--descriptor {one_line(text, 80)}: give torchhub:OWNER/REPO:ENTRY, FOLDER:ENTRY of a folder that "
                "exists, MODULE:FUNCTION or FILE.onnx"
            )
        return DescriptorSpec(where, kind, match[1], _parse_arguments(text, match[2]))

    @property
    def call(self) -> str:
        """Return the call of the entry."""
        return f"{self.entry}({', '.join(f'{name}={value!r}' for name, value in sorted(self.arguments.items()))})"

    def load(self) -> Any:
        """Call the entry. Its output goes to stderr, because stdout is for results. Raises anything."""
        with contextlib.redirect_stdout(sys.stderr):
            if self.kind == "module":
                with _current_folder():
                    return getattr(importlib.import_module(self.where), self.entry)(**self.arguments)
            source: dict[str, Any] = {"source": "local"} if self.kind == "folder" else {"trust_repo": True}
            load: Any = torch.hub.load
            return load(self.where, self.entry, verbose=False, **source, **self.arguments)

    def licence(self) -> str:
        """Return the title of the licence in the folder of the code. That of the weights may be another one."""
        folders = [Path(self.where)] if self.kind == "folder" else []
        if self.kind == "github":
            name = self.where.partition(":")[0].replace("/", "_")
            folders = sorted(Path(torch.hub.get_dir()).glob(f"{name}_*"))
        for file in (file for folder in folders for file in sorted(folder.glob("LICEN[SC]E*")) if file.is_file()):
            lines = [line.strip() for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
            if lines:
                return f"{one_line(lines[0], 80)} (of the code)"
        return UNSTATED


def _parse_arguments(text: str, called: str | None) -> dict[str, Any]:
    """Return the keyword arguments of a call such as `(dim=512)`. Raises ExportError."""
    try:
        call = ast.parse(f"f{called or '()'}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(each.arg is None for each in call.keywords):
            raise ValueError("a value without a name")
        return {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ExportError(
            f"--descriptor {one_line(text, 80)}: its arguments cannot be read ({one_line(error, 60)}); give names and "
            "values, as in get_model(dim=512)"
        ) from error


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Find modules of the current folder, which the path of an installed command lacks."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.remove(str(Path.cwd()))
