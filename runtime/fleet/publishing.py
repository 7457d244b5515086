"""Publish maps in a fleet. Killed at any moment, a publisher leaves the version before it or after it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pairvpr import __version__
from pairvpr.errors import MapError
from pairvpr.files import remove, sync, sync_tree, write_atomically
from pairvpr.runtime.bundle import Bundle, link_or_copy
from pairvpr.runtime.bundle_info import FileInfo
from pairvpr.runtime.fleet.damage import set_aside_damaged
from pairvpr.runtime.fleet.place import frame_boxes, gps_box, place_of
from pairvpr.runtime.fleet.publication import publishing_to
from pairvpr.runtime.fleet.storage import FolderStorage, describe_file
from pairvpr.runtime.fleet.version import (
    FILE,
    MODELS,
    STAGING,
    TILES,
    Tile,
    Version,
    encode_start,
    read_start,
)
from pairvpr.runtime.map import blocks, catalog
from pairvpr.runtime.map.catalog import Catalog
from pairvpr.runtime.map.creation import MODEL
from pairvpr.runtime.map.errors import writing
from pairvpr.runtime.map.merging import check_fits, is_same_picture
from pairvpr.runtime.map.meta import FORMAT, INDEX, Meta
from pairvpr.runtime.map.reader import Map
from pairvpr.runtime.map.record_list import RecordList
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import FOLDER, SegmentEntry, segment_name
from pairvpr.runtime.map.thumbnails import thumbnails_name
from pairvpr.runtime.map.verify import check_segment

Progress = Callable[[int, int], None]


class NameClashError(MapError):
    """Two different pictures have one name, which is `name`."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class AdoptReport:
    """The outcome of a publication.

    version: number of the current version.
    tiles: the tiles added.
    added: number of pictures in them.
    already: number of pictures that the fleet held already.
    replaced: number of damaged or missing tiles whose pictures were published again, and count as added.
    """

    version: int
    tiles: tuple[Tile, ...]
    added: int
    already: int
    replaced: int = 0


def adopt(maps: Sequence[str | Path], fleet: str | Path, progress: Progress | None = None) -> AdoptReport:
    """Publish the pictures of maps that a fleet lacks, as tiles. The first maps make the fleet.

    Each segment of a map becomes part of the tile of its place, as a hard link if the file system has them. The maps
    stay as they are. Every picture is checked as `verify_map` does. A damaged or missing tile of the fleet is replaced
    if the maps have its segments.

    progress: called with the number of pictures checked and the number of all.
    Raises MapError if a map cannot be read or is damaged, is of another model or stores tokens in another format than
    the fleet, two different pictures share a name, the fleet has a damaged tile that the maps cannot replace, another
    publisher is at work, or the fleet cannot be written.
    Raises BundleError for a model that cannot be used. Nothing is published then.
    """
    path = FolderStorage(Path(fleet)).path
    sources = [(Path(each), catalog.load(Path(each), thorough=True)) for each in maps]
    with publishing_to(path) as current:
        base = _begin(path, *sources[0]) if current is None else current
        for map_path, state in sources:
            check_fits(map_path, state.meta, path, base.meta)
        base, held = set_aside_damaged(path, base, sources)
        replaced = 0 if current is None else len(current.tiles) - len(base.tiles)
        known = _KnownPictures(path, held)
        parts = [part for source in sources for part in _find_new(*source, known)]
        if not parts and current is None:
            raise MapError(f"{', '.join(map(str, maps))}: no pictures to publish; add some with `pairvpr map add`")
        if not parts and not replaced:
            return AdoptReport(base.number, (), 0, known.already)
        _check(parts, progress)
        staged = _stage(path, base, parts)
        tiles = [_finish(path, place, folder, found) for place, (folder, found) in staged.items()]
        _commit(path, current, _extend(base, parts, tiles))
    added = sum(tile.pictures for tile in tiles)
    return AdoptReport(base.number + 1, tuple(tiles), added, known.already, replaced)


