"""Building a map: every picture of a source, encoded and stored with its place."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from pairvpr.errors import MapError, SourceError
from pairvpr.runtime.features import Features
from pairvpr.runtime.geometry.pose_files import PlaceFinder
from pairvpr.runtime.geometry.poses import Place
from pairvpr.runtime.image import resize
from pairvpr.runtime.map import Map, MapWriter, Record
from pairvpr.runtime.mapping.keyframes import Kept, Selection
from pairvpr.runtime.mapping.token_storage import token_settings
from pairvpr.runtime.model import Model, load_model
from pairvpr.runtime.sources import Frame, Source, SourceOptions, open_source
from pairvpr.runtime.sources.options import DEFAULT

ENCODE_BATCH = 8
"""Pictures per encoder pass: enough to fill a device, few enough that a break costs little."""

Progress = Callable[[int, "int | None"], None]


class Witness(Protocol):
    """Sees pictures before they are added."""

    def check(self, name: str, timestamp: float | None) -> object:
        """Raise where the picture is none for it, before anything is written."""

    def __call__(
        self, writer: MapWriter, name: str, source: str, timestamp: float | None, features: Features
    ) -> object:
        """See a picture that is about to be added; features are those of one picture."""


@dataclass(frozen=True)
class BuildReport:
    """What became of a source's pictures.

    already: those the map held from an earlier run; skipped: one line per picture that could not be read; left_out:
    those that a selection did not take.
    """

    added: int
    already: int
    with_place: int
    skipped: tuple[str, ...]
    left_out: int = 0


def build_map(
    images: str | Path,
    db: str | Path,
    *,
    model: Model | str | Path | None = None,
    options: SourceOptions = DEFAULT,
    poses: str | Path | None = None,
    min_distance: float | None = None,
    min_change: float | None = None,
    strict: bool = False,
    progress: Progress | None = None,
    witness: Witness | None = None,
) -> BuildReport:
    """Build the map `db` from the pictures of a source; an existing map gets the pictures that it lacks.

    images, options: a folder, video, bag or other source (see `open_source`).
    model: a loaded model, the folder of a bundle, or None for the default model.
    poses: a pose file (CSV or TUM); None takes the poses of the source, of file names or of EXIF.
    min_distance: metres; keep a picture only if it was taken this far from the last one kept.
    min_change: keep a picture only if 1 - cosine(descriptor, last kept) is at least this.
    strict: raise for a picture that cannot be read. Without it, such pictures are listed in `skipped`.
    progress: called with the pictures done and the pictures in all (None if unknown).
    witness: sees each picture just before it is added, for example a `LoopCloser`.

    Returns how many pictures were added, skipped and left out. Call it again to go on after an interruption. Raises
    SourceError, MapError, BundleError or EngineError.
    """
    loaded = model if isinstance(model, Model) else load_model(model)
    selection = Selection(min_distance, min_change)
    return add_pictures(
        images,
        db,
        loaded,
        options=options,
        poses=poses,
        selection=selection,
        strict=strict,
        create=True,
        progress=progress,
        witness=witness,
    )


def add_pictures(
    images: str | Path,
    db: str | Path,
    model: Model,
    *,
    options: SourceOptions = DEFAULT,
    poses: str | Path | None = None,
    selection: Selection | None = None,
    strict: bool = False,
    create: bool = False,
    token_type: str | None = None,
    keep_tokens: float | None = None,
    progress: Progress | None = None,
    witness: Witness | None = None,
) -> BuildReport:
    """Add every picture of the source `images` to the map `db`; those it already holds from there are left out.

    images, options: whatever `open_source` takes; a live source ends with Ctrl-C. poses: a file (see `PlaceFinder`).
    selection: chooses among the pictures, in their order; None takes all. strict: a picture that cannot be read is an
    error, not a skipped one. create: make the map where there is none. token_type, keep_tokens: how a new map stores
    tokens (see `token_settings`); those of an existing one must be the same. progress: told pictures done and to do
    (None: not known). witness: sees each picture at once, not when a batch is full. Raises MapError or SourceError, and
    what the witness raises; what was committed before stays.
    """
    selection = selection or Selection()
    with ExitStack() as stack:
        source = stack.enter_context(open_source(str(images), options))
        present = _present(Path(db), model.bundle.identity, create, token_type, keep_tokens)
        finder = PlaceFinder(poses)
        held = _Held(db, source.origin, present, finder)
        if source.names is not None:
            held.check_all(source.names, poses)
        total = source.length if source.names is None else sum(name not in present for name in source.names)

        def open_map() -> MapWriter:
            return stack.enter_context(open_writer(db, model, create, token_type, keep_tokens))

        adder, done = _Adder(source.origin, model, selection, witness, open_map), 0
        skipped: list[str] = []
        try:
            for batch in _batches(source.frames(held.lacks), ENCODE_BATCH if witness is None else 1):
                adder.add(list(_read(batch, source, held, model, finder, strict, skipped)))
                done += len(batch)
                if progress is not None:
                    progress(done, total if total is None or done <= total else None)
        except KeyboardInterrupt:
            if not source.live:
                raise
        if progress is not None and done != total:
            progress(done, done)  # the source could not know
    if adder.added == 0 and not present and selection.left_out:
        raise SourceError(
            f"{images}: none of its {selection.left_out} pictures has a place, which --min-distance goes by; give "
            "--poses, or choose with --min-change"
        )
    if adder.added == 0 and not present:
        first = skipped[0] if skipped else "there was none"
        raise SourceError(f"{images}: none of its {done} pictures could be read; first: {first}")
    if poses is not None and adder.added and not finder.matched and source.names is None:
        raise SourceError(
            f"{poses}: none of its entries belongs to one of the {adder.added} pictures that {db} now holds without a "
            "pose; check names or time stamps and build a new map"
        )
    return BuildReport(adder.added, held.already, adder.with_place, tuple(skipped), selection.left_out)


class _Adder:
    """Encodes pictures and writes those that the selection takes; the map is opened for the first of them.

    added: how many were written; with_place: how many of these with a pose or a GPS position.
    """

    def __init__(
        self,
        origin: str,
        model: Model,
        selection: Selection,
        witness: Witness | None,
        open_map: Callable[[], MapWriter],
    ) -> None:
        self.added = self.with_place = 0
        self._origin, self._model, self._selection, self._witness = origin, model, selection, witness
        self._open_map = open_map
        self._writer: MapWriter | None = None

    def add(self, pictures: Sequence[_Candidate]) -> None:
        """Add a batch, in its order."""
        if self._witness is not None:
            for each in pictures:
                self._witness.check(each.name, each.place.timestamp)
        by_change = self._selection.min_change is not None
        if not by_change:  # what is not taken need not be encoded
            pictures = [each for each in pictures if _takes(self._selection, each, None)]
        if not pictures:
            return
        features = self._model.encode_prepared(np.stack([each.image for each in pictures]))
        for i, each in enumerate(pictures):
            if not by_change or _takes(self._selection, each, features.descriptors[i]):
                self._write(each, features[i])

    def _write(self, picture: _Candidate, features: Features) -> None:
        if self._writer is None:
            self._writer = self._open_map()
        place = picture.place
        if self._witness is not None:
            self._witness(self._writer, picture.name, self._origin, place.timestamp, features)
        self._writer.add(
            name=picture.name,
            source=self._origin,
            features=features,
            timestamp=place.timestamp,
            pose=place.pose,
            gps=place.gps,
        )
        self.added += 1
        self.with_place += place.pose is not None or place.gps is not None


def _present(
    db: Path, identity: str, create: bool, token_type: str | None, keep_tokens: float | None
) -> dict[str, tuple[Record, Kept]]:
    """The pictures the map holds, by name; none where there is no map yet and one may be made.

    Raises MapError where the map is of another model, or stores tokens otherwise than asked for.
    """
    if create and not (db / "map.sqlite").exists():
        return {}
    with Map.open(db) as places:
        if places.identity != identity:
            raise MapError(
                f"{db}: made with model {places.identity[:12]}, not with {identity[:12]}; "
                "give --model that one, or choose another --db"
            )
        held = places.token_format
        if token_type not in (None, held.type) or keep_tokens not in (None, held.keep):
            raise MapError(f"{db}: stores {held}; leave --tokens and --keep-tokens out, or build another map")
        return {
            record.name: (record, Kept(record.pose or record.gps, descriptor))
            for record, descriptor in zip(places.records, places.descriptors, strict=True)
        }


class _Held:
    """What the map holds already, against which every name that comes is checked.

    already: how many pictures came that it holds. order: what came: for each picture that it holds that one, None for
    each that it lacks; before: see `advance`.
    """

    def __init__(
        self, db: str | Path, origin: str, present: Mapping[str, tuple[Record, Kept]], finder: PlaceFinder
    ) -> None:
        self.already = 0
        self.order: deque[Kept | None] = deque()
        self.before: Kept | None = None
        self._db = db
        self._origin = origin
        self._present = present
        self._finder = finder

    def check_all(self, names: Iterable[str], poses: str | Path | None) -> None:
        """Raise SourceError for a pose file of other pictures, MapError as `lacks`; before anything is read."""
        if poses is not None and not any(self._finder.in_file(name) for name in names):
            raise SourceError(
                f"{poses}: none of its entries belongs to one of the pictures; check names or time stamps"
            )
        for name in names:
            self._check(name, None)

    def lacks(self, number: int, name: str, timestamp: float | None) -> bool:
        """Whether the map lacks this picture.

        Raises MapError if it holds one of the same name from elsewhere, or this one without the pose it has now.
        """
        self._check(name, timestamp)
        self.already += name in self._present
        self.order.append(self._present[name][1] if name in self._present else None)
        return name not in self._present

    def advance(self) -> None:
        """Goes on to the next picture that the map lacks; `before` is the last before it that the map holds."""
        while (entry := self.order.popleft()) is not None:
            self.before = entry

    def _check(self, name: str, timestamp: float | None) -> None:
        if name not in self._present:
            return
        record, _ = self._present[name]
        if record.source != self._origin:
            raise MapError(
                f"{self._db}: already holds a picture {name!r}, from {record.source}; {_new_names(self._origin, name)}"
            )
        if record.pose is None and record.gps is None and self._finder.in_file(name, timestamp):
            raise MapError(
                f"{self._db}: already holds {name!r} without its pose; build a new map with --poses from the start"
            )


def _new_names(origin: str, name: str) -> str:
    """How the pictures of a folder or file get names that a map does not hold yet."""
    own = Path(origin).name
    if name.startswith(own) and re.search(r"#\d{6,}$", name):
        return f"rename {origin}, which frames are named after"
    return f"move {origin} into a new folder and give that one, so that names begin with '{own}/'"


def open_writer(
    db: str | Path, model: Model, create: bool, token_type: str | None = None, keep_tokens: float | None = None
) -> MapWriter:
    """The map `db` opened for adding the model's features; made where there is none and `create` says so.

    token_type, keep_tokens: how a new map stores tokens, see `token_settings`.
    """
    dims, db = model.bundle.info.dims, Path(db)
    new = create and not (db / "map.sqlite").exists()
    return MapWriter.open(
        db,
        identity=model.bundle.identity,
        descriptor_dim=dims.descriptor,
        token_shape=(dims.tokens, dims.token_dim),
        settings=token_settings(model, token_type, keep_tokens) if new else None,
        install_model=model.bundle.install if create else None,
    )


def _batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    while batch := list(islice(frames, size)):
        yield batch


@dataclass(frozen=True)
class _Candidate:
    """A picture that can be read: as the encoder takes it, and what the map holds that came just before it."""

    name: str
    image: np.ndarray
    place: Place
    before: Kept | None


def _read(
    batch: list[Frame],
    source: Source,
    held: _Held,
    model: Model,
    finder: PlaceFinder,
    strict: bool,
    skipped: list[str],
) -> Iterator[_Candidate]:
    """The pictures that can be read; the others go to `skipped`."""
    for frame in batch:
        held.advance()
        try:
            if frame.picture is None:
                raise SourceError(str(frame.error))
            place = finder(frame.name, frame.path, Place(frame.pose, frame.gps, frame.timestamp))
        except SourceError as error:
            if strict:
                raise
            skipped.append(str(error))
        else:
            # A camera counts from 0 each time it is opened.
            name = f"{frame.name}@{frame.timestamp:.3f}" if source.live else frame.name
            before, held.before = held.before, None
            yield _Candidate(name, resize(frame.picture, model.picture_size), place, before)


def _takes(selection: Selection, candidate: _Candidate, descriptor: np.ndarray | None) -> bool:
    if candidate.before is not None:  # where a run that was interrupted had come to
        selection.last = candidate.before
    return selection.takes(candidate.place, descriptor)
