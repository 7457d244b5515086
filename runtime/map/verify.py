"""The full check of a map: every byte that matters, and all damages, not the first alone."""

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
    """Check the catalog and every picture's descriptor and tokens, deleted ones too; a line per damage.

    progress: called after every segment with the pictures done and their number in all. The bundle in
    `model/` has checksums of its own, checked where it is opened; here it must only be there. Raises
    MapError where there is no map, it is of a newer format, or its catalog is damaged, without which
    nothing more can be checked.
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
    """The damages of a segment's records; raises MapError where the descriptors cannot be read at all."""
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
