"""Open members of folders, replace files and folders in one step, sync them, and lock files between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path

# A name for content that is not complete yet: hidden, and random, so that two writers never share a file.
_PARTIAL = ".{name}.{token}.partial"


def check_member(name: object) -> str:
    """Return the name of a member of a folder. Raises ValueError unless it is one printable part of a path."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or not name.isprintable() or len(name) > 255:
        raise ValueError(f"{name!r:.80} is not the name of a file in the folder")
    return name


def stat_member(folder: Path, name: str) -> os.stat_result:
    """Return the status of a regular file of a folder.

    Raises ValueError if the name leads elsewhere, or the file is a link, pipe or device. Raises OSError.
    """
    status = (folder / check_member(name)).lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")  # a link leads elsewhere, and a pipe never ends
    return status


def open_member(folder: Path, name: str) -> FileIO:
    """Open a regular file of a folder for reading. Raises as `stat_member` does."""
    stat_member(folder, name)  # a device may react when it is opened
    stream = FileIO(folder / name, "r", opener=_open_unlinked)
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise ValueError("it is not a regular file")
    return stream


def read_member(folder: Path, name: str, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes in a folder. Raises as `stat_member`, and ValueError above it."""
    with open_member(folder, name) as stream:
        content = bytearray()
        while part := stream.read(min(limit + 1 - len(content), 1 << 20)):
            content += part
            if len(content) > limit:
                raise ValueError(f"it has more than {limit} bytes")
    return bytes(content)


def check_folder(path: Path) -> None:
    """Raise ValueError unless the path is a folder and no link to one. Raises OSError."""
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise ValueError("it is not a folder")


def _open_unlinked(path: str, flags: int) -> int:
    # Without O_NONBLOCK, a pipe that took the file's place would be waited for.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


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
        sync_tree(partial)  # the name must not reach the disk before the content
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

    The file is made if it is missing; a link is not followed. It holds `purpose` and a line about this process. It is
    never deleted, because two writers could then lock two different files.
    Raises BlockingIOError if another process holds the lock; its `strerror` names that process. Raises OSError.
    """
    stream = FileIO(path, "a+", opener=_open_unlinked)
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


def sync_tree(path: Path) -> None:
    """Bring a file, or a folder with all that it holds, to the disk. Raises OSError."""
    if path.is_dir():
        for parent, _, files in os.walk(path):
            for name in files:
                sync(Path(parent, name))
            sync(Path(parent))
    else:
        sync(path)
