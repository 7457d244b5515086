"""An index of pictures in an SQLite file, for data sets of millions: which picture shows which place, and where.

Rows are read and written as a stream, so that memory does not grow with the data set. The file is written under
another name and renamed when it is complete: an interruption leaves no half index, and of several processes that
index at once each writes a whole one. It is kept until arguments or sources (by size and time of change) differ.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pairvpr.data.places import Picture, Place
from pairvpr.errors import SourceError
from pairvpr.files import write_atomically
from pairvpr.machine import cache_folder
from pairvpr.runtime.image import load_picture

FORMAT = 1

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A picture of the index.

    area, place: what it shows; places of an area (a city) form a group. path: of the file below the data set's
    root, posix. east, north: metres. heading: degrees clockwise from north. time: seconds since 1970.
    """

    area: str
    place: int | str
    path: str
    east: float | None = None
    north: float | None = None
    heading: float | None = None
    time: float | None = None


@dataclass(frozen=True)
class PictureIndex:
    """An index that is ready to be asked. `key` tells it from others, `groups` are the numbers of places by area.

    It holds no connection: opening one takes less than a millisecond, and none can be carried into a worker.
    """

    file: Path
    key: str
    groups: tuple[int, ...]

    def place(self, number: int) -> tuple[str, list[Row]]:
        """Name and pictures of a place, in the order of their paths.

        Raises SourceError where the file is gone or another than was opened, IndexError where there is no such place.
        """
        with _reading(self.file) as connection:
            if _key_in(connection) != self.key:
                raise SourceError(f"{self.file}: was made anew for other data; start again, or keep an index for each")
            found = connection.execute("SELECT area, place FROM places WHERE rowid = ?", (number + 1,)).fetchone()
            if found is None:
                raise IndexError(f"place {number} of {sum(self.groups)}")
            columns = ", ".join(Row._fields)
            query = f"SELECT {columns} FROM pictures WHERE area = ? AND place = ? ORDER BY path"
            rows = [Row(*row) for row in connection.execute(query, found)]
        return "/".join(str(part) for part in found if part != ""), rows


class IndexedPlaces:
    """A data set whose pictures stand in an index."""

    def __init__(self, root: Path, index: PictureIndex) -> None:
        """`root`: the folder that the index' paths are below."""
        self.root, self.index = root, index

    def __len__(self) -> int:
        return sum(self.index.groups)

    @property
    def groups(self) -> tuple[int, ...]:
        """Numbers of places by area."""
        return self.index.groups

    def place(self, index: int, rng: np.random.Generator) -> Place:
        """All pictures of a place; nothing is left to chance."""
        name, rows = self.index.place(index)
        return Place(name, [self._picture(row) for row in rows])

    def _picture(self, row: Row) -> Picture:
        position = None if row.east is None or row.north is None else (row.east, row.north)
        return Picture(row.path, partial(load_picture, self.root / row.path), position, row.heading, row.time)


def open_index(
    name: str,
    root: Path,
    *,
    sources: Iterable[Path],
    rows: Iterable[Row],
    min_pictures: int,
    min_extent: float = 0.0,
    file: str = "",
) -> PictureIndex:
    """The index of a data set; `rows` are only read where there is none yet, or one of other data.

    sources: the files or folders below `root` that the rows come from. Places of fewer than `min_pictures` pictures,
    or with less than `min_extent` metres between them along both axes, are left out. file: where the index is kept,
    "" for the user's cache folder. Raises SourceError where it cannot be written, or `file` is something else.
    """
    key = _key([FORMAT, name, str(root.resolve()), min_pictures, min_extent], root, sources)
    path = Path(file) if file else cache_folder() / f"{name}-{key}.sqlite"
    if _key_of(path) != key:
        log.info("indexing %s into %s", root, path)
        _write(path, key, rows, min_pictures, min_extent)
    with _reading(path) as connection:
        counts = connection.execute("SELECT count(*) FROM places GROUP BY area ORDER BY area").fetchall()
    return PictureIndex(path, key, tuple(count for (count,) in counts))


def _key(arguments: list[object], root: Path, sources: Iterable[Path]) -> str:
    """A hash of the arguments and of name, size and time of change of the sources, in whatever order they come."""
    seen = []
    for source in sources:
        try:
            state = source.stat()
        except OSError as error:
            raise SourceError(f"{source}: cannot be looked at ({error.strerror}); check path and rights") from error
        seen.append([source.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns])
    return hashlib.sha256(json.dumps([*arguments, sorted(seen)]).encode()).hexdigest()[:16]


def _key_of(file: Path) -> str | None:
    """The key in an index, None where there is no file."""
    if not file.exists():
        return None
    with _reading(file) as connection:
        return _key_in(connection)


def _key_in(connection: sqlite3.Connection) -> str:
    return "".join(key for (key,) in connection.execute("SELECT key FROM about"))


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    # Immutable: the file never changes under its name, so that no locks are needed, which network folders often lack.
    address = f"{file.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise SourceError(
            f"{file}: is missing, damaged or no index of pictures ({error}); remove it or name another"
        ) from error


def _write(file: Path, key: str, rows: Iterable[Row], min_pictures: int, min_extent: float) -> None:
    """Index `rows` into `file`, which appears at once and complete."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(file) as partial, closing(sqlite3.connect(partial)) as connection:
            _fill(connection, key, rows, min_pictures, min_extent)
    except (OSError, sqlite3.Error) as error:
        raise SourceError(f"{file}: cannot be written ({error}); name another file with the argument index") from error


def _fill(connection: sqlite3.Connection, key: str, rows: Iterable[Row], min_pictures: int, min_extent: float) -> None:
    # Nobody reads the file before it is complete, so that there is nothing to roll back to.
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    # No types: an area's places may be numbers or texts, and compare as such.
    connection.execute(f"CREATE TABLE pictures ({', '.join(Row._fields)})")
    connection.executemany(f"INSERT INTO pictures VALUES ({', '.join('?' * len(Row._fields))})", rows)
    connection.execute("CREATE INDEX by_place ON pictures (area, place)")
    # SQLite numbers the rows of a table made this way from 1 on, in the order of the query.
    connection.execute(
        """CREATE TABLE places AS SELECT area, place FROM pictures GROUP BY area, place
        HAVING count(*) >= ? AND coalesce(max(max(east) - min(east), max(north) - min(north)), 0) >= ?
        ORDER BY area, place""",
        (min_pictures, min_extent),
    )
    connection.execute("CREATE TABLE about (key)")
    connection.execute("INSERT INTO about VALUES (?)", (key,))
    connection.commit()
