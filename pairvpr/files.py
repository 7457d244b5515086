"""Replace files and folders in one step, bring them to the disk, and lock files between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path

# A name for content that is not complete yet: hidden, and random, so that two writers never share a file.
_PARTIAL = ".{name}.{token}.partial"


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a free path beside `path` for the new content, a file or a folder, and then put it in the place of `path`.

    A reader, a crash or a power cut finds the old content or the new, never a part. An existing folder at `path` must
    be empty. When the block or a step after it fails, the new content is deleted and the exception goes on.
    Raises OSError.
    """
    partial = path.with_name(_PARTIAL.format(name=path.name, token=secrets.token_hex(4)))
    try:
        yield partial
        _sync_tree(partial)  # the name must not reach the disk before the content
        partial.rename(path)
        sync(path.parent)
    finally:
        remove(partial)


def find_partials(folder: Path, name: str = "*") -> list[Path]:
    """Return the files and folders that killed writers left in a folder; [] if the folder does not exist.

    Delete them only under a lock that keeps other writers away.

    name: a pattern for the names of the finished files.
    """
    return sorted(folder.glob(_PARTIAL.format(name=name, token="*") + "*"))  # SQLite's journal has a longer name


def remove(path: Path) -> None:
    """Delete a file or a folder with its content; do nothing if it does not exist. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring the content of a file, or the names in a folder, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network shares cannot sync a folder. They write its names at once.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def lock_file(path: Path, purpose: str) -> FileIO:
    """Lock a file for this process until the returned stream is closed or the process ends.

    The file is made if it is missing. It holds `purpose` and a line about this process. It is never deleted, because
    two writers could then lock two different files.
    Raises BlockingIOError if another process holds the lock; its `strerror` names that process. Raises OSError.
    """
    stream = FileIO(path, "a+")
    try:
        try:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            text = stream.read(1000).decode("utf-8", "replace").strip()
            holder = text.removeprefix(f"{purpose}:").strip() or "another process"
            raise BlockingIOError(error.errno, holder) from error
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        stream.truncate(0)
        stream.write(f"{purpose}: process {os.getpid()} on {socket.gethostname()} since {started}\n".encode())
    except BaseException:
        stream.close()
        raise
    return stream


def _sync_tree(path: Path) -> None:
    if path.is_dir():
        for parent, _, files in os.walk(path):
            for name in files:
                sync(Path(parent, name))
            sync(Path(parent))
    else:
        sync(path)
