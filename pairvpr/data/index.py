"""Keep an index of a data set's pictures in an SQLite file, for data sets of millions of pictures.

Rows are read and written as a stream, so memory does not grow with the data set. The file is written under a temporary
name and renamed when it is complete. So an interruption leaves no half-written index, and processes that index at the
same time each write a whole one. The index is used until the arguments or the sources (size, modification time) change.
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

from pairvpr.data.places import TrainingPicture, TrainingPlace
from pairvpr.errors import SourceError
from pairvpr.files import write_atomically
from pairvpr.machine import cache_folder
from pairvpr.runtime.image import load_picture

FORMAT = 1

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A picture of the index.

    area, place: the place that the picture shows. The places of an area (a city) form a group.
    path: posix path of the file, relative to the data set's root.
    east, north: metres.
    heading: degrees clockwise from north.
    time: seconds since 1970.
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
    """An index that can be queried.

    file: the SQLite file.
    key: identifies the data set's state that was indexed.
    groups: number of places of each area.

    The object holds no connection. Opening one takes less than a millisecond, and a worker process cannot inherit one.
    """

    file: Path
    key: str
    groups: tuple[int, ...]

    def place(self, number: int) -> tuple[str, list[Row]]:
        """Return the name of a place and its pictures, ordered by path.

        Raises SourceError if the file is gone or was replaced since it was opened, IndexError if there is no such
        place.
        """
        with _reading(self.file) as connection:
            if _key_in(connection) != self.key:
                raise SourceError(
                    f"{self.file}: another run rebuilt this index for other data; "
                    "run again, or give each run its own argument index"
                )
            found = connection.execute("SELECT area, place FROM places WHERE rowid = ?", (number + 1,)).fetchone()
            if found is None:
                raise IndexError(f"place {number} of {sum(self.groups)}")
            columns = ", ".join(Row._fields)
            query = f"SELECT {columns} FROM pictures WHERE area = ? AND place = ? ORDER BY path"
            rows = [Row(*row) for row in connection.execute(query, found)]
        return "/".join(str(part) for part in found if part != ""), rows


class IndexedPlaces:
    """Data set whose pictures are listed in an index."""

    def __init__(self, root: Path, index: PictureIndex) -> None:
        """Use an opened index. `root` is the folder that the paths of the index are relative to."""
        self.root, self.index = root, index

    def __len__(self) -> int:
        return sum(self.index.groups)

    @property
    def groups(self) -> tuple[int, ...]:
        """Number of places of each area."""
        return self.index.groups

    def place(self, index: int, rng: np.random.Generator) -> TrainingPlace:
        """Return all pictures of a place. Nothing is random."""
        name, rows = self.index.place(index)
        return TrainingPlace(name, [self._picture(row) for row in rows])

    def _picture(self, row: Row) -> TrainingPicture:
        position = None if row.east is None or row.north is None else (row.east, row.north)
        return TrainingPicture(row.path, partial(load_picture, self.root / row.path), position, row.heading, row.time)


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
    """Open the index of a data set, and build it first if it is missing or out of date.

    name: of the data set, part of the file name in the cache folder.
    root: folder that the paths of the rows are relative to.
    sources: files or folders below `root` that the rows are read from.
    rows: the pictures, read only if the index is built.
    min_pictures: places with fewer pictures are left out.
    min_extent: places that extend less than this many metres along both axes are left out.
    file: of the index, "" for a file in the user's cache folder.
    Raises SourceError if the index cannot be written, or if `file` is something else.
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
    """Return a hash of the arguments and of the sources' names, sizes and modification times.

    The order of the sources does not matter.
    """
    seen = []
    for source in sources:
        try:
            state = source.stat()
        except OSError as error:
            raise SourceError(
                f"{source}: cannot be read ({error.strerror}); check the path and its permissions"
            ) from error
        seen.append([source.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns])
    return hashlib.sha256(json.dumps([*arguments, sorted(seen)], allow_nan=False).encode()).hexdigest()[:16]


def _key_of(file: Path) -> str | None:
    """Return the key stored in an index, or None if the file does not exist."""
    if not file.exists():
        return None
    with _reading(file) as connection:
        return _key_in(connection)


def _key_in(connection: sqlite3.Connection) -> str:
    return "".join(key for (key,) in connection.execute("SELECT key FROM about"))


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    # Immutable: a file is replaced, never changed, so no locks are needed. Network folders often lack them.
    address = f"{file.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise SourceError(
            f"{file}: missing, damaged or not an index of pictures ({error}); "
            "remove it, or name another with the argument index"
        ) from error


def _write(file: Path, key: str, rows: Iterable[Row], min_pictures: int, min_extent: float) -> None:
    """Index `rows` into `file`, which appears only when it is complete."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(file) as partial_file, closing(sqlite3.connect(partial_file)) as connection:
            _fill(connection, key, rows, min_pictures, min_extent)
    except (OSError, sqlite3.Error) as error:
        raise SourceError(f"{file}: cannot be written ({error}); name another file with the argument index") from error


def _fill(connection: sqlite3.Connection, key: str, rows: Iterable[Row], min_pictures: int, min_extent: float) -> None:
    # Nobody reads the file before it is complete, so no rollback is needed.
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    # Columns have no types: the places of an area may be numbers or texts, and are compared as such.
    connection.execute(f"CREATE TABLE pictures ({', '.join(Row._fields)})")
    connection.executemany(f"INSERT INTO pictures VALUES ({', '.join('?' * len(Row._fields))})", rows)
    connection.execute("CREATE INDEX by_place ON pictures (area, place)")
    # SQLite numbers the rows of such a table from 1, in the order of the query.
    connection.execute(
        """CREATE TABLE places AS SELECT area, place FROM pictures GROUP BY area, place
        HAVING count(*) >= ? AND coalesce(max(max(east) - min(east), max(north) - min(north)), 0) >= ?
        ORDER BY area, place""",
        (min_pictures, min_extent),
    )
    connection.execute("CREATE TABLE about (key)")
    connection.execute("INSERT INTO about VALUES (?)", (key,))
    connection.commit()
