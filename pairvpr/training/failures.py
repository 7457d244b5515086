"""Turn failures of the machine into errors of one line: memory, disks, reading processes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError

from pairvpr.errors import SourceError, TrainingError, one_line

Batch = TypeVar("Batch")


@contextmanager
def memory_named(settings: str) -> Iterator[None]:
    """Turn running out of memory into a TrainingError that names the settings to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # The CPU's allocator raises a plain RuntimeError.
        on_cpu = "not enough memory" in str(error) or "can't allocate memory" in str(error)
        if not on_cpu and not isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise TrainingError(f"out of memory: lower {settings}, or use more processes") from error


def source_errors(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """Yield the batches. Turn a worker's SourceError into a TrainingError without the worker's traceback.

    A worker that dies while it hands a batch over breaks the connection. That becomes a TrainingError, too.
    """
    try:
        yield from batches
    except (ConnectionError, EOFError) as error:
        raise _death(error) from error
    except SourceError as error:
        told = str(error).strip().splitlines()[-1]
        raise TrainingError(told.removeprefix(f"{SourceError.__module__}.{SourceError.__qualname__}: ")) from error


@contextmanager
def deaths_told() -> Iterator[None]:
    """Turn the death of a worker process into a TrainingError. The kernel kills workers when memory runs out.

    torch raises the error in a signal handler, so it may come from any line of the run.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise _death(error) from error


def _death(error: Exception) -> TrainingError:
    return TrainingError(
        f"a process that reads pictures died ({one_line(error)}): lower run.workers (0 uses none), or give the run "
        "more memory and shared memory (/dev/shm)"
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write `path`, a file or folder of a run, into a TrainingError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError
        raise TrainingError(
            f"{path}: cannot be written ({one_line(error)}); free space, or allow writing to the folder, then run again"
        ) from error
