"""What the doctor says of a part, and how a part is looked at: whether it is there, and what its import says."""

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
    """One part: ok, missing, broken, or info where there is nothing to judge.

    remedy: what to run or do about it, None where nothing is to be done.
    """

    name: str
    state: State
    detail: str
    remedy: str | None = None


def tried(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """The checks that `look` makes, or one that says what it raised: a broken library can raise anything."""
    try:
        return look()
    except Exception as error:
        return [Check(name, "broken", f"{type(error).__name__}: {one_line(error)}", REINSTALL)]


def find_module(module: str) -> object | None:
    """Where a module would come from; None where it is not there or its import is barred."""
    if module in sys.modules:
        return sys.modules[module]
    return importlib.util.find_spec(module)


def installed_version(distribution: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def import_problem(module: str) -> str | None:
    """Why a module cannot be imported, in one line; None where it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation can raise anything while it is imported
        return f"cannot be imported ({one_line(error)})"
    return None
