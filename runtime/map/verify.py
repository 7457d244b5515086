"""Check a map in full: every byte that matters. All damages are found, not only the first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from pairvpr.errors import MapError
from pairvpr.runtime.map import catalog
from pairvpr.runtime.map.creation import MODEL
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import FOLDER, Segment


def verify_map(path: str | Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Check the catalog and every picture's descriptor and tokens, including deleted ones. Return a line per damage.

    The bundle in `model/` must exist. It is not checked, because opening it checks its own checksums.

    progress: called after every segment with the number of pictures done and the number of all.
    Raises MapError if there is no map, it is of a newer format, or its catalog is damaged.
    """
    path = Path(path)
    state = catalog.load(path, thorough=True)
    meta = state.meta
    records: dict[int, list[Record]] = defaultdict(list)
    for record in state.records:
        records[record.segment].append(record)

    damages: list[str] = []
    if not (path / MODEL).is_dir():
        damages.append(f"{path / MODEL} is missing: copy the model's bundle there, or restore the map from a copy")
    done = 0
    for entry in state.segments:
        try:
            segment = Segment(path / FOLDER, entry, meta.descriptor_dim, meta.token_shape, meta.token_format.type)
            with closing(segment):
                damages += _damages(segment, records[entry.number])
        except MapError as error:
            damages.append(str(error))
        done += entry.count
        if progress is not None:
            progress(done, len(state.records))
    return damages


def _damages(segment: Segment, records: list[Record]) -> Iterator[str]:
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
