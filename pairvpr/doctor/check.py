"""Describe the check of a part, and look parts up: distributions, modules, and errors of their import."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pairvpr.errors import one_line

State = Literal["ok", "missing", "broken", "info"]

REINSTALL = "pip install --force-reinstall --no-deps pairvpr"


@dataclass(frozen=True)
class Check:
    """The check of a part. state: "info" if there is nothing to judge. remedy: a command or step, if one is needed."""

    name: str
    state: State
    detail: str
    remedy: str | None = None


def tried(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """Return the checks of `look`, or a broken one with its exception: a broken library can raise anything."""
    try:
        return look()
    except Exception as error:
        return [Check(name, "broken", f"{type(error).__name__}: {one_line(error)}", REINSTALL)]


def find_module(module: str) -> object | None:
    """Return the loaded module or its spec; None if it is not installed or its import is barred."""
    if module in sys.modules:
        return sys.modules[module]
    return importlib.util.find_spec(module)


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def import_problem(module: str) -> str | None:
    """Import a module. Return the reason in one line if that fails, else None."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation can raise anything while it is imported
        return f"cannot be imported ({one_line(error)})"
    return None
