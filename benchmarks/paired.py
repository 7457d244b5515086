"""Compare two sets of answers to the same queries: changes each way, and their confidence interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.evaluation.recall import interval_of

Flags = npt.NDArray[np.bool_]


def share(which: Flags) -> dict[str, Any]:
    """Return a number of queries, and its share with the 95 % interval, in percent."""
    count = int(np.sum(which))
    low, high = interval_of(count / len(which), len(which))
    return {"count": count, "percent": _percent(count / len(which)), "interval": [_percent(low), _percent(high)]}


def flips(before: Flags, after: Flags) -> dict[str, Any]:
    """Compare right answers (n,) before and after: Recall@1 in percent, change in points, changes each way."""
    lost, won = int(np.sum(before & ~after)), int(np.sum(~before & after))
    low, high = difference_interval(lost, won, len(before))
    return {
        "recall_at_1": _percent(float(np.mean(after))),
        "difference": _percent((won - lost) / len(before)),
        "interval": [_percent(low), _percent(high)],
        "right_to_wrong": lost,
        "wrong_to_right": won,
    }


def difference_interval(lost: int, won: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of (won - lost) / count, a difference of two shares of the same queries.

    This is Wald's interval with half a query added to each of the four cells (Agresti & Min, Statistics in Medicine
    2005). It does not shrink to nothing if nothing changed.
    """
    turned, change = lost + won + 1.0, won - lost
    half = 1.959964 * math.sqrt(turned - change * change / (count + 2)) / (count + 2)
    centre = change / (count + 2)
    return centre - half, centre + half


def _percent(share: float) -> float:
    return round(100 * share, 3)
