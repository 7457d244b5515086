"""Report on a run: a JSON line for each logged step, TensorBoard events if wanted, and progress."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pairvpr.errors import TrainingError
from pairvpr.files import write_atomically
from pairvpr.training.failures import writing

LOG = "log.jsonl"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    step, steps: steps done, and steps in all.
    pictures_per_second: of all processes, since the last report.
    waiting: share of the time spent on waiting for data.
    seconds_left: estimate of the time to the end.
    """

    step: int
    steps: int
    loss: float
    pictures_per_second: float
    waiting: float
    seconds_left: float

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
        return (
            f"step {self.step} of {self.steps}: loss {self.loss:.4f}, {self.pictures_per_second:.1f} pictures a second "
            f"({self.waiting:.0%} of the time waiting for data), {left} left"
        )


class ThroughputMeter:
    """Measures throughput since the last reading, and estimates the time left."""

    def __init__(self, step: int, steps: int, pictures_per_step: int) -> None:
        self.steps, self.pictures = steps, pictures_per_step
        self.step, self.start, self.waited = step, time.monotonic(), 0.0

    def waiting_for(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Yield the batches, and record the time spent on waiting for them."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def read(self, step: int, loss: float) -> Progress:
        """Return the progress at `step`, and start the next measurement."""
        now = time.monotonic()
        seconds, steps = max(now - self.start, 1e-9), max(step - self.step, 1)
        progress = Progress(
            step,
            self.steps,
            loss,
            steps * self.pictures / seconds,
            self.waited / seconds,
            (self.steps - step) * seconds / steps,
        )
        self.step, self.start, self.waited = step, now, 0.0
        return progress


class RunLog:
    """`log.jsonl` of a run's folder, with TensorBoard's events beside it. Only the first process writes."""

    def __init__(self, folder: Path, resumed_step: int, tensorboard: bool, writes: bool = True) -> None:
        """Open the log.

        Lines that an interrupted run wrote after `resumed_step` are dropped, because those steps are repeated.
        """
        self._file = None
        self._board: Any = None
        self._step = resumed_step
        if not writes:
            return
        if tensorboard:
            self._board = _tensorboard(folder / "tensorboard", resumed_step)
        self._path = folder / LOG
        with writing(self._path):
            _keep_up_to(self._path, resumed_step)
            self._file = self._path.open("a", encoding="utf-8")

    def write(self, event: str, step: int, **values: Any) -> None:
        """Write a line: event ("step", "validation", "broken picture", ...), step, time and `values`."""
        if self._file is None:
            return
        self._step = step
        line = {"event": event, "step": step, "time": round(time.time(), 3), **_finite(values)}
        with writing(self._path):
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{event}/{name}", value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            with contextlib.suppress(TrainingError):  # report the first failure, not this one
                self.write("failed", self._step, error=str(error) or type(error).__name__)
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk has been reported by then
                self._file.close()
        if self._board is not None:
            self._board.close()


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity by text, because JSON has neither."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _keep_up_to(path: Path, step: int) -> None:
    """Drop a log's lines beyond `step`, and a last line that a crash cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            reached = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):  # the line was cut short
            continue
        if reached <= step:
            kept.append(line + "\n")
    with write_atomically(path) as partial:
        partial.write_text("".join(kept), encoding="utf-8")


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            f"setting run.tensorboard: tensorboard is missing ({error}); run pip install tensorboard"
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)
