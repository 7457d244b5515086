"""Open tiles of a fleet as one map."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError
from pairvpr.runtime.fleet.storage import describe_file
from pairvpr.runtime.fleet.version import Tile, Version
from pairvpr.runtime.map import catalog
from pairvpr.runtime.map.catalog import Catalog
from pairvpr.runtime.map.errors import damage_error, reading
from pairvpr.runtime.map.merging import check_fits
from pairvpr.runtime.map.meta import Meta
from pairvpr.runtime.map.open_files import allow_open_files
from pairvpr.runtime.map.reader import Map
from pairvpr.runtime.map.record_list import RecordList
from pairvpr.runtime.map.segments import FOLDER, Segment


class TilesMap(Map):
    """The pictures of some tiles, in the order of their ids, as one map. It never changes."""

    def open_newer(self) -> None:
        """Return None: tiles do not change."""


def read_tile(folder: Path, tile: Tile, meta: Meta) -> Catalog:
    """Read the catalog of a tile in `folder`. Raises MapError unless it is as the fleet lists it and fits its map."""
    file = folder / catalog.FILE
    with reading(file):
        if describe_file(file) != tile.files[catalog.FILE]:
            raise ValueError("its sha256 is not the one that the fleet lists")
    state = catalog.load(folder)
    check_fits(folder, state.meta, folder.parent, meta)
    with reading(file):
        listed = {name: info.bytes for name, info in tile.files.items()}
        if any(listed.get(f"{FOLDER}/{entry.file}") != entry.bytes for entry in state.segments):
            raise ValueError("its segments are not those that the fleet lists")
        if len(state.records.live()) != tile.pictures:
            raise ValueError(f"it has {len(state.records.live())} pictures in place of {tile.pictures}")
        for block in state.records.blocks:
            segments = block.column("segment")
            if segments is None or (segments != segments[0]).any():
                raise ValueError("its records are not grouped by segment")
    return state


def join_catalogs(states: Sequence[Catalog], meta: Meta, where: Path) -> Catalog:
    """Return the catalog of tiles as one map.

    meta: properties of the map. Segments and records are counted anew.
    Raises MapError if two tiles share a segment, an id or a picture's name.
    """
    segments = sorted((entry for state in states for entry in state.segments), key=lambda entry: entry.number)
    blocks = sorted((block for state in states for block in state.records.blocks), key=lambda block: block.number)
    records = RecordList(blocks)
    with reading(where):
        if any(later.number <= earlier.last_id for earlier, later in pairwise(blocks)):
            raise ValueError("two of its tiles share records")
        meta = dataclasses.replace(meta, segments=len(segments), records=len(records))
        catalog.check_whole(meta, segments, records)
    return Catalog(meta, segments, records)


def open_tiles(path: Path, version: Version) -> TilesMap:
    """Open all tiles of a fleet in the folder `path` as one map. Descriptors are read when they are asked for.

    Raises MapError if a tile is missing or damaged, or does not fit.
    """
    if not version.tiles:
        raise MapError(f"{path}: the fleet holds no tiles; publish maps with `pairvpr fleet adopt`")
    meta = version.meta
    allow_open_files(path, meta.segments)
    with ExitStack() as stack:
        states, segments = [], {}
        for tile in version.tiles:
            folder = path / tile.folder
            states.append(read_tile(folder, tile, meta))
            for entry in states[-1].segments:
                segment = Segment(folder / FOLDER, entry, meta)
                stack.callback(segment.close)
                segments[entry.number] = segment
        joined = join_catalogs(states, meta, path)
        if len(segments) != len(joined.segments):
            raise damage_error(path, "two of its tiles share a segment")
        opened = TilesMap(path, joined, segments)
        opened.model_path = path / version.model_folder
        stack.pop_all()
    return opened


def deal(map_: Map, parts: int) -> list[tuple[Map, npt.NDArray[np.int64]]]:
    """Deal the segments of a map of tiles out to at most `parts` maps, one after the other.

    Return each map with the rows that its pictures have in the whole map, ascending. Close each map.
    """
    return [deal_one(map_, parts, part) for part in np.unique(find_owners(map_, parts)).tolist()]


def deal_one(map_: Map, parts: int, part: int) -> tuple[Map, npt.NDArray[np.int64]]:
    """Return one of the maps of `deal`, and its rows."""
    rows = np.flatnonzero(find_owners(map_, parts) == part)
    return map_.of_segments(set(map_.records.column("segment")[rows].tolist())), rows


def find_owners(map_: Map, parts: int) -> npt.NDArray[np.int64]:
    """Return the part (n,) to which `deal` gives each row."""
    _, places = np.unique(map_.records.column("segment"), return_inverse=True)
    return places.astype(np.int64) % parts
