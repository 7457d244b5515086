"""Publish maps in a fleet. Killed at any moment, a publisher leaves the version before it or after it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pairvpr import __version__
from pairvpr.errors import MapError
from pairvpr.files import remove, write_atomically
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import FileInfo
from pairvpr.runtime.fleet.damage import set_aside_damaged
from pairvpr.runtime.fleet.publication import publishing_to
from pairvpr.runtime.fleet.staging import Part, Progress, check_parts, commit, stage_tiles
from pairvpr.runtime.fleet.storage import FolderStorage, describe_file
from pairvpr.runtime.fleet.version import MODELS, Tile, Version
from pairvpr.runtime.map import catalog
from pairvpr.runtime.map.catalog import Catalog
from pairvpr.runtime.map.creation import MODEL
from pairvpr.runtime.map.errors import writing
from pairvpr.runtime.map.merging import check_fits, is_same_picture
from pairvpr.runtime.map.meta import FORMAT, INDEX
from pairvpr.runtime.map.reader import Map
from pairvpr.runtime.map.records import Record


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
        check_parts(parts, progress)
        version, tiles = stage_tiles(path, base, parts)
        commit(path, current, version)
    added = sum(tile.pictures for tile in tiles)
    return AdoptReport(version.number, tuple(tiles), added, known.already, replaced)


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


def _find_new(path: Path, state: Catalog, known: _KnownPictures) -> list[Part]:
    """Return the segments with new pictures, in the order of the map."""
    records: dict[int, list[Record]] = defaultdict(list)
    for record in state.records:
        records[record.segment].append(record)
    parts = []
    for entry in sorted(state.segments, key=lambda entry: records[entry.number][0].id):
        held = records[entry.number]
        new = frozenset(record.id for record in held if not record.deleted and known.add(path, record))
        if new:
            parts.append(Part(path, state.meta, entry, held, new))
    return parts
