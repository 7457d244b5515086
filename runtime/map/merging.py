"""Merging maps: the pictures of others, as they are stored there, become pictures of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pairvpr.errors import MapError
from pairvpr.runtime.map import catalog
from pairvpr.runtime.map.catalog import Catalog, Meta
from pairvpr.runtime.map.reader import allow_open_files
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.salvage import Salvage
from pairvpr.runtime.map.writer import MapWriter


@dataclass(frozen=True)
class MergeReport:
    """What became of the others' pictures.

    already: those that the map held as they are, such as from a merge that was interrupted. damaged: a line for each
    that is damaged where it lies, and was left out.
    """

    merged: int
    already: int
    damaged: tuple[str, ...]


def merge_maps(
    others: Sequence[str | Path], db: str | Path, progress: Callable[[int, int], None] | None = None
) -> MergeReport:
    """Add the pictures of the maps `others`, all that are intact, to the map `db`: copied, with their places.

    Commits as adding does, so that a merge that was interrupted goes on when it is repeated. progress: told pictures
    done and their number in all. Raises MapError before anything is written where a map is none, has a damaged catalog,
    is of another model or stores tokens otherwise, and where two pictures share a name and are not the same; later
    where the map cannot be written.
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
            _check_fits(other, state.meta, writer.path, writer.meta)
            records = [record for record in state.records if not record.deleted]
            wanted.append([record for record in records if not _holds(held, other, record)])
            already += len(records) - len(wanted[-1])
        total = sum(map(len, wanted))
        merged, damages = 0, []
        for (_, salvage), records in zip(sources, wanted, strict=True):
            for record in records:
                try:
                    descriptor, tokens = salvage.read(record)
                except MapError as error:
                    damages.append(f"{record.name}: {error}")
                else:
                    writer.adopt(record, descriptor, tokens)
                    merged += 1
                if progress is not None:
                    progress(merged + len(damages), total)
    return MergeReport(merged, already, tuple(damages))


def _open(path: Path, open_files: int) -> tuple[Catalog, Salvage]:
    """The map's catalog and its segment files as they were at one moment, though a writer may be at work."""
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
        salvage.close()  # it has been compacted meanwhile
        state = now


def _check_fits(other: Path, theirs: Meta, path: Path, ours: Meta) -> None:
    """Raise MapError unless the features of one map mean the same in the other."""
    if theirs.identity != ours.identity:
        raise MapError(
            f"{other} was made with model {theirs.identity[:12]}, {path} with {ours.identity[:12]}: "
            "build one of them again with the other's model, for their features cannot be compared"
        )
    if theirs.token_format != ours.token_format:
        raise MapError(
            f"{other} stores {theirs.token_format}, {path} {ours.token_format}: "
            "build one of them again with the other's --tokens and --keep-tokens"
        )
    if (theirs.descriptor_dim, theirs.token_shape) != (ours.descriptor_dim, ours.token_shape):
        raise MapError(f"{other} holds features of other sizes than {path}: build one of them again")


def _holds(held: dict[str, tuple[Path, Record]], other: Path, record: Record) -> bool:
    """Whether the record is among `held`, else it is put there; raises MapError where a different one has its name."""
    path, same = held.setdefault(record.name, (other, record))
    if same is record:
        return False
    if _essence(same) != _essence(record):
        raise MapError(
            f"{other} and {path} each hold a picture {record.name!r}, and they differ: remove one of them with "
            "`pairvpr map remove`; nothing was merged"
        )
    return True


def _essence(record: Record) -> Record:
    """What makes two pictures of one name the same: their features and place, wherever they lie and came from."""
    return dataclasses.replace(record, id=0, segment=0, row=0, source="")
