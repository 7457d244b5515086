"""Turn failures of the disk and of SQLite into map errors of one line."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pairvpr.errors import MapError, one_line

RESTORE = "restore the map from a copy, build it again, or try `pairvpr map verify --repair`"

RESTORE_TILE = (
    "publish the map that this tile of a fleet came from again with `pairvpr fleet adopt`, or restore the fleet from a "
    "copy"
)
_TILES, _DIGEST = "tiles", re.compile("[0-9a-f]{64}")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FILES = {errno.EMFILE, errno.ENFILE}


def find_tile(path: Path) -> Path | None:
    """Return the tile of a fleet that a path is in, None outside of tiles.

    A tile is a map without a model in a folder tiles/PLACE/DIGEST/.
    """
    whole = Path(os.path.realpath(path))
    for folder in (whole, *whole.parents):
        if _DIGEST.fullmatch(folder.name) and folder.parent.parent.name == _TILES:
            return None if (folder / "model").is_dir() else folder
    return None


def refuse_tile(path: Path) -> None:
    """Raise MapError if the map `path` is a tile of a fleet, which must not be changed."""
    if find_tile(path) is not None:
        raise MapError(
            f"{path} is a tile of a fleet, which never changes; change the map that it came from and publish that with "
            "`pairvpr fleet adopt`, also if the tile is damaged; nothing was changed"
        )


def restore_advice(path: Path) -> str:
    """Return the remedy for a damaged or missing file of a map or of a tile."""
    return RESTORE if find_tile(path) is None else RESTORE_TILE


def damage_error(path: Path, fault: object) -> MapError:
    """Return the error for a file whose content is not as it was written."""
    return MapError(f"{path} is damaged ({one_line(fault)}): {restore_advice(path)}")


def missing_error(path: Path) -> MapError:
    """Return the error for a folder that holds no map."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set[str]()
    if names and all(name == "lock" or name.startswith(".model.") for name in names):
        return MapError(
            f"{path} holds no map, but the remains of one; run its `pairvpr map build` or `pairvpr fleet pull` again"
        )
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        return MapError(f"{path} holds no map: give a map's folder, or build one elsewhere with `pairvpr map build`")
    return MapError(f"{path} holds no map: build it with `pairvpr map build IMAGES --db {path}`")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn exceptions of reading and decoding `path` into MapError. The block should do nothing else."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # wrong use of the interface, not a fault of the file
    except sqlite3.Error as error:
        remedy = _remedy_of_reading_sqlite(str(error), path)
        if remedy is None:
            raise damage_error(path, error) from error
        raise MapError(f"{path} cannot be read ({one_line(error)}): {remedy}") from error
    except FileNotFoundError as error:
        raise MapError(f"{path} is missing: {restore_advice(path)}") from error
    except OSError as error:
        raise MapError(f"{path} cannot be read ({_reason(error, path)}): {_remedy_of_reading(error, path)}") from error
    except (ValueError, TypeError, KeyError) as error:  # ValueError includes JSON and Unicode errors
        raise damage_error(path, error) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn exceptions of writing to `path` into MapError. Earlier commits stay as they are."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        remedy = _remedy_of_writing_sqlite(str(error))
        if remedy is None:
            raise damage_error(path, error) from error
        raise MapError(f"{path} cannot be written ({one_line(error)}): {remedy}") from error
    except OSError as error:
        remedy = _remedy_of_writing(error.errno)
        raise MapError(f"{path} cannot be written ({_reason(error, path)}): {remedy}") from error


def _remedy_of_writing(number: int | None) -> str:
    if number in _FULL:
        return "make room and run the command again; committed pictures are kept"
    if number in _REFUSED:
        return "allow writing there or choose another folder"
    if number in _FILES:
        return "allow more open files with `ulimit -n`"
    return "check the disk and run the command again; committed pictures are kept"


def _remedy_of_reading_sqlite(message: str, path: Path) -> str | None:
    """Return None if the content is at fault."""
    if "locked" in message:
        return "another process is writing to it; try again in a moment"
    if "unable to open" in message or "readonly" in message:
        return f"allow reading and writing it, or {restore_advice(path)}"
    if "I/O" in message or "full" in message:
        return f"check the disk and its free space, or {restore_advice(path)}"
    return None


def _remedy_of_writing_sqlite(message: str) -> str | None:
    """Return None if the content is at fault."""
    if "locked" in message:
        return "another process keeps reading it; try again in a moment"
    if "full" in message:
        return _remedy_of_writing(errno.ENOSPC)
    if "readonly" in message or "unable to open" in message:
        return _remedy_of_writing(errno.EACCES)
    if "I/O" in message:  # also if the file may not grow
        return "check the disk and its free space, then run the command again; committed pictures are kept"
    return None


def _remedy_of_reading(error: OSError, path: Path) -> str:
    if error.errno in _REFUSED:
        return "allow reading it"
    if error.errno in _FILES:
        return "allow more open files with `ulimit -n`"
    return f"check the disk, or {restore_advice(path)}"


def _reason(error: OSError, path: Path) -> str:
    if error.errno is None:
        return one_line(error)
    file = "" if error.filename in (None, str(path)) else f": {error.filename}"
    return f"{os.strerror(error.errno)}{file}"
