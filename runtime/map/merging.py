"""Merge maps: copy the pictures of other maps, as they are stored there, into one map."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pairvpr.errors import MapError
from pairvpr.runtime.map import catalog
from pairvpr.runtime.map.catalog import Catalog
from pairvpr.runtime.map.meta import Meta
from pairvpr.runtime.map.open_files import allow_open_files
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.salvage import Salvage
from pairvpr.runtime.map.segments import FOLDER
from pairvpr.runtime.map.thumbnails import read_thumbnail
from pairvpr.runtime.map.writer import MapWriter


@dataclass(frozen=True)
class MergeReport:
    """The outcome of a merge.

    merged: number of pictures copied.
    already: number of pictures that the map held already, for example from an interrupted merge.
    damaged: a line for each picture that is damaged in its map and was left out.
    """

    merged: int
    already: int
    damaged: tuple[str, ...]


def merge_maps(
    others: Sequence[str | Path], db: str | Path, progress: Callable[[int, int], None] | None = None
) -> MergeReport:
    """Copy all intact pictures of the maps `others`, with their places, into the map `db`.

    Commits at the same intervals as adding. An interrupted merge goes on when it is repeated.

    progress: called with the number of pictures done and the number of all.
    Raises MapError before anything is written if a folder holds no map, a catalog is damaged, a map is of another model
    or stores tokens in another format, or two different pictures share a name. Raises MapError later if the map cannot
    be written.
    """
    with ExitStack() as stack:
        sources: list[tuple[Catalog, Salvage]] = []
        for other in map(Path, others):
            sources.append(_open(other, sum(len(state.segments) for state, _ in sources)))
            stack.callback(sources[-1][1].close)
        writer = stack.enter_context(MapWriter.edit(db))
        held = {name: (writer.path, record) for name, record in writer.records().items()}
        wanted: list[list[Record]] = []
        already = 0
        for other, (state, _) in zip(map(Path, others), sources, strict=True):
            check_fits(other, state.meta, writer.path, writer.meta)
            records = [record for record in state.records if not record.deleted]
            wanted.append([record for record in records if not _holds(held, other, record)])
            already += len(records) - len(wanted[-1])
        total = sum(map(len, wanted))
        merged, damages = 0, []
        for other, (_, salvage), records in zip(map(Path, others), sources, wanted, strict=True):
            for record in records:
                try:
                    descriptor, tokens = salvage.read(record)
                except MapError as error:
                    damages.append(f"{record.name}: {error}")
                else:
                    writer.adopt(record, descriptor, tokens, read_thumbnail(other / FOLDER, record))
                    merged += 1
                if progress is not None:
                    progress(merged + len(damages), total)
    return MergeReport(merged, already, tuple(damages))


def _open(path: Path, open_files: int) -> tuple[Catalog, Salvage]:
    """Open a consistent state of the map's catalog and segment files, even if a writer is at work."""
    state = catalog.load(path)
    while True:
        allow_open_files(path, open_files + len(state.segments))
        salvage = Salvage(path, state.meta, state.segments)
        if len(salvage.sound) == len(state.segments):
            return state, salvage
        try:
            now = catalog.load(path)
        except BaseException:
            salvage.close()
            raise
        if now.segments == state.segments:
            return state, salvage
        salvage.close()  # a writer has compacted the map in the meantime
        state = now


def check_fits(other: Path, theirs: Meta, path: Path, ours: Meta) -> None:
    """Raise MapError unless the features of the two maps can be compared."""
    if theirs.identity != ours.identity:
        raise MapError(
            f"{other} was made with model {theirs.identity[:12]}, {path} with {ours.identity[:12]}: "
            "build one of them again with the other's model, because their features cannot be compared"
        )
    if theirs.token_format != ours.token_format:
        raise MapError(
            f"{other} stores {theirs.token_format}, {path} {ours.token_format}: "
            "build one of them again with the other's --tokens and --keep-tokens"
        )
    if (theirs.descriptor_dim, theirs.token_shape) != (ours.descriptor_dim, ours.token_shape):
        raise MapError(f"{other} holds features of other sizes than {path}: build one of them again")


def _holds(held: dict[str, tuple[Path, Record]], other: Path, record: Record) -> bool:
    """Return whether `held` has the record; add it if not. Raises MapError if a different record has its name."""
    path, same = held.setdefault(record.name, (other, record))
    if same is record:
        return False
    if not is_same_picture(same, record):
        raise MapError(
            f"{other} and {path} each hold a picture {record.name!r}, and they differ: remove one of them with "
            "`pairvpr map remove`; nothing was merged"
        )
    return True


def is_same_picture(one: Record, other: Record) -> bool:
    """Return whether the records of two maps are of the same picture: equal but for storage and source."""
    return one == dataclasses.replace(other, id=one.id, segment=one.segment, row=one.row, source=one.source)
