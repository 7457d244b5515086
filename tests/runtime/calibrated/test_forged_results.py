"""Calibration results from a stranger: each value has a type and a range, or the bundle is refused in one line."""

from __future__ import annotations

import base64
import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pairvpr.errors import BundleError
from pairvpr.runtime.bundle import TUNING, Bundle
from pairvpr.runtime.bundle_info import FILE, LOOK
from pairvpr.runtime.calibrated import acceptance, cascade
from pairvpr.runtime.calibrated.acceptance import Acceptance
from pairvpr.runtime.calibrated.cascade import PREFIX, Cascade
from pairvpr.runtime.calibrated.tuning import Tuning
from pairvpr.runtime.model import SUMMARIES, default_bundle
from pairvpr.viewing.calibration_results import acceptance_rows, block, cascade_rows, tuning_rows
from tests.runtime.test_hostile_bundle import VALUES, forge, places

BUNDLE = Bundle.open(default_bundle())
COUNTS = ([0, 10**9], [-1, 10**9 + 1, 1.0, "1", None, True])
NUMBERS = ([-1e300, 0, 1e300], [10**400, float("nan"), float("inf"), "1", None, True, [1.0]])
ABOVE = ([0, 0.5, 1e300], [-1e-9, 10**400, float("nan"), "1", True])
SHARES = ([0, 0.5, 1], [-0.001, 1.001, 10**400, "1", True])
TEXTS = (["", "x" * 4096], ["x" * 4097, 1, None, ["x"]])
INTERVALS = ([[0, 1], [0.5, 0.5]], [[0.6, 0.5], [0.1], [0, 0.5, 1], [-0.1, 1], [0, 1.1], ["0", "1"], 3])


def encoded(numbers: list[float]) -> str:
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


LENGTH = 2 * len(SUMMARIES) * BUNDLE.info.dims.token_dim
HEAD = encoded([0.25] * (LENGTH + 1))
FIRST = {"graph": LOOK, "head": encoded([0.5] * (BUNDLE.info.dims.look + 1)), "bias": 0.5, "margin": 1.0, "kept": 0.2}
SECOND = {"graph": PREFIX, "head": HEAD, "bias": 0.5, "margin": 1.0, "kept": 0.1}
NANS = encoded([float("nan")] * (LENGTH + 1))


def looks(name: str, values: tuple[list[Any], list[Any]]) -> tuple[list[Any], list[Any]]:
    """Put good and bad values of a part of the second look into lists of looks."""
    good, bad = ([[FIRST, {**SECOND, name: value}] for value in each] for each in values)
    return good, bad


