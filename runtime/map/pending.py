"""Check a picture for a map and copy it in its stored form, to wait for the next commit."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError
from pairvpr.runtime.features import Features
from pairvpr.runtime.map import records
from pairvpr.runtime.map.errors import writing
from pairvpr.runtime.map.meta import Meta
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import DESCRIPTOR_TYPE, SegmentEntry, is_unit, write_segment
from pairvpr.runtime.map.thumbnails import LARGEST, write_thumbnails
from pairvpr.runtime.map.tokens import StoredTokens


@dataclass(frozen=True)
class Pending:
    """A picture that waits for the next commit, which sets its record's id, segment and row."""

    record: Record
    descriptor: npt.NDArray[np.float32]
    tokens: StoredTokens
    thumbnail: bytes | None = None

    @staticmethod
    def from_features(
        record: Record,
        features: Features,
        thumbnail: bytes | None,
        meta: Meta,
        token_shape: tuple[int, int],
        path: Path,
    ) -> Pending:
        """Copy a picture in its stored form.

        record: its name and place.
        meta, token_shape: properties of the map `path`, and (T, D) of its model.
        Raises MapError if the picture cannot be stored.
        """
        if thumbnail is not None and len(thumbnail) > LARGEST:
            raise ValueError(f"a thumbnail of {len(thumbnail)} bytes")
        name, expected = record.name, ((1, meta.descriptor_dim), (1, *token_shape))
        if (features.descriptors.shape, features.tokens.shape) != expected:
            raise MapError(
                f"the features of {name!r} have shapes {features.descriptors.shape} and "
                f"{features.tokens.shape}, {path} takes {expected[0]} and {expected[1]}: "
                "use the map's own model"
            )
        descriptor = features.descriptors[0].astype(DESCRIPTOR_TYPE)
        tokens = meta.token_format.store(features.tokens[0])
        if not (np.isfinite(descriptor).all() and tokens.is_finite()):
            raise MapError(f"the features of {name!r} are not finite: check the picture, and the model's precision")
        if not is_unit(descriptor):
            raise MapError(f"the descriptor of {name!r} does not have length 1: check the model and its precision")
        record = dataclasses.replace(record, descriptor_crc=zlib.crc32(descriptor), tokens_crc=tokens.crc())
        try:
            records.encode(record)
        except ValueError as error:
            raise MapError(f"{name!r} cannot be added to {path}: {error}, correct it") from error
        return Pending(record, descriptor, tokens, thumbnail)


def write_pending(folder: Path, number: int, pictures: Sequence[Pending], added: Sequence[Record]) -> SegmentEntry:
    """Write pictures, whose final records are `added`, to the new segment `number`. Return its entry.

    Raises MapError if the segment cannot be written.
    """
    with writing(folder):
        descriptors = np.stack([picture.descriptor for picture in pictures])
        segment = write_segment(folder, number, descriptors, [picture.tokens for picture in pictures])
        thumbnails = [picture.thumbnail for picture in pictures]
        write_thumbnails(folder, number, list(zip(added, thumbnails, strict=True)))
    return segment
