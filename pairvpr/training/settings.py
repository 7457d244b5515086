"""Read settings from TOML into dataclasses with checked types, apply `a.b=c` overrides, and write them back."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pairvpr.errors import TrainingError

Settings = TypeVar("Settings")
Table = dict[str, Any]

NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}


def read_table(file: Path, overrides: Sequence[str] = ()) -> Table:
    """Read a TOML file and apply `overrides` such as `train.lr=1e-4` or `data.0.places=folders`.

    An override's value is TOML. A value that is not valid TOML is taken as text. Raises TrainingError.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{file}: cannot be read ({error}); give a TOML file with --config") from error
    table = parse_toml(text, str(file))
    for override in overrides:
        _override(table, override)
    return table


def build(kind: type[Settings], table: Mapping[str, Any], where: str = "") -> Settings:
    """Build the dataclass `kind` from a table. A missing setting takes its default.

    where: name of the table, for messages.
    Raises TrainingError, which names the setting that is unknown, missing or of a wrong type.
    """
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(known)}"
            raise TrainingError(f"setting {_join(where, name)}: unknown; {hint}")
    for name, field in known.items():
        if name not in table and field.default is field.default_factory is dataclasses.MISSING:
            raise TrainingError(f"setting {_join(where, name)}: missing; add it to the configuration or with --set")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _convert(hints[name], value, _join(where, name)) for name, value in table.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return `value` as the type that `hint` asks for."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, _expect(value, Mapping, "a table", where), where)
    if origin is typing.Literal:
        if value not in inner:
            raise TrainingError(f"setting {where}: {value!r} is unknown; set one of {', '.join(map(repr, inner))}")
        return value
    if origin is tuple:
        items = _expect(value, list | tuple, "a list", where)
        return tuple(_convert(inner[0], item, f"{where}.{i}") for i, item in enumerate(items))
    if origin is not None and issubclass(origin, Mapping):
        return dict(_expect(value, Mapping, "a table", where))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path:
        return Path(_expect(value, str, NAMES[Path], where))
    if isinstance(value, bool) and hint is not bool:
        raise TrainingError(f"setting {where}: must be {NAMES[hint]}, is {value!r}")
    return _expect(value, hint, NAMES[hint], where)


def _expect(value: Any, kind: Any, name: str, where: str) -> Any:
    if not isinstance(value, kind):
        raise TrainingError(f"setting {where}: must be {name}, is {value!r}")
    return value


def write_toml(settings: Any) -> str:
    """Return a dataclass of settings as TOML text. Reading the text gives the same settings."""
    plain, tables = [], []
    for name, value in as_table(settings).items():
        if isinstance(value, Mapping):
            tables += [f"\n[{name}]", *(f"{key} = {_toml(item)}" for key, item in value.items())]
        else:
            plain.append(f"{name} = {_toml(value)}")
    return "\n".join([*plain, *tables]) + "\n"


def as_table(settings: Any) -> Table:
    """Return a dataclass as nested plain tables and lists."""
    return dataclasses.asdict(settings, dict_factory=lambda items: {k: _plain(v) for k, v in items})


def differences(one: Mapping[str, Any], other: Mapping[str, Any], where: str = "") -> list[str]:
    """Return the names of the settings in which two tables differ."""
    found: list[str] = []
    for name in sorted({*one, *other}):
        here, there = one.get(name), other.get(name)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            found += differences(here, there, _join(where, name))
        elif here != there:
            found.append(_join(where, name))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):  # JSON's escapes are valid TOML, which needs one more
        return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
    return json.dumps(value, allow_nan=False) if isinstance(value, bool) else repr(value)


def parse_toml(text: str, source: str) -> Table:
    """Parse a TOML text. Raise TrainingError, which names `source`, if it is invalid."""
    try:
        return _toml_reader()(text)
    except ValueError as error:
        raise TrainingError(f"{source}: not valid TOML ({error}); correct it") from error


def _toml_reader() -> Callable[[str], Table]:
    if sys.version_info < (3, 11):
        raise TrainingError("training reads TOML with Python's own reader; use Python 3.11 or newer")
    import tomllib  # type: ignore[import-not-found,unused-ignore]

    return tomllib.loads


def _override(table: Table, text: str) -> None:
    """Apply one `a.b=c` to a table."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise TrainingError(f"--set {text}: not of the form a.b=value")
    reader = _toml_reader()
    try:
        parsed = reader(f"x = {value}")["x"]
    except ValueError:  # texts need no quotes, which the shell would remove
        parsed = value.strip()
    here: Any = table
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                raise TrainingError(f"--set {text}: {key} is not an index of a list of {len(here)} items")
            index: Any = int(key)
        elif isinstance(here, dict):
            index = key
        else:
            raise TrainingError(f"--set {text}: {path} is not in a table; correct the name")
        if following is None:
            here[index] = parsed
        else:
            here = here.setdefault(index, {}) if isinstance(here, dict) else here[index]


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def at_least(name: str, value: float, least: float) -> None:
    """Raise TrainingError if a setting is too small or not a number."""
    if not value >= least:
        raise TrainingError(f"setting {name}: must be at least {least}, is {value}")


def all_at_least(section: str, settings: object, **least: float) -> None:
    """Raise TrainingError if a setting of a section is too small, by its name, or not a number."""
    for name, bound in least.items():
        at_least(f"{section}.{name}", getattr(settings, name), bound)


def above(name: str, value: float, bound: float) -> None:
    """Raise TrainingError if a setting is not above a bound."""
    if not value > bound:
        raise TrainingError(f"setting {name}: must be above {bound}, is {value}")


def between(name: str, value: float) -> None:
    """Raise TrainingError if a share is not in (0, 1]."""
    if not 0 < value <= 1:
        raise TrainingError(f"setting {name}: must be above 0 and at most 1, is {value}")
