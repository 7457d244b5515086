"""Clocks as robots have them: set back, set ahead, standing still."""

from __future__ import annotations

import pytest

from pairvpr.runtime.geometry.clocks import SteadyClock, find_unit


@pytest.mark.parametrize("per", [1, 1e3, 1e6, 1e9])
def test_units_are_told_by_the_year(per: float) -> None:
    assert find_unit(1_700_000_000 * per)[1] == per


@pytest.mark.parametrize("stamp", [0.0, -5.0, 12.5, 9e10])
def test_small_stamps_are_seconds(stamp: float) -> None:
    assert find_unit(stamp) == ("seconds", 1.0)


@pytest.mark.parametrize("stamp", [1e11, 1e14, 1e21, -1e18])
def test_no_unit_gives_a_plausible_year(stamp: float) -> None:
    assert find_unit(stamp) is None


@pytest.mark.parametrize(
    ("stamps", "elapsed", "jumps", "still"),
    [
        ([5, 6, 8], [0, 1, 3], 0, 0),
        ([100, 101, 61, 62], [0, 1, 2, 3], 1, 0),
        ([5, 7, 1.6e9, 1.6e9 + 1], [0, 2, 4, 5], 1, 0),
        ([5, 5, 5], [0, 0, 0], 0, 2),
        ([5, 1], [0, 0], 1, 0),
        ([5, 6, 5.75, 6, 7], [0, 1, 1, 1, 2], 0, 1),
    ],
)
def test_elapsed_seconds_never_run_backwards(stamps: list[float], elapsed: list[float], jumps: int, still: int) -> None:
    clock = SteadyClock()
    assert [clock.advance(stamp) for stamp in stamps] == elapsed
    assert (clock.jumps, clock.still) == (jumps, still)
