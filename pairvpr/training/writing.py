"""Failures to write: a full disk, a folder without rights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pairvpr.errors import TrainingError, one_line


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write `path`, a file or folder of a run, into a TrainingError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: torch.save's
        raise TrainingError(
            f"{path}: cannot be written ({one_line(error)}); allow the folder or free some space, then run again"
        ) from error
