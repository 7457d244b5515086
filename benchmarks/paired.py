"""Answers to the same queries compared: what changed, each way, and how sure a difference is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.calibration.cascade import wilson_interval

Flags = npt.NDArray[np.bool_]


def share(which: Flags) -> dict[str, Any]:
    """How many of the queries, and the share with its 95 % interval, in percent."""
    count = int(np.sum(which))
    low, high = wilson_interval(count, len(which))
    return {"count": count, "percent": _percent(count / len(which)), "interval": [_percent(low), _percent(high)]}


def flips(before: Flags, after: Flags) -> dict[str, Any]:
    """Right answers (n,) before and after: Recall@1 in percent, its change in points, and what turned, each way."""
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
    """95 % confidence interval of (won - lost) / count, a difference of two shares of the same queries.

    Wald's after half a query was added to each of the four cells (Agresti & Min, Statistics in Medicine 2005): one
    that does not shrink to nothing where nothing turned.
    """
    turned, change = lost + won + 1.0, won - lost
    half = 1.959964 * math.sqrt(turned - change * change / (count + 2)) / (count + 2)
    centre = change / (count + 2)
    return centre - half, centre + half


def _percent(share: float) -> float:
    return round(100 * share, 3)
