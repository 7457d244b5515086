"""Pictures of a map rewritten in new, large segments, without those that were removed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path

import numpy as np

from pairvpr.runtime.map.catalog import Meta
from pairvpr.runtime.map.errors import writing
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import DESCRIPTOR_TYPE, FOLDER, Segment, SegmentEntry, write_segment
from pairvpr.runtime.map.tokens import StoredTokens

SEGMENT_BYTES = 256 * 2**20
"""Of a compacted segment: it is made in memory."""


def batches(meta: Meta, segments: Sequence[SegmentEntry], live: Sequence[Record]) -> list[Sequence[Record]]:
    """The records as they will share segments, in their order."""
    per_picture = sum(entry.bytes for entry in segments) / max(1, meta.records)
    step = max(1, int(SEGMENT_BYTES / max(1.0, per_picture)))
    return [live[start : start + step] for start in range(0, len(live), step)]


def rewrite(
    path: Path, meta: Meta, segments: Sequence[SegmentEntry], batches: Sequence[Sequence[Record]], first: int
) -> tuple[list[SegmentEntry], list[Record]]:
    """Write a segment of each batch, numbered from `first`: the new segments, and the records as they lie there.

    Nothing is committed. Raises MapError where a picture is damaged or a file cannot be written.
    """
    written: list[SegmentEntry] = []
    moved: list[Record] = []
    for number, batch in enumerate(batches, first):
        written.append(_rewrite(path / FOLDER, meta, segments, batch, number))
        moved += [dataclasses.replace(record, segment=number, row=row) for row, record in enumerate(batch)]
    return written, moved


def _rewrite(
    folder: Path, meta: Meta, segments: Sequence[SegmentEntry], wanted: Sequence[Record], number: int
) -> SegmentEntry:
    """A new segment of pictures that lie in others, each checked as it is read."""
    descriptors = np.empty((len(wanted), meta.descriptor_dim), DESCRIPTOR_TYPE)
    tokens: dict[int, StoredTokens] = {}
    places = sorted(range(len(wanted)), key=lambda place: (wanted[place].segment, wanted[place].row))
    for source, some in groupby(places, key=lambda place: wanted[place].segment):
        entry = next(entry for entry in segments if entry.number == source)
        segment = Segment(folder, entry, meta.descriptor_dim, meta.token_shape, meta.token_format.type)
        with closing(segment):
            for place in some:
                descriptors[place], tokens[place] = segment.read_picture(wanted[place])
    with writing(folder):
        return write_segment(folder, number, descriptors, [tokens[i] for i in range(len(wanted))])