def _begin(path: Path, source: Path, state: Catalog) -> Version:
    """Return the empty version of a new fleet for the model of a map, and install the model."""
    with Map.open(source, descriptors=False) as map_:
        bundle = Bundle.open(map_.model_path)
        misfit = map_.find_misfit(bundle.info.dims)
        settings = {**map_.settings, INDEX: map_.index_precision}
    if bundle.identity != state.meta.identity or misfit:
        raise MapError(f"{source / MODEL} is not the model that {source} was made with: copy the right bundle there")
    meta = dataclasses.replace(
        state.meta, settings=settings, created_by=__version__, segments=0, records=0, format=FORMAT
    )
    return Version(0, meta, _install_model(path, bundle), 1, 1, ())


def _install_model(path: Path, bundle: Bundle) -> dict[str, FileInfo]:
    folder = path / MODELS / bundle.identity
    with writing(folder):
        folder.parent.mkdir(exist_ok=True)
        remove(folder)  # left by an interrupted publication
        with write_atomically(folder) as partial:
            bundle.install(partial)
        return {file.name: describe_file(file) for file in sorted(folder.iterdir())}


class _KnownPictures:
    """The pictures of a fleet, and those that a publication adds.

    already: number of pictures that were looked up and known.
    """

    def __init__(self, path: Path, states: Sequence[Catalog]) -> None:
        self._lists = [state.records.live() for state in states]
        self._rows = {name: (i, row) for i, held in enumerate(self._lists) for row, name in enumerate(held.names())}
        self._added: dict[str, tuple[Path, Record]] = {}
        self._path = path
        self.already = 0

    def add(self, source: Path, record: Record) -> bool:
        """Return whether a picture is new. Raises MapError if a different picture has its name."""
        found = self._find(record.name)
        if found is None:
            self._added[record.name] = (source, record)
            return True
        path, same = found
        if not is_same_picture(same, record):
            raise NameClashError(
                f"{source} and {path} each hold a picture {record.name!r}, and they differ: give each drive a "
                "subfolder of its own, see docs/maps.md; nothing was published",
                record.name,
            )
        self.already += 1
        return False

    def _find(self, name: str) -> tuple[Path, Record] | None:
        if name in self._added:
            return self._added[name]
        if name not in self._rows:
            return None
        number, row = self._rows[name]
        return self._path, self._lists[number][row]


@dataclass(frozen=True)
class _Part:
    """A segment of a map with pictures that the fleet lacks.

    records: all its records, in the order of their ids.
    new: ids of the new pictures.
    """

    map: Path
    meta: Meta
    entry: SegmentEntry
    records: Sequence[Record]
    new: frozenset[int]

    def new_records(self) -> list[Record]:
        return [record for record in self.records if record.id in self.new]


def _find_new(path: Path, state: Catalog, known: _KnownPictures) -> list[_Part]:
    """Return the segments with new pictures, in the order of the map."""
    records: dict[int, list[Record]] = defaultdict(list)
    for record in state.records:
        records[record.segment].append(record)
    parts = []
    for entry in sorted(state.segments, key=lambda entry: records[entry.number][0].id):
        held = records[entry.number]
        new = frozenset(record.id for record in held if not record.deleted and known.add(path, record))
        if new:
            parts.append(_Part(path, state.meta, entry, held, new))
    return parts


def _check(parts: Sequence[_Part], progress: Progress | None) -> None:
    total, done = sum(len(part.records) for part in parts), 0
    for part in parts:
        damages = check_segment(part.map, part.meta, part.entry, part.records)
        if damages:
            raise MapError(f"{damages[0]} ({len(damages)} damages in the segment; nothing was published)")
        done += len(part.records)
        if progress is not None:
            progress(done, total)


