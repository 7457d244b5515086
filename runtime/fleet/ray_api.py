"""Join Ray clusters, call their actors, and run tasks in them. No other module imports Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

# Ray's workers run at nice 15 otherwise, behind every other program.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.exceptions
import ray.util
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pairvpr.errors import EngineError, PairVPRError, one_line

LOCAL = "local"
CONNECT = 10.0
"""Seconds to wait for the head of a cluster."""
ROOM = 30.0
"""Seconds to wait for free CPUs."""


class LostCallError(Exception):
    """The process that a call went to has ended."""


def join(address: str, cpus: int) -> None:
    """Join a cluster, or start one in this computer. Raises EngineError.

    address: "local" starts a cluster with this number of CPUs. "auto" and HOST:PORT join one.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    if ray.is_initialized():
        raise EngineError("this process is in a Ray cluster already: leave it with ray.shutdown() first")
    try:
        if address not in (LOCAL, "auto"):
            _check_port(address)
        if address == LOCAL:
            # Its processes would listen at the computer's own address otherwise.
            ray.init(address=LOCAL, num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        else:
            # The nodes of a cluster on this computer alone must have the same address.
            if address.startswith("127.0.0.1:"):
                quiet["_node_ip_address"] = "127.0.0.1"
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises Exception itself if its processes do not start in time
        if address == LOCAL:
            raise EngineError(
                f"Ray does not start on this computer ({one_line(error, 200)}): run the command again, or leave out "
                "--address"
            ) from error
        raise EngineError(
            f"no Ray cluster answers at {address!r} ({one_line(error, 200)}): start one with `ray start --head`, or "
            "give --address local"
        ) from error


def _check_port(address: str) -> None:
    """Raise OSError or ValueError unless something listens at HOST:PORT. Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), CONNECT).close()


def leave() -> None:
    """Leave the cluster. One that was started here ends."""
    ray.shutdown()


class Room:
    """CPUs, and GPUs if wanted, that are reserved in a cluster."""

    def __init__(self, count: int, gpus: bool) -> None:
        """Reserve room for actors, on as many nodes as there are. Raises EngineError."""
        bundle = {"CPU": 1, "GPU": 1} if gpus else {"CPU": 1}
        self._gpus = int(gpus)
        self._group = ray.util.placement_group([bundle] * count, strategy="SPREAD")
        if not self._group.wait(ROOM):
            free = ray.available_resources()
            self.close()
            needs = " and ".join(f"{count} {name}s" for name in bundle)
            has = " and ".join(f"{free.get(name, 0):g} {name}s" for name in bundle)
            raise EngineError(
                f"the cluster has no room: {count} shards need {needs}, free are {has}; give fewer --shards or "
                "--replicas"
            )
        nodes = ray.util.placement_group_table(self._group)["bundles_to_node_id"]
        self.places: list[int] = sorted(range(count), key=lambda place: (nodes[place], place))
        """Numbers of the places, those of a node one after the other."""

    def start(self, place: int, actor: type, *arguments: Any) -> Any:
        """Start an actor. It starts again after a crash, and a call to it waits for that."""
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=place)
        remote = ray.remote(actor).options(
            num_cpus=1, num_gpus=self._gpus, max_restarts=-1, max_task_retries=-1, scheduling_strategy=strategy
        )
        return remote.remote(*arguments)

    def close(self) -> None:
        """Give the room back."""
        ray.util.remove_placement_group(self._group)


def end(actor: Any) -> None:
    """End an actor for good."""
    ray.kill(actor)


def wait(calls: Iterable[Any], count: int, seconds: float | None) -> list[Any]:
    """Wait until `count` of the calls have ended, at most `seconds`. Return those that have ended."""
    return list(ray.wait(list(calls), num_returns=count, timeout=seconds)[0])


def get(call: Any) -> Any:
    """Return the result of a call that has ended.

    Raises LostCallError, and exceptions of the call: PairVPRError as it was, others as RayTaskError.
    """
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PairVPRError):
            raise type(error.cause)(str(error.cause)) from error
        raise
    except ray.exceptions.RayError as error:
        raise LostCallError(one_line(error)) from error


def cancel(calls: Iterable[Any]) -> None:
    """Cancel calls. Otherwise an actor that comes back would work through them first."""
    for call in calls:
        with suppress(ray.exceptions.RayError, ValueError):
            ray.cancel(call)


def collect(calls: Mapping[int, Any], seconds: float | None) -> tuple[dict[int, Any], dict[int, str]]:
    """Return the results of the calls that end within `seconds`, and a reason for each of the others, by its key.

    seconds: None waits for all calls.
    Calls that are late are cancelled. Raises the PairVPRError of a call.
    """
    done = wait(calls.values(), len(calls), seconds) if calls else []
    cancel(call for call in calls.values() if call not in done)
    results, faults = {}, {}
    for key, call in calls.items():
        try:
            if call in done:
                results[key] = get(call)
            else:
                faults[key] = f"no answer within {seconds:.1f} s"
        except LostCallError as error:
            faults[key] = str(error)
    return results, faults


def run_tasks(address: str, cpus: int, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call a function with each of some arguments in tasks of a cluster. A task whose process dies runs again.

    cpus: number of CPUs of a cluster that is started here.
    Return the results in order. Raises the PairVPRError of a task, and EngineError if no cluster answers.
    """
    join(address, cpus)
    try:
        if not ray.cluster_resources().get("CPU"):
            raise EngineError(f"the cluster at {address!r} has no CPU: add nodes to it")
        task = ray.remote(function).options(num_cpus=1, max_retries=-1)
        results, faults = collect({i: task.remote(*each) for i, each in enumerate(arguments)}, None)
        for fault in faults.values():
            raise EngineError(f"a task was lost ({fault}): run the command again to go on")
        return [results[i] for i in range(len(arguments))]
    finally:
        leave()
