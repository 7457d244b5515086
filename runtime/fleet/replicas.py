"""Call one of several equal actors of a shard, and go on with another one if it is late or lost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pairvpr.runtime.fleet.ray_api import LostCallError, cancel, get, wait

Call = Callable[[Any, int], Any]
"""Calls an actor, with a number of retries after crashes. -1 waits until the actor is back."""


class Replicas:
    """The actors of one shard, which give equal answers. Calls go to them in turn.

    actors: the actors, by number.
    """

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = actors
        self._turn = itertools.count()
        self._lost: dict[int, Any] = {}

    def in_turn(self) -> list[int]:
        """Return the numbers of the actors in the order to ask them. Lost ones are last."""
        for number, call in list(self._lost.items()):
            if wait([call], 1, 0):
                self._lost.pop(number, None)
        first = next(self._turn)
        order = [(first + i) % len(self.actors) for i in range(len(self.actors))]
        return sorted(order, key=lambda number: number in self._lost)

    def lose(self, number: int, call: Any) -> None:
        """Ask an actor last until `call` to it has ended."""
        self._lost[number] = call


class ReplicaCall:
    """A call to one shard. The last replica that it goes to is waited for if it dies.

    waiting: the number of the actor by call.
    """

    def __init__(self, replicas: Replicas, call: Call, reopen: Call) -> None:
        """Call the first replica.

        reopen: a call that ends when an actor answers again.
        """
        self._replicas, self._call, self._reopen = replicas, call, reopen
        self._spare = replicas.in_turn()
        self.waiting: dict[Any, int] = {}
        self.start()

    @property
    def has_spare(self) -> bool:
        """Return whether there are replicas that were not called yet."""
        return bool(self._spare)

    def start(self) -> None:
        """Call the next replica, if there is one."""
        if self._spare:
            number = self._spare.pop(0)
            self.waiting[self._call(self._replicas.actors[number], 0 if self._spare else -1)] = number

    def fail(self, call: Any) -> None:
        """Go on with the next replica after a call that was lost with its actor."""
        number = self.waiting.pop(call)
        self._replicas.lose(number, self._reopen(self._replicas.actors[number], -1))
        self.start()

    def finish(self, call: Any) -> None:
        """Take the result of a call. The other calls show when replicas that are late answer again."""
        del self.waiting[call]
        for late, number in self.waiting.items():
            self._replicas.lose(number, late)


def collect_first(
    calls: Mapping[int, ReplicaCall], seconds: float, late: float
) -> tuple[dict[int, Any], dict[int, str]]:
    """Return the first result of each shard within `seconds`, and a reason for each shard without one.

    late: seconds after which shards without an answer are called at another replica.
    Raises the PairVPRError of a shard.
    """
    results, faults = dict[int, Any](), dict[int, str]()
    began = time.monotonic()
    next_call = began + late
    while open_calls := {call: part for part, each in calls.items() if part not in results for call in each.waiting}:
        ends = began + seconds
        if any(calls[part].has_spare for part in open_calls.values()):
            ends = min(ends, next_call)
        race = len(open_calls) > len(set(open_calls.values()))
        done = wait(open_calls, 1 if race else len(open_calls), max(0.0, ends - time.monotonic()))
        for call in done:
            part = open_calls[call]
            if part in results:
                continue
            try:
                results[part] = get(call)
                calls[part].finish(call)
            except LostCallError as error:
                faults[part] = str(error)
                calls[part].fail(call)
        if not done and ends == began + seconds:
            break
        if not done:
            next_call += late
            for part in set(open_calls.values()):
                calls[part].start()
    for part in calls.keys() - results.keys():
        cancel(calls[part].waiting)
        faults[part] = faults.get(part, f"no answer within {seconds:.1f} s")
    return results, faults
