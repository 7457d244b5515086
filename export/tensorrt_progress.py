"""Report how far TensorRT has built a plan, and stop it at Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pairvpr.runtime.engines.tensorrt.network import Monitor


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress(Monitor):
    """Percentage of a build, computed from TensorRT's phases. A phase inside another is a part of one of its steps."""

    def __init__(self, tell: Callable[[int], None], asked: threading.Event) -> None:
        """Set the receiver.

        tell: called with every new percentage.
        asked: event that is set when the build is to be stopped.
        """
        self._tell, self._asked = tell, asked
        self._lock = threading.Lock()  # TensorRT may report from its own threads
        self._phases: dict[str, _Phase] = {}
        self._told = -1

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Begin a phase of `steps` steps."""
        with self._lock:
            self._phases[phase] = _Phase(parent, max(steps, 1))
            self._update()

    def step(self, phase: str, step: int) -> bool:
        """Record that a step of a phase is done. Return false to stop the build."""
        with self._lock:
            if phase in self._phases:
                self._phases[phase].done = step + 1
            self._update()
        return not self._asked.is_set()

    def finish(self, phase: str) -> None:
        """End a phase."""
        with self._lock:
            ended = self._phases.pop(phase, None)
            if ended is None or ended.parent is None:
                self._say(100)

    def _update(self) -> None:
        roots = [name for name, each in self._phases.items() if each.parent not in self._phases]
        if roots:
            self._say(int(100 * max(self._share(name) for name in roots)))

    def _share(self, phase: str) -> float:
        this = self._phases[phase]
        within = [self._share(name) for name, each in self._phases.items() if each.parent == phase]
        return min(1.0, (this.done + max(within, default=0.0)) / this.steps)

    def _say(self, percent: int) -> None:
        if percent > self._told and not self._asked.is_set():  # a stopped build is not finished
            self._told = percent
            self._tell(percent)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets. An exception from one of its callbacks would crash TensorRT."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
