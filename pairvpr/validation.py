"""Check types, ranges and lengths of values from a file. Each function raises ValueError and names the value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], Any]
"""Checks a value by its name, and returns it."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON without NaN and Infinity. Raises ValueError, also for nesting that is too deep."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_parse_float)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def check_int(value: object, name: str, low: int, high: int) -> int:
    """Return a whole number from low to high."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is not a whole number from {low} to {high}")
    return value


def check_real(value: object, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite number from low to high."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= 1.7e308:
        raise ValueError(f"{name} is not a finite number")
    if not low <= value <= high:
        raise ValueError(f"{name} is not from {low:g} to {high:g}")
    return float(value)


def check_text(value: object, name: str, longest: int = 4096) -> str:
    """Return a text of at most `longest` characters."""
    if not isinstance(value, str) or len(value) > longest:
        raise ValueError(f"{name} is not a text of at most {longest} characters")
    return value


def check_bool(value: object, name: str) -> bool:
    """Return a truth value."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is neither true nor false")
    return value


def check_keys(value: object, name: str, required: set[str], optional: set[str] | None = None) -> Mapping[str, Any]:
    """Return a mapping that has the required keys, and no others but the optional ones."""
    fields = check_mapping(value, name, 1000)
    if missing := sorted(required - set(fields)):
        raise ValueError(f"{name} has no {missing[0]}")
    if unknown := sorted(set(fields) - required - (optional or set())):
        raise ValueError(f"{name} has an unknown key {unknown[0]!r:.50}")
    return fields


def check_fields(
    value: object, name: str, checks: Mapping[str, Check], optional: set[str] | None = None
) -> dict[str, Any]:
    """Return a mapping that has the keys of `checks`, of which some are optional, with the checked values."""
    fields = check_keys(value, name, set(checks) - (optional or set()), optional)
    return {key: checks[key](content, key) for key, content in fields.items()}


def whole(low: int, high: int) -> Check:
    """Return the check for a whole number from low to high."""
    return lambda value, name: check_int(value, name, low, high)


def real(low: float = -math.inf, high: float = math.inf) -> Check:
    """Return the check for a finite number from low to high."""
    return lambda value, name: check_real(value, name, low, high)


def optional(check: Check) -> Check:
    """Return the check for a value that may be null."""
    return lambda value, name: None if value is None else check(value, name)


def check_interval(value: object, name: str) -> tuple[float, float]:
    """Return an interval of shares: two numbers from 0 to 1, of which the second is not less."""
    low, high = (check_real(each, name, 0, 1) for each in check_list(value, name, 2, 2))
    if low > high:
        raise ValueError(f"{name} does not rise")
    return low, high


def check_mapping(value: object, name: str, most: int) -> Mapping[str, Any]:
    """Return a mapping of texts to values, with at most `most` entries."""
    if not isinstance(value, dict) or len(value) > most or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} is not a mapping of at most {most} entries")
    return value


def check_list(value: object, name: str, low: int, high: int) -> list[Any]:
    """Return a list with low to high values."""
    if not isinstance(value, list) or not low <= len(value) <= high:
        raise ValueError(f"{name} is not a list of {low} to {high} values")
    return value


def _parse_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text:.20}, which is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")
