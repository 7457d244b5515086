"""Calibration results as a bundle keeps them: one way to read them, and one to refuse what cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pairvpr.errors import BundleError
from pairvpr.runtime.bundle import FILE, Bundle

Result = TypeVar("Result")


def read_result(bundle: Bundle, key: str, what: str, remedy: str, parse: Callable[[Any], Result]) -> Result | None:
    """The bundle's calibration result of that name; None where there is none.

    parse: makes it of its JSON value; KeyError, TypeError and ValueError say that it cannot be used. what, remedy: for
    the message. Raises BundleError for one that cannot.
    """
    content = bundle.info.calibration.get(key)
    if content is None:
        return None
    try:
        return parse(content)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.path / FILE}: its {what} cannot be used ({type(error).__name__}: {error}); {remedy}"
        ) from error


def check_model(bundle: Bundle, identity: str) -> None:
    """Raise ValueError where a result is another model's."""
    if identity != bundle.identity:
        raise ValueError(f"calibrated for model {str(identity)[:12]}, not for {bundle.identity[:12]}")
