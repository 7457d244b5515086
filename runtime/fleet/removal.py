"""Take pictures out of a fleet. Tiles never change, so a tile that keeps some of its pictures is made anew."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pairvpr.errors import MapError
from pairvpr.runtime.fleet.publication import publishing_to
from pairvpr.runtime.fleet.staging import Part, Progress, check_parts, commit, stage_tiles
from pairvpr.runtime.fleet.storage import FolderStorage
from pairvpr.runtime.fleet.tiles import read_tile
from pairvpr.runtime.fleet.version import Tile, Version, read_current
from pairvpr.runtime.map.catalog import Catalog
from pairvpr.runtime.map.records import Record


@dataclass(frozen=True)
class RemovalReport:
    """The outcome of a removal.

    version: number of the current version.
    pictures: number of pictures taken out.
    dropped, replaced: number of tiles without a picture left, and of those made anew.
    """

    version: int
    pictures: int
    dropped: int
    replaced: int


def remove_pictures(fleet: str | Path, names: Sequence[str], progress: Progress | None = None) -> RemovalReport:
    """Publish a version of a fleet without some pictures.

    names: of pictures, or of their drives: the beginning of pictures' names before a / or #.
    progress: called with the number of pictures checked and the number of all, in tiles that keep some.
    Raises MapError if there is no fleet, a name is of no picture, a tile is damaged, another publisher is at work, or
    the fleet cannot be written. Nothing is removed then.
    """
    path = FolderStorage(Path(fleet)).path
    read_current(FolderStorage(path))
    with publishing_to(path) as current:
        if current is None:
            raise MapError(f"{path} holds no fleet any more")
        wanted = _Wanted(names)
        states = [(tile, read_tile(path / tile.folder, tile, current.meta)) for tile in current.tiles]
        gone = {tile.folder: {r.id for r in state.records.live() if wanted.match(r.name)} for tile, state in states}
        if (missing := wanted.missing()) is not None:
            raise MapError(
                f"{path}: no picture or drive is named {missing!r}: give names as in answers; nothing was removed"
            )
        kept = [(tile, state) for tile, state in states if not gone[tile.folder]]
        changed = [(tile, state) for tile, state in states if gone[tile.folder]]
        parts = [part for tile, state in changed for part in _find_kept(path, tile, state, gone[tile.folder])]
        check_parts(parts, progress)
        version, _ = stage_tiles(path, _version_of(current, kept), parts)
        commit(path, current, version)
    left = sum(len(gone[tile.folder]) < tile.pictures for tile, _ in changed)
    return RemovalReport(version.number, sum(map(len, gone.values())), len(changed) - left, left)


class _Wanted:
    """Names of pictures or drives to look for, and those that were found."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = {name.rstrip("/#"): name for name in names}
        self._found: set[str] = set()

    def match(self, picture: str) -> bool:
        """Return whether a picture's name or the beginning of it is looked for."""
        ends = [i for i, letter in enumerate(picture) if letter in "/#"]
        found = [start for start in (picture, *(picture[:end] for end in ends)) if start in self._names]
        self._found.update(found)
        return bool(found)

    def missing(self) -> str | None:
        """Return a name that no picture matched, or None."""
        return next((given for name, given in self._names.items() if name not in self._found), None)


def _find_kept(path: Path, tile: Tile, state: Catalog, gone: set[int]) -> list[Part]:
    """Return the segments of a tile that keep pictures."""
    records: dict[int, list[Record]] = defaultdict(list)
    for record in state.records:
        records[record.segment].append(record)
    parts = []
    for entry in state.segments:
        held = records[entry.number]
        kept = frozenset(record.id for record in held if not record.deleted and record.id not in gone)
        if kept:
            parts.append(Part(path / tile.folder, state.meta, entry, held, kept))
    return parts


def _version_of(current: Version, kept: Sequence[tuple[Tile, Catalog]]) -> Version:
    """Return the current version with these tiles alone."""
    meta = dataclasses.replace(
        current.meta,
        segments=sum(len(state.segments) for _, state in kept),
        records=sum(len(state.records) for _, state in kept),
    )
    return dataclasses.replace(current, meta=meta, tiles=tuple(tile for tile, _ in kept))
