"""The writer's lock: one process at a time writes to a map, and the lock says which."""

from __future__ import annotations

import fcntl
import os
import socket
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path

from pairvpr.errors import MapError
from pairvpr.runtime.map.errors import writing

FILE = "lock"

_SIGNATURE = "pairvpr map writer:"


class WriterLock:
    """Held from construction to `close`, and let go by the kernel should the process die.

    Raises MapError where another writer holds it, saying who, or where the file cannot be written.
    The file stays when the lock is let go: removing it would let two writers hold two different files.
    """

    def __init__(self, folder: Path):
        path = folder / FILE
        with writing(path):
            self._stream = FileIO(path, "a+")
        try:
            with writing(path):
                try:
                    fcntl.flock(self._stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise MapError(
                        f"{folder} is being written by {self._holder()}: wait until it is done, or stop it"
                    ) from error
                self._sign()
        except BaseException:
            self._stream.close()
            raise

    def close(self) -> None:
        """Let go of the lock."""
        self._stream.close()

    def _holder(self) -> str:
        self._stream.seek(0)
        text = self._stream.read(1000).decode("utf-8", "replace").strip()
        return text.removeprefix(_SIGNATURE).strip() or "another process"

    def _sign(self) -> None:
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        text = f"{_SIGNATURE} process {os.getpid()} on {socket.gethostname()} since {started}\n"
        self._stream.truncate(0)
        self._stream.write(text.encode())


def is_lock(path: Path) -> bool:
    """Whether the file is a writer's lock: signed, or still empty as one that was just made."""
    return path.is_file() and (path.stat().st_size == 0 or is_signed(path))


def is_signed(path: Path) -> bool:
    """Whether a writer has put its name into the lock file."""
    with path.open("rb") as stream:
        return stream.read(len(_SIGNATURE)) == _SIGNATURE.encode()