SETUP = {"places": "0" * 64, "top_k": 20, "cascade": None}
CONTENT: dict[str, dict[str, Any]] = {
    cascade.KEY: {
        "identity": BUNDLE.identity,
        "engine": "ONNX Runtime",
        "similarity_margin": 0.25,
        "looks": [FIRST, SECOND],
        "probability": 0.998,
        "candidates": 100,
        "fitted": 500,
        "checked": 10**9,
        "survived": 0,
        "interval": [0.9, 1.0],
        "compared": 0.5,
    },
    acceptance.KEY: {
        "identity": BUNDLE.identity,
        "engine": "ONNX Runtime",
        "setup": SETUP,
        "threshold": 5.5,
        "slope": 1.0,
        "bias": 0.0,
        "radius": 2.0,
        "precision": 0.8,
        "delta": 0.1,
        "fitted": 33,
        "checked": 10**9,
        "right": 59,
        "outside": 0,
        "expected": 54.2,
        "accepted": 10**9,
        "accepted_right": 0,
        "traverses": [{"name": "drive", "checked": 67, "accepted": 63, "right": 56}],
        "own": 0,
        "unit": "m",
        "exact": False,
        "samples": {"value": {"quantiles": [1.0, 2.0], "independent": 30.0}},
    },
    TUNING: {
        "setting": {"device": "cpu", "precision": "fp16", "threads": 2, "batch_size": 8, "exact": False},
        "computer": "a robot",
        "engine": "ONNX Runtime",
        "map_pictures": 500,
        "candidates": 100,
        "pictures": 10**9,
        "changed": 0,
        "interval": [0.0, 0.1],
        "max_loss": 0.05,
        "budget_ms": None,
        "median_ms": 40.0,
        "p99_ms": 60.0,
        "exact_ms": 320.0,
    },
}
FIND: dict[str, Callable[[Bundle], Any]] = {
    cascade.KEY: Cascade.find_in,
    acceptance.KEY: Acceptance.find_in,
    TUNING: Tuning.find_in,
}
ROWS: dict[str, Callable[[Any], Any]] = {
    cascade.KEY: cascade_rows,
    acceptance.KEY: acceptance_rows,
    TUNING: tuning_rows,
}
LIMITS: list[tuple[str, str, tuple[list[Any], list[Any]]]] = [
    (cascade.KEY, "engine", TEXTS),
    (cascade.KEY, "looks", ([[SECOND]], [[], [FIRST], [SECOND, FIRST], [FIRST, SECOND, SECOND], [SECOND, SECOND], 1])),
    (cascade.KEY, "looks", looks("head", ([HEAD], [HEAD[4:], HEAD + "AAAA", "?", "", 1, NANS]))),
    (cascade.KEY, "looks", looks("bias", NUMBERS)),
    (cascade.KEY, "looks", looks("margin", ABOVE)),
    (cascade.KEY, "looks", looks("kept", SHARES)),
    (cascade.KEY, "similarity_margin", ([*ABOVE[0], None], ABOVE[1])),
    *((cascade.KEY, name, SHARES) for name in ("probability", "compared")),
    *((cascade.KEY, name, COUNTS) for name in ("candidates", "fitted", "survived")),
    (cascade.KEY, "checked", ([1, 10**9], [0, 10**9 + 1, "1"])),
    (cascade.KEY, "interval", INTERVALS),
    (acceptance.KEY, "engine", TEXTS),
    *((acceptance.KEY, name, NUMBERS) for name in ("threshold", "bias")),
    *((acceptance.KEY, name, ABOVE) for name in ("slope", "radius", "expected")),
    *((acceptance.KEY, name, ([0.001, 0.999], [0, 1, -0.1, 1.1, "0.5"])) for name in ("precision", "delta")),
    *((acceptance.KEY, name, COUNTS) for name in ("fitted", "right", "outside", "own", "accepted", "accepted_right")),
    (acceptance.KEY, "unit", (["m", "frames"], ["km", "", 1, None])),
    (acceptance.KEY, "exact", ([True, False], [0, None, "yes"])),
    (acceptance.KEY, "setup", ([], [{}, [], {"places": "", "top_k": 0, "cascade": None}, {"top_k": 1, "cascade": ""}])),
    (acceptance.KEY, "setup", ([{"places": "", "top_k": 10**9, "cascade": "x"}], [None])),
    *(
        (acceptance.KEY, "setup", ([{**SETUP, "pictures": value}], [{**SETUP, "pictures": other}]))
        for value, other in [(None, 0), (1, -1), (2**40, 2**40 + 1), (7, "7"), (7, True)]
    ),
    (acceptance.KEY, "traverses", ([[]], [{}, [[]], [{"name": "a"}], ["a"]])),
    (acceptance.KEY, "samples", ([{}], [[], {"other": {"quantiles": [1.0], "independent": 1}}])),
    *(
        (acceptance.KEY, "samples", ([{"lead": inside}], [{"lead": outside}]))
        for inside, outside in [
            ({"quantiles": [1.0], "independent": 0}, {"quantiles": [], "independent": 0}),
            ({"quantiles": [1.0, 1.0], "independent": 0}, {"quantiles": [1.0, 0.9], "independent": 0}),
            ({"quantiles": [0.0] * 10_000, "independent": 9}, {"quantiles": [0.0] * 10_001, "independent": 9}),
            ({"quantiles": [0.0], "independent": 9}, {"quantiles": [0.0], "independent": -0.1}),
            ({"quantiles": [0.0], "independent": 9}, {"quantiles": ["0"], "independent": 1}),
        ]
    ),
    *((TUNING, name, TEXTS) for name in ("computer", "engine")),
    *((TUNING, name, COUNTS) for name in ("map_pictures", "candidates", "changed")),
    (TUNING, "pictures", COUNTS),
    (TUNING, "interval", INTERVALS),
    (TUNING, "max_loss", SHARES),
    *((TUNING, name, ABOVE) for name in ("budget_ms", "median_ms", "p99_ms", "exact_ms")),
    (TUNING, "budget_ms", ([None], [])),
    *(
        (TUNING, "setting", ([{name: value} for value in inside], [{name: value} for value in outside]))
        for name, inside, outside in [
            ("device", ["auto", "cpu", "tensorrt"], ["abacus", "", None, 1]),
            ("precision", [None, "x" * 200], ["x" * 201, 16, ["fp16"]]),
            ("threads", [None, 1, 10_000], [0, 10_001, "2", True]),
            ("batch_size", [None, 1, 10**6], [0, 10**6 + 1, "8", 8.5]),
            ("exact", [None, True, False], [0, "no"]),
            ("colour", [], ["red"]),
        ]
    ),
]


