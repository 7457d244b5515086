"""What a machine can fail in, told in one line: memory, disks, processes that read pictures."""

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
    """Turns running out of memory into a TrainingError that names the settings to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # The CPU's allocator raises a plain RuntimeError.
        on_cpu = "not enough memory" in str(error) or "can't allocate memory" in str(error)
        if not on_cpu and not isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise TrainingError(f"out of memory: lower {settings}, or use more processes") from error


def source_errors(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """The batches; a worker's SourceError comes back as its message alone, without the worker's traceback."""
    try:
        yield from batches
    except SourceError as error:
        told = str(error).strip().splitlines()[-1]
        raise TrainingError(told.removeprefix(f"{SourceError.__module__}.{SourceError.__qualname__}: ")) from error


@contextmanager
def deaths_told() -> Iterator[None]:
    """Turns the death of a worker, as by the kernel's hand where memory runs out, into a TrainingError.

    torch raises it in a signal handler: wherever the run is at the time.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainingError(
            f"a process that reads pictures died ({one_line(error)}): lower run.workers (0 needs none), or allow more "
            "memory, shared memory (/dev/shm) too"
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write `path`, a file or folder of a run, into a TrainingError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: torch.save's
        raise TrainingError(
            f"{path}: cannot be written ({one_line(error)}); allow the folder or free some space, then run again"
        ) from error
