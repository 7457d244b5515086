"""The properties of a map have limits: values inside are read as they are, values outside are refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pairvpr.errors import MapError
from pairvpr.runtime.map.meta import FORMAT, HALF_PRECISION_FROM, INDEX, LONGEST_VALUE, ROW_FORMATS, Meta
from pairvpr.runtime.map.records import checksum

FILE = Path("map.sqlite")
META = Meta(
    identity="a" * 64,
    settings={"tokens": {"type": "int8", "keep": 0.5}, INDEX: "float16", "model_digest": "0" * 64, "size": 224},
    descriptor_dim=256,
    token_shape=(25, 192),
    created_by="0.2.0",
    segments=3,
    records=700,
)
LIMITS: list[tuple[str, list[Any], list[Any]]] = [
    ("identity", ["", "x" * 200], ["x" * 201, 1]),
    ("created_by", ["", "x" * 200], ["x" * 201, None]),
    ("descriptor_dim", [1, 65536], [0, 65537, 256.0]),
    ("token_shape", [[1, 1], [65536, 65536]], [[0, 1], [1, 0], [65537, 1], [1, 65537], [1], [1, 1, 1], "ab"]),
    ("segments", [0, 2**40], [-1, 2**40 + 1]),
    ("records", [0, 2**40], [-1, 2**40 + 1, "7"]),
    ("format", [FORMAT, ROW_FORMATS["int8"]], [0, 2**31 + 1, ROW_FORMATS["float16"], True]),
    ("settings", [{}, {f"k{n}": n for n in range(1000)}], [[], {f"k{n}": n for n in range(1001)}]),
]
SETTINGS: list[tuple[str, list[Any], list[Any]]] = [
    ("model_digest", ["", "0" * 64], ["0" * 65, 1, None]),
    (INDEX, ["float32", "float16"], ["float64", "", None, 16]),
    ("tokens", [{}, {"type": "float16"}, {"keep": 1.0}, {"keep": 1e-9}], [[], {"keep": 0}, {"keep": 1.01}]),
    (
        "tokens",
        [{"other": 1}],
        [{"keep": "1"}, {"keep": None}, {"type": "float64"}, {"type": ["int8"]}, {"type": None}],
    ),
    ("tokens", [{f"k{n}": n for n in range(100)}], [{f"k{n}": n for n in range(101)}]),
]


def sealed(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return rows of the values, with their checksum."""
    rows = sorted((key, json.dumps(value, sort_keys=True)) for key, value in values.items())
    return [*rows, ("crc", str(checksum(rows)))]


def fields(meta: Meta = META) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(meta)))


def test_properties_survive_being_written_and_read() -> None:
    assert Meta.decode(META.encode(), FILE) == META
    assert Meta.decode(list(reversed(META.encode())), FILE) == META  # SQLite promises no order
    assert META.encode() == sealed(fields())


@pytest.mark.parametrize(("name", "inside", "outside"), LIMITS)
def test_values_have_limits(name: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        values = {**fields(), name: value}
        if name == "settings":
            values["format"] = FORMAT
        assert fields(Meta.decode(sealed(values), FILE))[name] == value
    for value in outside:
        with pytest.raises((ValueError, MapError)):
            Meta.decode(sealed({**fields(), name: value}), FILE)


@pytest.mark.parametrize(("name", "inside", "outside"), SETTINGS)
def test_settings_have_limits(name: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        values = fields()
        values["settings"][name] = value
        assert Meta.decode(sealed(values), FILE).settings[name] == value
    for value in outside:
        values = fields()
        values["settings"][name] = value
        with pytest.raises(ValueError, match=r"\w"):
            Meta.decode(sealed(values), FILE)


def test_a_map_without_tokens_has_none() -> None:
    alone = dataclasses.replace(META, settings={"tokens": {"type": "none"}}, token_shape=(0, 0))
    assert Meta.decode(alone.encode(), FILE) == alone
    for shape in ((0, 1), (1, 0), (1, 1)):
        with pytest.raises(ValueError, match="is not a whole number from 0 to 0"):
            Meta.decode(dataclasses.replace(alone, token_shape=shape).encode(), FILE)
    with pytest.raises(ValueError, match="none tokens in format 1"):
        Meta.decode(dataclasses.replace(alone, format=1).encode(), FILE)


def test_every_property_is_needed_and_no_other_is_known() -> None:
    for name in fields():
        with pytest.raises(ValueError, match=f"has no {name}|its format is not"):
            Meta.decode(sealed({key: value for key, value in fields().items() if key != name}), FILE)
    with pytest.raises(ValueError, match="unknown key 'more'"):
        Meta.decode(sealed({**fields(), "more": 1}), FILE)


def test_a_newer_format_says_upgrade() -> None:
    with pytest.raises(MapError, match=rf"map.sqlite was made by a newer pairvpr \(format {FORMAT + 1}, .* upgrade"):
        Meta.decode(sealed({"format": FORMAT + 1, "all else": "may differ"}), FILE)
    with pytest.raises(MapError, match="upgrade"):
        Meta.decode(sealed({"format": 2**31}), FILE)
    with pytest.raises(ValueError, match="its format is not a whole number"):
        Meta.decode(sealed({"format": 2**31 + 1}), FILE)


@pytest.mark.parametrize(("kind", "number"), [("float16", 1), ("int8", 2)])
def test_formats_of_earlier_versions_follow_from_the_tokens(kind: str, number: int) -> None:
    old = dataclasses.replace(META, settings={"tokens": {"type": kind}}, format=number)
    assert Meta.decode(old.encode(), FILE) == old
    with pytest.raises(ValueError, match=f"{kind} tokens in format {3 - number}"):
        Meta.decode(dataclasses.replace(old, format=3 - number).encode(), FILE)


@pytest.mark.parametrize("number", range(9))
def test_the_checksum_covers_every_row(number: int) -> None:
    rows = META.encode()
    key, value = rows[number]
    rows[number] = (key, value + " ")  # the same JSON
    with pytest.raises(ValueError, match="its settings fail their checksum"):
        Meta.decode(rows, FILE)
    for spoilt in ([*META.encode(), META.encode()[-1]], META.encode()[:-1], [], [*META.encode()[:-1], ("crc", "7")]):
        with pytest.raises(ValueError, match="its settings fail their checksum"):
            Meta.decode(spoilt, FILE)


def test_rows_are_texts_of_bounded_length() -> None:
    longest = dataclasses.replace(META, settings={"note": "x" * (LONGEST_VALUE - len('{"note": ""}'))})
    assert Meta.decode(longest.encode(), FILE) == longest
    longer = dataclasses.replace(META, settings={"note": "x" * (LONGEST_VALUE - len('{"note": ""}') + 1)})
    for rows in (longer.encode(), [("a", b"1")], [(1, "1")], [("a" * 4097, "1")]):
        with pytest.raises(ValueError, match="is not a text of at most"):
            Meta.decode(rows, FILE)  # type: ignore[arg-type]


@pytest.mark.parametrize(("pictures", "precision"), [(HALF_PRECISION_FROM - 1, None), (HALF_PRECISION_FROM, "float16")])
def test_a_map_of_an_older_format_is_searched_as_before(pictures: int, precision: str | None) -> None:
    old = dataclasses.replace(META, settings={"size": 1}, format=1)
    new = old.upgraded(pictures)
    assert (old.in_blocks, new.in_blocks) == (False, True)
    assert new.settings == {"size": 1} | ({} if precision is None else {INDEX: precision})
    assert META.upgraded(10**9) is META