def _stage(path: Path, base: Version, parts: Sequence[_Part]) -> dict[str, tuple[Path, list[Record]]]:
    """Make a tile of each place in the staging folder. Return the folder and the new records by place."""
    staged: dict[str, tuple[Path, list[Record]]] = {}
    content: dict[str, list[tuple[SegmentEntry, RecordList]]] = defaultdict(list)
    number, first = base.next_segment, base.next_id
    with writing(path / STAGING):
        (path / STAGING).mkdir()
        sync(path)
        for part in parts:
            new = part.new_records()
            place = place_of(new)
            folder, found = staged.setdefault(place, (path / STAGING / place, []))
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            _link(part, folder / FOLDER, number)
            renumbered = [
                dataclasses.replace(record, id=first + i, segment=number, deleted=record.id not in part.new)
                for i, record in enumerate(part.records)
            ]
            entry = dataclasses.replace(part.entry, number=number, file=segment_name(number))
            # Blocks of one segment each, so that tiles can be put together and dealt out without decoding them.
            content[place].append((entry, RecordList(blocks.pack(renumbered))))
            found += new
            number, first = number + 1, first + len(renumbered)
        for place, (folder, _) in staged.items():
            entries = [entry for entry, _ in content[place]]
            records = RecordList(block for _, held in content[place] for block in held.blocks)
            meta = dataclasses.replace(base.meta, segments=len(entries), records=len(records))
            catalog.create(folder, meta, entries, records)
    return staged


def _link(part: _Part, folder: Path, number: int) -> None:
    source = part.map / FOLDER
    try:
        link_or_copy(source / part.entry.file, folder / segment_name(number))
    except FileNotFoundError as error:
        raise MapError(f"{part.map} was changed by another program meanwhile: run the command again") from error
    thumbnails = source / thumbnails_name(part.entry.number)
    if thumbnails.is_file():
        link_or_copy(thumbnails, folder / thumbnails_name(number))


def _finish(path: Path, place: str, folder: Path, records: Sequence[Record]) -> Tile:
    """Move a staged tile to its place in the fleet."""
    with writing(folder):
        names = [catalog.FILE, *(f"{FOLDER}/{file.name}" for file in (folder / FOLDER).iterdir())]
        files = {name: describe_file(folder / name) for name in sorted(names)}
        times = [record.timestamp for record in records if record.timestamp is not None]
        tile = Tile(
            place,
            Tile.digest_of(files),
            len(records),
            gps_box(records),
            frame_boxes(records),
            (min(times), max(times)) if times else None,
            files,
        )
        target = path / tile.folder
        target.parent.mkdir(parents=True, exist_ok=True)
        sync_tree(folder)
        remove(target)  # left by an interrupted publication
        folder.rename(target)
        sync(target.parent)
    return tile


def _extend(base: Version, parts: Sequence[_Part], tiles: Sequence[Tile]) -> Version:
    records = sum(len(part.records) for part in parts)
    segments = base.meta.segments + len(parts)
    return dataclasses.replace(
        base,
        number=base.number + 1,
        meta=dataclasses.replace(base.meta, segments=segments, records=base.meta.records + records),
        next_id=base.next_id + records,
        next_segment=base.next_segment + len(parts),
        tiles=(*base.tiles, *tiles),
    )


def _commit(path: Path, current: Version | None, version: Version) -> None:
    """Write the version, and make it the current one if `current` still is. Raises MapError."""
    content, file = version.encode(), path / version.file
    with writing(path):
        file.parent.mkdir(exist_ok=True)
        sync(path)
        sync(path / TILES)
        with write_atomically(file) as partial:
            partial.write_bytes(content)
    # Some network shares do not lock.
    if read_start(FolderStorage(path))[0] != (0 if current is None else current.number):
        raise MapError(f"{path} was published to by another program meanwhile: run the command again")
    with writing(path), write_atomically(path / FILE) as partial:
        partial.write_bytes(encode_start(version.number, hashlib.sha256(content).hexdigest()))
