"""Evenly spread choices."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pairvpr.spread import spread


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 100])
def test_a_choice_is_even_and_keeps_both_ends(count: int) -> None:
    chosen = spread(range(count), 6)
    assert len(chosen) == min(count, 6)
    assert not chosen or (chosen[0], chosen[-1]) == (0, count - 1)
    steps = [after - before for before, after in pairwise(chosen)]
    assert not steps or max(steps) - min(steps) <= 1


def test_a_limit_of_one_takes_the_first() -> None:
    assert spread("abc", 1) == ["a"]
