"""Keep an ordinary map of a part of a fleet up to date. Only changed files move, and the old map answers until then."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr.errors import MapError
from pairvpr.files import find_partials, remove, sync
from pairvpr.runtime.bundle import Bundle, link_or_copy
from pairvpr.runtime.bundle_info import FileInfo
from pairvpr.runtime.fleet.storage import Storage, describe_file, fetch, open_storage
from pairvpr.runtime.fleet.tiles import join_catalogs, read_tile
from pairvpr.runtime.fleet.version import TILES, Tile, Version, read_current
from pairvpr.runtime.geometry.poses import Gps
from pairvpr.runtime.map import blocks, catalog
from pairvpr.runtime.map.catalog import Catalog
from pairvpr.runtime.map.creation import create_map, prepare_folder
from pairvpr.runtime.map.errors import reading, writing
from pairvpr.runtime.map.lock import lock_map
from pairvpr.runtime.map.merging import check_fits, is_same_picture
from pairvpr.runtime.map.record_list import RecordList
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import FOLDER, SegmentEntry, segment_name
from pairvpr.runtime.map.thumbnails import thumbnails_name
from pairvpr.runtime.map.writer import MapWriter

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
_Key = tuple[int, int, str]


@dataclass(frozen=True)
class PullReport:
    """The outcome of a pull.

    version: number of the fleet's version.
    tiles: number of tiles in the map.
    pictures: number of pictures in the map, and `own` those that the fleet's tiles lack.
    files, bytes: number and size of the files that moved, besides the description of the version.
    """

    version: int
    tiles: int
    pictures: int
    own: int
    files: int
    bytes: int


def pull(
    fleet: str | Path,
    db: str | Path,
    near: Gps | None = None,
    radius: float = math.inf,
    progress: Progress | None = None,
) -> PullReport:
    """Bring the map `db` to the current version of a fleet, or make the map.

    Pictures that were added to the map beside the fleet's stay in it. Pictures of tiles that are not wanted any more
    leave it. The map's lock keeps other writers away. An interrupted pull goes on when it is repeated.

    fleet: a folder, or the address of an HTTP server of its files or of an object store.
    near, radius: take the tiles that may hold pictures within `radius` metres. None takes all tiles.
    progress: called with the number of files moved and the number of all.
    Raises MapError if a file cannot be read or is damaged, no tile is near, the map is of another model or stores
    tokens in another format, a picture of the map has the name of a different one in the fleet, or the map cannot be
    written. The map is then as it was.
    """
    storage, path = open_storage(fleet), Path(db)
    version = read_current(storage)
    tiles = version.tiles if near is None else version.near(near, radius)
    if near is not None and not tiles:
        if all(tile.gps is None for tile in version.tiles):
            raise MapError(
                f"{storage.where('')}: the fleet has no GPS positions; leave out --near and --radius to fetch all of it"
            )
        raise MapError(
            f"{storage.where('')}: the fleet has no tile within {radius:g} m of {near}; give another --near or a "
            "larger --radius"
        )
    mover = _Mover(storage, progress)
    _create(path, version, mover)
    with MapWriter.edit(path) as writer:
        check_fits(path, writer.meta, Path(storage.where("")), version.meta)
        before = _read_cached(path / TILES)
        catalogs = [(tile, _fetch_catalog(path, version, tile, mover)) for tile in tiles]
        joined = join_catalogs([each for _, each in catalogs], version.meta, path)
        state = catalog.load(path)
        plan = _Plan(path, state, catalogs, before)
        kept = plan.keep_own(joined.records.live(), version.next_id)
        mover.move(path, plan.missing)
        entries, records = plan.result(kept)
        if (entries, records) != (state.segments, state.records):
            plan.install(path)
            upgraded = writer.meta.upgraded(len(state.records.live()))
            meta = dataclasses.replace(upgraded, segments=len(entries), records=len(records))
            catalog.check_whole(meta, entries, records)
            writer.replace(meta, entries, records)
        _clean(path / TILES, tiles)
    live, held = len(records.live()), len(joined.records.live())
    return PullReport(version.number, len(tiles), live, live - held, mover.files, mover.bytes)


class _Mover:
    """Fetch files, and count those that moved."""

    def __init__(self, storage: Storage, progress: Progress | None) -> None:
        self.storage, self._progress = storage, progress
        self.files = self.bytes = 0

    def fetch(self, file: str, info: FileInfo, target: Path) -> None:
        """Fetch a file unless it is there. Raises MapError."""
        with reading(target):
            if target.is_file() and target.stat().st_size == info.bytes and describe_file(target) == info:
                return
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        fetch(self.storage, file, info, target)
        self.files, self.bytes = self.files + 1, self.bytes + info.bytes

    def move(self, path: Path, missing: Sequence[tuple[Tile, SegmentEntry]]) -> None:
        """Fetch segments and their thumbnails to the folders of their tiles in the map."""
        for done, (tile, entry) in enumerate(missing, 1):
            for name in (f"{FOLDER}/{entry.file}", f"{FOLDER}/{thumbnails_name(entry.number)}"):
                if name in tile.files:
                    target = path / TILES / tile.digest / name
                    self.fetch(f"{tile.folder}/{name}", tile.files[name], target)
            if self._progress is not None:
                self._progress(done, len(missing))


def _create(path: Path, version: Version, mover: _Mover) -> None:
    """Make an empty map with the fleet's model, unless there is a map. Raises MapError."""

    def install(folder: Path) -> None:
        for name, info in version.model.items():
            mover.fetch(f"{version.model_folder}/{name}", info, folder / name)
        bundle = Bundle.open(folder)
        bundle.verify()
        if bundle.identity != version.identity:
            raise MapError(
                f"{mover.storage.where(version.model_folder)} is model {bundle.identity[:12]}, not "
                f"{version.identity[:12]}: restore the fleet from a copy"
            )

    if (path / catalog.FILE).exists():
        return
    prepare_folder(path)
    with closing(lock_map(path)):
        prepare_folder(path)  # another writer may have worked until the lock was free
        if not (path / catalog.FILE).exists():
            create_map(path, dataclasses.replace(version.meta, segments=0, records=0), install)


