"""Repair a map: keep every intact picture, report the others, and put damaged files aside."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pairvpr.errors import MapError
from pairvpr.files import check_folder, sync, write_atomically
from pairvpr.runtime.map import catalog
from pairvpr.runtime.map.catalog import Catalog
from pairvpr.runtime.map.errors import refuse_tile, writing
from pairvpr.runtime.map.list_file import read_lists
from pairvpr.runtime.map.lock import lock_map
from pairvpr.runtime.map.meta import PRECISIONS, Meta
from pairvpr.runtime.map.open_files import allow_open_files
from pairvpr.runtime.map.record_list import RecordList
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.salvage import Salvage, salvage_catalog
from pairvpr.runtime.map.segments import (
    FOLDER,
    SegmentEntry,
    list_segments,
    remove_leftovers,
    segment_name,
    write_segment,
)
from pairvpr.runtime.map.thumbnails import read_thumbnail, write_thumbnails

ASIDE = "damaged"
"""The folder in the map for damaged files."""


@dataclass(frozen=True)
class RepairReport:
    """The outcome of a repair.

    kept: number of pictures in the repaired map.
    dropped: a line for each damaged picture that was left out, beginning with its name.
    nameless: number of pictures whose names were lost too, including removed ones.
    aside: files put aside. Empty if nothing was damaged; the map is then unchanged.
    """

    kept: int
    dropped: tuple[str, ...]
    nameless: int
    aside: tuple[Path, ...]


def repair_map(path: str | Path, progress: Callable[[int, int], None] | None = None) -> RepairReport:
    """Reduce the map in the folder `path` to its intact pictures.

    Intact pictures of damaged segments are written to new segments. The catalog and the damaged files get a second name
    in `damaged/`. Then one rename of the catalog makes the repaired map. An interrupted repair therefore leaves the old
    map or the repaired one, and can be repeated. Readers that have the map open go on. The bundle in `model/` is not
    checked.

    progress: called with the number of pictures checked and the number of all.
    Raises MapError if there is no map, it is a tile of a fleet, another process writes to it, it is of a newer format,
    the map's settings are damaged, or the disk cannot be written.
    """
    path = Path(path)
    refuse_tile(path)
    catalog.check_is_map(path)
    with lock_map(path):
        state, whole = _load(path)
        if whole:
            remove_leftovers(path / FOLDER, {entry.file for entry in state.segments})
        allow_open_files(path, len(state.segments))
        with closing(Salvage(path, state.meta, state.segments)) as salvage:
            repaired, dropped = _rewrite(path, state, salvage, progress)
        kept = sum(not record.deleted for record in repaired.records)
        if whole and repaired == state:
            return RepairReport(kept, (), 0, ())
        committed = {entry.file for entry in repaired.segments}
        # If the catalog lost entries, files without an entry may be theirs.
        known = {entry.file for entry in state.segments} if whole else set(list_segments(path / FOLDER))
        damaged = [path / FOLDER / file for file in sorted(known - committed) if os.path.lexists(path / FOLDER / file)]
        with writing(path):
            aside = _set_aside(path / ASIDE, [path / catalog.FILE, *damaged])
            catalog.create(path, repaired.meta.upgraded(kept), repaired.segments, repaired.records)
        remove_leftovers(path / FOLDER, committed)
    return RepairReport(kept, tuple(dropped), max(0, state.meta.records - len(state.records)), aside)


def _load(path: Path) -> tuple[Catalog, bool]:
    """Load the catalog, or its intact part. Return it, and True if it is whole."""
    try:
        return catalog.load(path, thorough=True), True
    except MapError:
        return salvage_catalog(path), False


def _rewrite(
    path: Path, state: Catalog, salvage: Salvage, progress: Callable[[int, int], None] | None
) -> tuple[Catalog, list[str]]:
    """Write the new segments. Return the repaired catalog and a line for each picture left out."""
    records: dict[int, list[Record]] = defaultdict(list)
    for record in state.records:
        records[record.segment].append(record)
    numbers = [*(entry.number for entry in state.segments), *list_segments(path / FOLDER).values()]
    number = max(numbers, default=0) + 1
    segments: list[SegmentEntry] = []
    kept: list[Record] = []
    dropped: list[str] = []
    done = 0
    for entry in state.segments:
        intact, pictures = [], []
        for record in records[entry.number]:
            try:
                pictures.append(salvage.read(record))
            except MapError as error:
                dropped += [] if record.deleted else [f"{record.name}: {error}"]
            else:
                intact.append(record)
        if entry.number in salvage.sound and len(intact) == entry.count:
            segments.append(entry)
            kept += intact
        elif intact:
            with writing(path / FOLDER):
                descriptors, tokens = zip(*pictures, strict=True)
                segments.append(write_segment(path / FOLDER, number, np.stack(descriptors), tokens))
                thumbnails = [(record, read_thumbnail(path / FOLDER, record)) for record in intact]
                write_thumbnails(path / FOLDER, number, thumbnails)
            kept += [dataclasses.replace(record, segment=number, row=row) for row, record in enumerate(intact)]
            number += 1
        done += len(records[entry.number])
        if progress is not None:
            progress(done, len(state.records))
    for lost in set(records) - {entry.number for entry in state.segments}:
        file = path / FOLDER / segment_name(lost)
        dropped += [
            f"{record.name}: {file} is missing or not a segment" for record in records[lost] if not record.deleted
        ]
    segments.sort(key=lambda entry: entry.number)
    kept.sort(key=lambda record: record.id)
    meta = dataclasses.replace(_without_damaged_lists(path, state.meta), segments=len(segments), records=len(kept))
    return Catalog(meta, segments, RecordList.of(kept)), dropped


def _without_damaged_lists(path: Path, meta: Meta) -> Meta:
    """Return the properties of the map `path`, without its inverted lists if they cannot be read."""
    if meta.lists is not None:
        try:
            read_lists(path, meta.lists, meta.descriptor_dim)
        except MapError:
            return meta.searched(PRECISIONS[1])
    return meta


def _set_aside(folder: Path, files: Iterable[Path]) -> tuple[Path, ...]:
    """Give the files a second name in the folder, unless they have one there. Return the names. Raises OSError."""
    folder.mkdir(exist_ok=True)
    try:
        check_folder(folder)
    except ValueError as error:
        raise MapError(f"{folder} is not a folder: delete it and repair again") from error
    aside = []
    for file in files:
        target, count = folder / file.name, 1
        while os.path.lexists(target) and not os.path.samestat(target.lstat(), file.lstat()):
            count += 1
            target = folder / f"{file.name}.{count}"
        if not os.path.lexists(target):
            try:
                os.link(file, target, follow_symlinks=False)
            except OSError:  # a file system without links
                with write_atomically(target) as partial:
                    shutil.copyfile(file, partial, follow_symlinks=False)
        aside.append(target)
    sync(folder)
    sync(folder.parent)
    return tuple(aside)
