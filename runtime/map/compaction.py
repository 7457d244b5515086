"""Rewrite pictures of a map in new, large segments, without removed ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path

import numpy as np

from pairvpr.runtime.map.errors import writing
from pairvpr.runtime.map.meta import Meta
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import DESCRIPTOR_TYPE, FOLDER, Segment, SegmentEntry, write_segment
from pairvpr.runtime.map.thumbnails import read_thumbnail, write_thumbnails
from pairvpr.runtime.map.tokens import StoredTokens

SEGMENT_BYTES = 256 * 2**20
"""Size of a compacted segment, which is made in memory."""


def plan_batches(meta: Meta, segments: Sequence[SegmentEntry], live: Sequence[Record]) -> list[Sequence[Record]]:
    """Group the records into future segments, in their order."""
    per_picture = sum(entry.bytes for entry in segments) / max(1, meta.records)
    step = max(1, int(SEGMENT_BYTES / max(1.0, per_picture)))
    return [live[start : start + step] for start in range(0, len(live), step)]


def rewrite(
    path: Path, meta: Meta, segments: Sequence[SegmentEntry], batches: Sequence[Sequence[Record]], first: int
) -> tuple[list[SegmentEntry], list[Record]]:
    """Write a segment for each batch, numbered from `first`. Return the new segments and records.

    Nothing is committed. Raises MapError if a picture is damaged or a file cannot be written.
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
    """Write a new segment of pictures from other segments. Each picture is checked when it is read."""
    descriptors = np.empty((len(wanted), meta.descriptor_dim), DESCRIPTOR_TYPE)
    tokens: dict[int, StoredTokens] = {}
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i].segment, wanted[i].row))
    for source, some in groupby(order, key=lambda i: wanted[i].segment):
        entry = next(entry for entry in segments if entry.number == source)
        with closing(Segment(folder, entry, meta)) as segment:
            for i in some:
                descriptors[i], tokens[i] = segment.read_picture(wanted[i])
    with writing(folder):
        entry = write_segment(folder, number, descriptors, [tokens[i] for i in range(len(wanted))])
        write_thumbnails(folder, number, [(record, read_thumbnail(folder, record)) for record in wanted])
    return entry
