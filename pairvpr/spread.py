"""Choose some of many things, evenly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """Return at most `limit` of the items, evenly spread, in order; a limit above 1 keeps the first and the last."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(limit, len(items))).round().astype(int)]
