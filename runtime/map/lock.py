"""Let one process at a time write to a map. The lock file names that process."""

from __future__ import annotations

from io import FileIO
from pathlib import Path

from pairvpr.errors import MapError
from pairvpr.files import lock_file
from pairvpr.runtime.map.errors import writing

FILE = "lock"

_PURPOSE = "pairvpr map writer"


def lock_map(folder: Path) -> FileIO:
    """Lock a map for writing until the returned stream is closed or the process ends.

    Raises MapError if another writer holds the lock, and names it. Raises MapError if the file cannot be written.
    """
    path = folder / FILE
    with writing(path):
        try:
            return lock_file(path, _PURPOSE)
        except BlockingIOError as error:
            raise MapError(
                f"{folder} is being written by {error.strerror}: wait until it is done, or stop it"
            ) from error


def is_lock(path: Path) -> bool:
    """Return whether a file is the lock of a map: signed, or still empty."""
    return path.is_file() and (path.stat().st_size == 0 or is_signed(path))


def is_signed(path: Path) -> bool:
    """Return whether a writer has put its name into the lock file."""
    with path.open("rb") as stream:
        return stream.read(len(_PURPOSE)) == _PURPOSE.encode()
