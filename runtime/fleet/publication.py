"""Keep a second publisher away from a fleet, and leave nothing of a publication that failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pairvpr.errors import MapError
from pairvpr.files import find_partials, lock_file, remove
from pairvpr.runtime.fleet.storage import FolderStorage
from pairvpr.runtime.fleet.version import (
    FILE,
    MODELS,
    STAGING,
    TILES,
    VERSIONS,
    Version,
    check_not_lost,
    read_current,
    read_start,
)
from pairvpr.runtime.map.errors import reading, writing

LOCK = "lock"
_PURPOSE = "pairvpr fleet publisher"
_PARTS = {LOCK, STAGING, VERSIONS, MODELS, TILES}


@contextmanager
def publishing_to(path: Path) -> Iterator[Version | None]:
    """Lock the fleet in the folder `path` for the block, and give its current version. None stands for a new fleet.

    The folder is made if it is missing. A failure before the first version leaves it as it was.
    Raises MapError if it holds other things, lacks only `fleet.json`, or another publisher is at work.
    """
    storage = FolderStorage(path)
    with reading(path):
        if path.exists() and not path.is_dir():
            raise MapError(f"{path} is a file, not a folder: choose another path for the fleet")
        existed = path.is_dir()
        names = {entry.name for entry in path.iterdir()} if existed else set()
    if FILE not in names and not names - {each.name for each in find_partials(path)} <= _PARTS:
        raise MapError(f"{path} is not empty and holds no fleet: choose an empty or new folder")
    check_not_lost(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock = lock_file(path / LOCK, _PURPOSE)
        except BlockingIOError as error:
            raise MapError(
                f"{path} is being published to by {error.strerror}: run the command again when it is done"
            ) from error
    new = False
    try:
        current = read_current(storage) if read_start(storage)[0] else None
        new = current is None
        _clean(path, new)
        with writing(path):
            for leftover in find_partials(path):
                remove(leftover)
        yield current
    finally:
        _clean(path, new)
        if new and not (path / FILE).exists():
            _leave(path, existed)
        lock.close()


def _clean(path: Path, new: bool) -> None:
    """Delete the remains of a publication. new: the fleet had no version before it."""
    with writing(path):
        if new and not (path / FILE).exists():
            for name in (VERSIONS, TILES, MODELS):  # before the staging folder, see `check_not_lost`
                remove(path / name)
        remove(path / STAGING)


def _leave(path: Path, existed: bool) -> None:
    with writing(path):
        remove(path / LOCK)
        if not existed and not any(path.iterdir()):
            path.rmdir()