def _fetch_catalog(path: Path, version: Version, tile: Tile, mover: _Mover) -> Catalog:
    folder = path / TILES / tile.digest
    mover.fetch(f"{tile.folder}/{catalog.FILE}", tile.files[catalog.FILE], folder / catalog.FILE)
    return read_tile(folder, tile, version.meta)


def _read_cached(folder: Path) -> list[Catalog]:
    """Read the catalogs of the tiles that were pulled before, and delete the remains of interrupted pulls."""
    found: list[Catalog] = []
    with writing(folder):
        for partial in [each for below in folder.rglob("*") if below.is_dir() for each in find_partials(below)]:
            remove(partial)
        cached = sorted(each for each in folder.glob("*") if (each / catalog.FILE).exists())
    for each in cached:
        try:
            found.append(catalog.load(each))
        except MapError as error:
            log.warning("%s; pictures of this tile count as the map's own until it is pulled again", error)
    return found


class _Plan:
    """The segments of the new map: those of the tiles, under the map's own numbers, and the map's own.

    missing: segments of tiles whose files the map lacks.
    """

    def __init__(
        self, path: Path, state: Catalog, tiles: Sequence[tuple[Tile, Catalog]], before: Iterable[Catalog]
    ) -> None:
        self._path, self._state, self._tiles = path, state, tiles
        held = {key: number for number, key in _keys(state).items()}
        pulled = {key for each in before for key in _keys(each).values()}
        free = max((entry.number for entry in state.segments), default=0) + 1
        self._numbers: dict[int, int] = {}  # by the fleet's numbers
        self.missing: list[tuple[Tile, SegmentEntry]] = []
        wanted: set[_Key] = set()
        for tile, each in tiles:
            keys = _keys(each)
            wanted |= set(keys.values())
            for entry in each.segments:
                number = held.pop(keys[entry.number], None)
                if number is None:
                    number, free = free, free + 1
                    self.missing.append((tile, entry))
                self._numbers[entry.number] = number
        # What is left and did not come from the fleet is the map's own.
        self._own = {number for key, number in held.items() if key not in pulled and key not in wanted}

    def keep_own(self, theirs: RecordList, first: int) -> dict[int, list[Record]]:
        """Return the records of the map's own segments that have pictures which the tiles lack, by segment.

        theirs: the tiles' pictures. first: id of the first of these records.
        Raises MapError if a different picture has the same name.
        """
        own: dict[int, list[Record]] = defaultdict(list)
        rows = {name: row for row, name in enumerate(theirs.names())}
        for record in self._state.records if self._own else ():
            if record.segment not in self._own:
                continue
            row = rows.get(record.name) if not record.deleted else None
            if row is not None and not is_same_picture(theirs[row], record):
                raise MapError(
                    f"{self._path} and the fleet each hold a picture {record.name!r}, and they differ: remove it with "
                    "`pairvpr map remove`; nothing was changed"
                )
            own[record.segment].append(dataclasses.replace(record, deleted=record.deleted or row is not None))
        kept = {number: held for number, held in own.items() if not all(record.deleted for record in held)}
        for held in kept.values():
            held[:] = [dataclasses.replace(record, id=first + i) for i, record in enumerate(held)]
            first += len(held)
        return kept

    def result(self, kept: dict[int, list[Record]]) -> tuple[list[SegmentEntry], RecordList]:
        """Return the segments and records of the new map. Each block is of one segment."""
        entries, packed = [], []
        for _, each in self._tiles:
            for entry in each.segments:
                number = self._numbers[entry.number]
                entries.append(dataclasses.replace(entry, number=number, file=segment_name(number)))
            for block in each.records.blocks:
                moved = [
                    dataclasses.replace(record, segment=self._numbers[record.segment])
                    for record in block.records(deleted=True)
                ]
                packed += blocks.pack(moved)
        entries += [entry for entry in self._state.segments if entry.number in kept]
        for held in kept.values():
            packed += blocks.pack(held)
        ordered = sorted(packed, key=lambda block: block.number)
        return sorted(entries, key=lambda entry: entry.number), RecordList(ordered)

    def install(self, path: Path) -> None:
        """Bring the fetched files to the map's segments. Nothing is committed."""
        with writing(path / FOLDER):
            for tile, entry in self.missing:
                folder, number = path / TILES / tile.digest / FOLDER, self._numbers[entry.number]
                link_or_copy(folder / entry.file, path / FOLDER / segment_name(number))
                if (folder / thumbnails_name(entry.number)).exists():
                    link_or_copy(folder / thumbnails_name(entry.number), path / FOLDER / thumbnails_name(number))
            sync(path / FOLDER)


def _keys(state: Catalog) -> dict[int, _Key]:
    """Return a key of the content of each segment, by number: size, header, names, and checksums of the rows."""
    records = state.records
    digests: dict[int, Any] = defaultdict(hashlib.sha256)
    columns = [records.column(name) for name in ("segment", "row", "descriptor_crc", "tokens_crc")]
    names = records.names()
    for i in np.lexsort((columns[1], columns[0])):
        number, *row = (int(column[i]) for column in columns)
        digests[number].update(json.dumps([names[i], *row], allow_nan=False).encode())
    return {
        entry.number: (entry.bytes, entry.header_crc, digests[entry.number].hexdigest()) for entry in state.segments
    }


def _clean(folder: Path, tiles: Iterable[Tile]) -> None:
    """Keep only the catalogs of these tiles."""
    wanted = {tile.digest for tile in tiles}
    with writing(folder):
        for each in folder.iterdir():
            remove(each / FOLDER if each.name in wanted else each)
