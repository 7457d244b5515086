"""Calibration results are read in one way: there, not there, or refused with file and remedy."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pairvpr.errors import BundleError
from pairvpr.runtime.bundle import Bundle, check_model, read_result
from pairvpr.runtime.bundle_info import FILE
from pairvpr.runtime.model import default_bundle


def bundle_with(**results: Any) -> Bundle:
    bundle = Bundle.open(default_bundle())
    return Bundle(bundle.path, dataclasses.replace(bundle.info, calibration=results))


def test_a_result_is_parsed_and_a_missing_one_is_none() -> None:
    assert read_result(bundle_with(number="7"), "number", "number", "count again", int) == 7
    assert read_result(bundle_with(), "number", "number", "count again", int) is None


@pytest.mark.parametrize(("stored", "parse"), [("seven", int), ([], int), ({}, lambda content: content["seven"])])
def test_one_that_cannot_be_used_is_refused(stored: Any, parse: Any) -> None:
    bundle = bundle_with(number=stored)
    with pytest.raises(BundleError, match=r"its number cannot be used \(\w+Error: .*\); count again$") as error:
        read_result(bundle, "number", "number", "count again", parse)
    assert str(error.value).startswith(str(bundle.path / FILE))


def test_another_models_is_refused() -> None:
    bundle = bundle_with()
    check_model(bundle, bundle.identity)
    with pytest.raises(ValueError, match=f"calibrated for model 000000000000, not for {bundle.identity[:12]}"):
        check_model(bundle, "0" * 64)
