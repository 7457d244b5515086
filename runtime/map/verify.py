"""Check a map in full: every byte that matters. All damages are found, not only the first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from pairvpr.errors import MapError
from pairvpr.runtime.map import catalog
from pairvpr.runtime.map.creation import MODEL
from pairvpr.runtime.map.errors import find_tile
from pairvpr.runtime.map.list_file import read_lists
from pairvpr.runtime.map.meta import Meta
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import FOLDER, Segment, SegmentEntry


def verify_map(path: str | Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Check the catalog and every picture's descriptor and tokens, including deleted ones. Return a line per damage.

    The bundle in `model/` must exist, except for a tile of a fleet. It is not checked, because opening it checks its
    own checksums.

    progress: called after every segment with the number of pictures done and the number of all.
    Raises MapError if there is no map, it is of a newer format, or its catalog is damaged.
    """
    path = Path(path)
    state = catalog.load(path, thorough=True)
    records: dict[int, list[Record]] = defaultdict(list)
    for record in state.records:
        records[record.segment].append(record)

    damages: list[str] = []
    if not (path / MODEL).is_dir() and find_tile(path) is None:
        damages.append(f"{path / MODEL} is missing: copy the model's bundle there, or restore the map from a copy")
    if state.meta.lists is not None:
        try:
            stored = read_lists(path, state.meta.lists, state.meta.descriptor_dim)
            stored.of_rows(state.records.live().column("id").astype(np.int64), path)
        except MapError as error:
            damages.append(str(error))
    done = 0
    for entry in state.segments:
        damages += check_segment(path, state.meta, entry, records[entry.number])
        done += entry.count
        if progress is not None:
            progress(done, len(state.records))
    return damages


def check_segment(path: Path, meta: Meta, entry: SegmentEntry, records: Sequence[Record]) -> list[str]:
    """Check every picture of a segment of the map `path`. Return a line per damage."""
    try:
        with closing(Segment(path / FOLDER, entry, meta)) as segment:
            return list(_damages(segment, records))
    except MapError as error:
        return [str(error)]


def _damages(segment: Segment, records: Sequence[Record]) -> Iterator[str]:
    """Yield the damages of a segment's records. Raises MapError if the descriptors cannot be read at all."""
    descriptors = segment.read_descriptors()
    for record in records:
        try:
            segment.check_descriptor(descriptors, record)
        except MapError as error:
            yield str(error)
        try:
            segment.read_tokens(record)
        except MapError as error:
            yield str(error)
