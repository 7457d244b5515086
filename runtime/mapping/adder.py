"""Add pictures to a map batch by batch: read, choose, encode and write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pairvpr.errors import SourceError
from pairvpr.runtime.features import Features
from pairvpr.runtime.geometry.pose_files import PlaceFinder
from pairvpr.runtime.geometry.poses import Place
from pairvpr.runtime.image import make_thumbnail
from pairvpr.runtime.map import MapWriter
from pairvpr.runtime.mapping.keyframes import Keyframe, KeyframeSelector
from pairvpr.runtime.model import Fitted, Model
from pairvpr.runtime.sources import Frame, Source

if TYPE_CHECKING:
    from pairvpr.runtime.mapping.builder import BuildOptions
    from pairvpr.runtime.mapping.loop_closing import LoopCloser


@dataclass(frozen=True)
class Prepared:
    """A frame without its picture, which is in the model's sizes instead, or None if it could not be read.

    before: see `KnownPictures.missing_frames`.
    """

    frame: Frame
    before: Keyframe | None
    fitted: Fitted | None
    thumbnail: bytes | None


def prepare(frame: Frame, before: Keyframe | None, model: Model, side: int) -> Prepared:
    """Resize the picture of a frame for a model and for a thumbnail, whose longest side is `side`, 0 for none."""
    if frame.picture is None:
        return Prepared(frame, before, None, None)
    thumbnail = make_thumbnail(frame.picture, (side, side)) if side else None
    return Prepared(replace(frame, picture=None), before, model.fit(frame.picture), thumbnail)


@dataclass(frozen=True)
class _Candidate:
    """A readable picture in the model's sizes, and the last map picture since the previous candidate."""

    name: str
    fitted: Fitted
    place: Place
    before: Keyframe | None
    thumbnail: bytes | None


class Adder:
    """Read, select, encode and write frames. The first selected picture opens the map.

    added: pictures written so far.
    with_place: written pictures with a pose or a GPS position.
    skipped: an error line for each picture that could not be read.
    """

    def __init__(
        self,
        source: Source,
        model: Model,
        options: BuildOptions,
        finder: PlaceFinder,
        loop_closer: LoopCloser | None,
        open_map: Callable[[], MapWriter],
    ) -> None:
        self.added = self.with_place = 0
        self.skipped: list[str] = []
        self.selector = KeyframeSelector(options.min_distance, options.min_change)
        self._source, self._model, self._options = source, model, options
        self._finder, self._loop_closer = finder, loop_closer
        self._open_map = open_map
        self._writer: MapWriter | None = None
        self._before: Keyframe | None = None

    def add(self, batch: Sequence[Prepared]) -> None:
        """Add the selected pictures of a batch, in order."""
        candidates = list(self._read(batch))
        if self._loop_closer is not None:
            for candidate in candidates:
                self._loop_closer.require_timestamp(candidate.name, candidate.place.timestamp)
        by_change = self.selector.min_change is not None
        if not by_change:  # a rejected picture need not be encoded
            candidates = [each for each in candidates if self._select(each, None)]
        if not candidates:
            return
        features = self._model.encode_fitted([each.fitted for each in candidates])
        for i, candidate in enumerate(candidates):
            if not by_change or self._select(candidate, features.descriptors[i]):
                self._write(candidate, features[i])

    def _read(self, batch: Sequence[Prepared]) -> Iterator[_Candidate]:
        """Yield the readable pictures of a batch. Record the errors of the others, or raise them with `strict`."""
        for each in batch:
            frame = each.frame
            if each.before is not None:
                self._before = each.before
            try:
                if each.fitted is None:
                    raise SourceError(str(frame.error))
                place = self._finder.find_place(frame.name, frame.path, Place(frame.pose, frame.gps, frame.timestamp))
            except SourceError as error:
                if self._options.strict:
                    raise
                self.skipped.append(str(error))
            else:
                # A camera counts from 0 each time it is opened.
                name = f"{frame.name}@{frame.timestamp:.3f}" if self._source.live else frame.name
                yield _Candidate(name, each.fitted, place, self._before, each.thumbnail)
                self._before = None

    def _select(self, candidate: _Candidate, descriptor: npt.NDArray[np.float32] | None) -> bool:
        if candidate.before is not None:  # an interrupted run continues from its last keyframe
            self.selector.last = candidate.before
        return self.selector.select(candidate.place, descriptor)

    def _write(self, picture: _Candidate, features: Features) -> None:
        if self._writer is None:
            self._writer = self._open_map()
        place, origin = picture.place, self._source.origin
        if self._loop_closer is not None:
            self._loop_closer.find_loop(self._writer, picture.name, origin, place.timestamp, features, place.pose)
        self._writer.add(
            name=picture.name,
            source=origin,
            features=features,
            timestamp=place.timestamp,
            pose=place.pose,
            gps=place.gps,
            thumbnail=picture.thumbnail,
        )
        self.added += 1
        self.with_place += place.pose is not None or place.gps is not None
