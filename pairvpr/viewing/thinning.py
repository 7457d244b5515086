"""A bounded number of things, evenly chosen, from a stream of any length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Thinned(Generic[T]):
    """Each n-th of the things that come, at most `limit` (even) of them; when it is full, n doubles.

    items: those kept, in order. seen: how many came.
    """

    def __init__(self, limit: int) -> None:
        self.items: list[T] = []
        self.seen = 0
        self._limit = limit
        self._stride = 1

    def offer(self, make: Callable[[], T]) -> None:
        """Count one more; what `make` gives is kept if it is this one's turn, and else not even made."""
        if self.seen % self._stride == 0:
            if len(self.items) == self._limit:  # then seen is a multiple of the doubled stride too
                self.items = self.items[::2]
                self._stride *= 2
            self.items.append(make())
        self.seen += 1


def evenly(count: int, limit: int) -> list[int]:
    """At most `limit` (2 or more) of the indices 0 to `count` - 1, evenly spaced, the first and the last among them."""
    if count <= limit:
        return list(range(count))
    return [round(i * (count - 1) / (limit - 1)) for i in range(limit)]