def bundle_with(key: str, content: Any) -> Bundle:
    return Bundle(BUNDLE.path, dataclasses.replace(BUNDLE.info, calibration={key: content}))


def find(key: str, content: Any) -> str:
    """Read a result as `pairvpr map info` does. Return the message of a refusal, or ""."""
    try:
        found = FIND[key](bundle_with(key, content))
        assert found is not None
        block("map", ROWS[key](found))
    except BundleError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", CONTENT)
def test_each_key_is_needed_and_no_other_is_known(key: str) -> None:
    assert find(key, CONTENT[key]) == ""
    assert "unknown key" in find(key, {**CONTENT[key], "\x1b[2J": 1})
    optional = {"unit", "exact", "samples"}
    for name in CONTENT[key]:
        less = {each: value for each, value in CONTENT[key].items() if each != name}
        assert (f"has no {name}" in find(key, less)) == (name not in optional)


@pytest.mark.parametrize(("key", "name", "values"), LIMITS)
def test_values_have_limits(key: str, name: str, values: tuple[list[Any], list[Any]]) -> None:
    inside, outside = values
    for value in inside:
        content = {**CONTENT[key], name: value}
        if name == "pictures" and value == 0:
            content["changed"] = 0
        if name == "accepted":
            content["accepted_right"] = 0
        assert find(key, content) == "", value
    for value in outside:
        message = find(key, {**CONTENT[key], name: value})
        assert message.startswith(f"{BUNDLE.path / FILE}: its "), value
        assert message.isprintable()


@pytest.mark.parametrize(
    ("key", "change"),
    [
        (cascade.KEY, {"checked": 10, "survived": 11}),
        (acceptance.KEY, {"checked": 10, "accepted": 11}),
        (acceptance.KEY, {"accepted": 10, "accepted_right": 11}),
        (TUNING, {"pictures": 10, "changed": 11}),
        (cascade.KEY, {"identity": "0" * 64}),
        (acceptance.KEY, {"identity": "0" * 64}),
    ],
)
def test_values_agree_with_each_other(key: str, change: dict[str, Any]) -> None:
    assert find(key, {**CONTENT[key], **change})
    equal = {name: 10 if name != "identity" else BUNDLE.identity for name in change}
    assert find(key, {**CONTENT[key], **equal}) == ""


@pytest.mark.parametrize("key", CONTENT)
@pytest.mark.parametrize("examples", [60, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_forged_result_is_refused_or_can_be_shown(key: str, examples: int) -> None:
    every = places(CONTENT[key])

    @settings(
        max_examples=examples,
        deadline=5000,
        derandomize=examples < 1000,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(st.sampled_from(every), VALUES)
    def check(place: tuple[Any, ...], value: Any) -> None:
        content = copy.deepcopy(CONTENT[key])
        forge(content, place, value)
        assert find(key, content).isprintable()

    check()
