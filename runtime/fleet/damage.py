"""Find damaged and missing tiles of a fleet, and set those aside that maps can replace."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

from pairvpr.errors import MapError
from pairvpr.files import stat_member
from pairvpr.runtime.bundle_info import FileInfo
from pairvpr.runtime.fleet.storage import describe_file
from pairvpr.runtime.fleet.tiles import read_tile
from pairvpr.runtime.fleet.version import Tile, Version
from pairvpr.runtime.map.catalog import Catalog
from pairvpr.runtime.map.errors import reading
from pairvpr.runtime.map.segments import FOLDER

_SEGMENT = ".safetensors"


def set_aside_damaged(
    path: Path, version: Version, sources: Sequence[tuple[Path, Catalog]]
) -> tuple[Version, list[Catalog]]:
    """Return the version without its damaged tiles, and the catalogs of the others.

    Tiles with pictures of the maps are read whole. Of the others the catalog is read, and the sizes of the files.

    sources: path and catalog of the maps. They replace a damaged tile if they have all its segments.
    Raises MapError if a damaged tile cannot be replaced.
    """
    names = {name for _, state in sources for name in state.records.live().names()}
    kept: list[tuple[Tile, Catalog]] = []
    damaged: list[tuple[Tile, MapError]] = []
    for tile in version.tiles:
        try:
            kept.append((tile, _read_intact(path / tile.folder, tile, version, names)))
        except MapError as error:
            damaged.append((tile, error))
    states = [state for _, state in kept]
    if not damaged:
        return version, states
    _check_replaced(damaged, sources)
    meta = dataclasses.replace(
        version.meta,
        segments=sum(len(state.segments) for state in states),
        records=sum(len(state.records) for state in states),
    )
    return dataclasses.replace(version, meta=meta, tiles=tuple(tile for tile, _ in kept)), states


def _read_intact(folder: Path, tile: Tile, version: Version, names: Collection[str]) -> Catalog:
    """Return the catalog of a tile. Raises MapError if the tile is damaged or missing."""
    state = read_tile(folder, tile, version.meta)
    whole = any(name in names for name in state.records.live().names())
    for name, info in tile.files.items():
        file = folder / name
        with reading(file):
            size = stat_member(file.parent, file.name).st_size
            if size != info.bytes:
                raise ValueError(f"it has {size} bytes in place of {info.bytes}")
            if whole and describe_file(file) != info:
                raise ValueError("its sha256 is not the one that the fleet lists")
    return state


def _check_replaced(damaged: Sequence[tuple[Tile, MapError]], sources: Sequence[tuple[Path, Catalog]]) -> None:
    """Raise MapError unless the maps have every segment of the damaged tiles."""
    wanted = [(_segments_of(tile), error) for tile, error in damaged]
    sizes = {info.bytes for infos, _ in wanted for info in infos}
    held: set[FileInfo] = set()
    for path, state in sources:
        for file in [path / FOLDER / entry.file for entry in state.segments if entry.bytes in sizes]:
            with reading(file):
                held.add(describe_file(file))
    for infos, error in wanted:
        if not infos <= held:
            raise MapError(f"{error}; the given maps do not have its pictures, and nothing was published") from error


def _segments_of(tile: Tile) -> set[FileInfo]:
    return {info for name, info in tile.files.items() if name.endswith(_SEGMENT)}
