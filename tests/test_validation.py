"""Values of files: what is inside the limits is returned as it is, and what is outside is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from pairvpr.validation import (
    check_bool,
    check_fields,
    check_int,
    check_interval,
    check_keys,
    check_list,
    check_mapping,
    check_real,
    check_text,
    optional,
    parse_json,
    real,
    whole,
)


@pytest.mark.parametrize(
    ("check", "inside", "outside"),
    [
        (lambda value: check_int(value, "it", -1, 3), [-1, 0, 3], [-2, 4, 1.0, True, "1", None, 10**400]),
        (lambda value: check_real(value, "it", -1, 3), [-1, 0.5, 3], [-1.1, 3.1, math.nan, True, "1", 10**400]),
        (lambda value: check_real(value, "it"), [-1e308, 1e308], [math.inf, -math.inf]),
        (lambda value: check_text(value, "it", 3), ["", "abc"], ["abcd", b"a", 1]),
        (lambda value: check_bool(value, "it"), [True, False], [0, 1, None]),
        (lambda value: check_list(value, "it", 1, 2), [[1], [1, 2]], [[], [1, 2, 3], (1,), {1: 1}]),
        (lambda value: check_mapping(value, "it", 2), [{}, {"a": 1, "b": 2}], [{"a": 1, "b": 2, "c": 3}, {1: 1}, []]),
        (
            lambda value: check_keys(value, "it", {"a"}, {"b"}),
            [{"a": 1}, {"a": 1, "b": 2}],
            [{"b": 1}, {"a": 1, "c": 1}],
        ),
        (
            lambda value: check_fields(value, "it", {"a": whole(1, 2), "b": real(0, 1)}, {"b"}),
            [{"a": 1}, {"a": 2, "b": 1.0}],
            [{}, {"b": 1.0}, {"a": 1, "c": 1}, [], None],
        ),
        (lambda value: whole(1, 3)(value, "it"), [1, 3], [0, 4]),
        (lambda value: real(-1, 1)(value, "it"), [-1, 1], [-1.5, 1.5]),
        (lambda value: real()(value, "it"), [-1e308, 1e308], [math.nan]),
        (lambda value: optional(whole(1, 3))(value, "it"), [None, 1], [0]),
        (
            lambda value: list(check_interval(value, "it")),
            [[0, 1], [0.5, 0.5]],
            [[0.6, 0.5], [0.5], [-0.1, 1], [0, 1.1]],
        ),
    ],
)
def test_limits(check: Callable[[Any], Any], inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        assert check(value) == value
    for value in outside:
        with pytest.raises(ValueError, match=r"^it "):
            check(value)


def test_a_mapping_with_named_keys_has_at_most_a_thousand() -> None:
    for count in (1000, 1001):
        values = {f"k{number}": number for number in range(count)}
        if count == 1000:
            assert check_keys(values, "it", set(values)) == values
            continue
        with pytest.raises(ValueError, match="it is not a mapping of at most 1000 entries"):
            check_keys(values, "it", set(values))


def test_fields_are_refused_by_their_own_name() -> None:
    with pytest.raises(ValueError, match=r"^a is not a whole number from 1 to 2$"):
        check_fields({"a": 3}, "it", {"a": whole(1, 2)})


def test_json_is_strict() -> None:
    assert parse_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    for text in ("NaN", "[Infinity]", "-Infinity", "1e999", "[" * 100_000, "{", b"\xff"):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
