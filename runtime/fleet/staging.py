"""Make tiles of the segments of maps, and make a version with them the current one of a fleet."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pairvpr.errors import MapError
from pairvpr.files import remove, sync, sync_tree, write_atomically
from pairvpr.runtime.bundle import link_or_copy
from pairvpr.runtime.fleet.place import frame_boxes, gps_box, place_of
from pairvpr.runtime.fleet.storage import FolderStorage, describe_file
from pairvpr.runtime.fleet.version import FILE, STAGING, TILES, Tile, Version, encode_start, read_start
from pairvpr.runtime.map import blocks, catalog
from pairvpr.runtime.map.errors import writing
from pairvpr.runtime.map.meta import Meta
from pairvpr.runtime.map.record_list import RecordList
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import FOLDER, SegmentEntry, segment_name
from pairvpr.runtime.map.thumbnails import thumbnails_name
from pairvpr.runtime.map.verify import check_segment

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Part:
    """A segment of a map with pictures to publish.

    records: all its records, in the order of their ids.
    new: ids of the pictures to publish. The others count as deleted.
    """

    map: Path
    meta: Meta
    entry: SegmentEntry
    records: Sequence[Record]
    new: frozenset[int]

    def new_records(self) -> list[Record]:
        """Return the records of the pictures to publish."""
        return [record for record in self.records if record.id in self.new]


def check_parts(parts: Sequence[Part], progress: Progress | None) -> None:
    """Check every picture of some segments. Raises MapError for the first damage."""
    total, done = sum(len(part.records) for part in parts), 0
    for part in parts:
        damages = check_segment(part.map, part.meta, part.entry, part.records)
        if damages:
            raise MapError(f"{damages[0]} ({len(damages)} damages in the segment; nothing was published)")
        done += len(part.records)
        if progress is not None:
            progress(done, total)


def stage_tiles(path: Path, base: Version, parts: Sequence[Part]) -> tuple[Version, list[Tile]]:
    """Put tiles of some segments in place. Return the next version after `base` with them, and the tiles.

    Nothing is committed. Raises MapError if the fleet cannot be written.
    """
    staged = _stage(path, base, parts) if parts else {}
    tiles = [_finish(path, place, folder, found) for place, (folder, found) in staged.items()]
    return _extend(base, parts, tiles), tiles


def _stage(path: Path, base: Version, parts: Sequence[Part]) -> dict[str, tuple[Path, list[Record]]]:
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


def _link(part: Part, folder: Path, number: int) -> None:
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


def _extend(base: Version, parts: Sequence[Part], tiles: Sequence[Tile]) -> Version:
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


def commit(path: Path, current: Version | None, version: Version) -> None:
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
