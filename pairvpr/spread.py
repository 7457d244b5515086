"""Choose some of many things evenly, and cut a way into stretches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """Return at most `limit` of the items, evenly spread, in order; a limit above 1 keeps the first and the last."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(limit, len(items))).round().astype(int)]


def cut_along(positions: npt.NDArray[np.float64], count: int) -> list[npt.NDArray[np.int64]]:
    """Cut positions (n, d) into `count` stretches along their principal axis. Return the indices of each stretch."""
    centred = positions - positions.mean(axis=0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    return np.array_split(np.argsort(along, kind="stable"), count)
