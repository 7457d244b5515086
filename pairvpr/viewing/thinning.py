"""Keep a bounded number of things, evenly chosen, from a stream of any length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Thinned(Generic[Item]):
    """Every n-th thing of a stream, at most `limit` (even) things. When it is full, n doubles.

    items: the kept things, in order. seen: the number of things that came.
    """

    def __init__(self, limit: int) -> None:
        self.items: list[Item] = []
        self.seen = 0
        self._limit = limit
        self._stride = 1

    def offer(self, make: Callable[[], Item]) -> None:
        """Count one more thing. Call `make` and keep its result only if this thing is to be kept."""
        if self.seen % self._stride == 0:
            if len(self.items) == self._limit:  # then seen is a multiple of the doubled stride too
                self.items = self.items[::2]
                self._stride *= 2
            self.items.append(make())
        self.seen += 1
