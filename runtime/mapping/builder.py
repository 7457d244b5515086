"""Build a map: encode the pictures of a source and store each with its place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pairvpr.errors import MapError, SourceError
from pairvpr.runtime.ahead import read_ahead
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.geometry.pose_files import PlaceFinder
from pairvpr.runtime.map import Map, MapWriter
from pairvpr.runtime.map.errors import refuse_tile
from pairvpr.runtime.map.meta import DIGEST
from pairvpr.runtime.mapping.adder import Adder, Prepared, prepare
from pairvpr.runtime.mapping.keyframes import Keyframe
from pairvpr.runtime.mapping.known_pictures import KnownPictures
from pairvpr.runtime.mapping.token_storage import token_settings
from pairvpr.runtime.model import Model, load_model
from pairvpr.runtime.reference import check_foreign
from pairvpr.runtime.remarks import remark_scope
from pairvpr.runtime.sources import Frame, Source, SourceOptions, open_source
from pairvpr.runtime.sources.options import DEFAULT

if TYPE_CHECKING:
    from pairvpr.runtime.mapping.loop_closing import LoopCloser

ENCODE_BATCH = 8
"""Pictures per encoder pass: enough to fill a device, few enough that an interruption costs little."""

Progress = Callable[[int, "int | None"], None]
"""Receives the number of finished pictures and the total, which is None if the source does not know it."""


THUMBNAIL, LARGEST_THUMBNAIL = 160, 320
"""Longest side of thumbnails in pixels: by default, and at most."""


@dataclass(frozen=True)
class BuildOptions:
    """Choose the pictures of a map, their poses and the storage of their tokens.

    source: the part of the source to read, and the transforms of its pictures.
    poses: a pose file, see `PlaceFinder`.
    strict: raise SourceError for a picture that cannot be read, and for anything that is left out, guessed or
    converted, instead of going on with a warning.
    min_distance: metres between two keyframes, see `KeyframeSelector`.
    min_change: descriptor change between two keyframes, see `KeyframeSelector`.
    token_type: "float16" or "int8", for a new map only, see `token_settings`.
    keep_tokens: share of the tokens to store, for a new map only, see `token_settings`.
    thumbnails: longest side in pixels, up to 320, of the thumbnails that pages show. 0 stores none.
    model_digest: the digest that the model must have, which the new map keeps. None leaves it open.
    part: I and N, to read only the I-th of N parts of the source, which follow each other. None reads all.
    """

    source: SourceOptions = DEFAULT
    poses: str | Path | None = None
    strict: bool = False
    min_distance: float | None = None
    min_change: float | None = None
    token_type: str | None = None
    keep_tokens: float | None = None
    thumbnails: int = THUMBNAIL
    model_digest: str | None = None
    part: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise ValueError(f"part {self.part[0]} of {self.part[1]}")
        if not 0 <= self.thumbnails <= LARGEST_THUMBNAIL:
            raise ValueError(f"thumbnails of {self.thumbnails} pixels")


DEFAULT_BUILD = BuildOptions()


@dataclass(frozen=True)
class BuildReport:
    """Count the pictures of a source by their outcome.

    added: pictures written to the map.
    already: pictures that the map held from an earlier run.
    with_place: added pictures with a pose or a GPS position.
    skipped: an error line for each picture that could not be read.
    left_out: readable pictures that the keyframe selection rejected.
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
    loop_closer: LoopCloser | None = None,
) -> BuildReport:
    """Build the map `db` from the pictures of a source. An existing map gets the pictures that it lacks.

    images: a folder, video, bag or other source, see `open_source`.
    options: the part of the source to read, and the transforms of its pictures.
    model: a loaded model, the folder of a bundle, or None for the default model.
    poses: a pose file (CSV or TUM). None takes the poses of the source, of file names or of EXIF.
    min_distance: metres; keep a picture only if it was taken this far from the last one kept.
    min_change: keep a picture only if 1 - cosine(descriptor, last kept) is at least this.
    strict: raise for a picture that cannot be read, and for anything that is left out, guessed or converted. Without
    it, such pictures are listed in `skipped`, and the rest is logged.
    progress: called with the pictures done and the pictures in all (None if unknown).
    loop_closer: searches the map for each picture just before the picture is added.

    Return the counts of added, skipped and left out pictures. Call the function again to continue after an
    interruption.

    Raises SourceError, MapError, BundleError or EngineError.
    """
    loaded = model if isinstance(model, Model) else load_model(model)
    chosen = BuildOptions(options, poses, strict, min_distance, min_change)
    return add_pictures(images, db, loaded, chosen, create=True, progress=progress, loop_closer=loop_closer)


def add_pictures(
    images: str | Path,
    db: str | Path,
    model: Model,
    options: BuildOptions = DEFAULT_BUILD,
    *,
    create: bool = False,
    progress: Progress | None = None,
    loop_closer: LoopCloser | None = None,
) -> BuildReport:
    """Add every picture of a source to a map, except those that the map holds already.

    images: the source, see `open_source`. Ctrl-C ends a live source without an error.
    db: the map's folder.
    model: the map's model, or the model of a new map.
    options: the choice of pictures, their poses and the storage of their tokens.
    create: create the map if there is none.
    progress: called after every batch.
    loop_closer: searches the map for each picture just before the picture is added. Pictures are then encoded one by
    one.

    Raises MapError, SourceError, BundleError and the errors of the loop closer. Pictures committed before an error stay
    in the map.
    """
    db = Path(db)
    _check_start(db, model, options)
    with ExitStack() as stack:
        stack.enter_context(remark_scope(options.strict))
        source = stack.enter_context(open_source(str(images), options.source))
        finder = PlaceFinder(options.poses)
        map_ = _open_map(db, model.bundle, create, options)
        if map_ is not None:
            stack.enter_context(map_)
        first, end = _find_part(source, images, options.part)
        known = KnownPictures(db, source.origin, finder, map_, first, end)
        total = _count_missing(known, source, first, end, options)

        def open_map() -> MapWriter:
            return stack.enter_context(open_writer(db, model, create, options, map_))

        adder, done = Adder(source, model, options, finder, loop_closer, open_map), 0
        pictures = stack.enter_context(_prepared(known.missing_frames(source), source, model, options))
        try:
            for batch in _batches(pictures, ENCODE_BATCH if loop_closer is None else 1):
                adder.add(batch)
                done += len(batch)
                if progress is not None:
                    progress(done, total if total is None or done <= total else None)
        except KeyboardInterrupt:
            if not source.live:
                raise
        if progress is not None and done != total:
            progress(done, done)  # the source did not know its length
    left_out = adder.selector.left_out
    if adder.added == 0 and not len(known):
        _raise_empty(images, done, left_out, adder.skipped)
    if adder.added and source.names is None:
        _check_matched(finder, options, adder.added, db)
    return BuildReport(adder.added, known.already, adder.with_place, tuple(adder.skipped), left_out)


def _check_start(db: Path, model: Model, options: BuildOptions) -> None:
    """Raise MapError for a tile of a fleet, and BundleError for a model that must not be used."""
    refuse_tile(db)
    if options.model_digest is not None:
        model.bundle.check_digest(options.model_digest)
    check_foreign(model)


def _count_missing(known: KnownPictures, source: Source, first: int, end: int, options: BuildOptions) -> int | None:
    """Return the number of pictures of a part to encode, None if unknown. Raises as `KnownPictures.check_all`."""
    if source.names is None:
        return None if source.length is None else min(end, source.length) - first
    names = source.names[first : min(end, len(source.names))]
    known.check_all(names, options.poses)
    return sum(name not in known for name in names)


def _check_matched(finder: PlaceFinder, options: BuildOptions, added: int, db: Path) -> None:
    """Raise SourceError if no entry of the poses file belongs to a picture of a source without known names."""
    if options.poses is not None and not finder.matched:
        raise SourceError(
            f"{options.poses}: none of its entries belongs to one of the {added} pictures that {db} now holds "
            f"without a pose ({finder.compare()}); check names or time stamps and build a new map"
        )


def _find_part(source: Source, images: str | Path, part: tuple[int, int] | None) -> tuple[int, int]:
    """Return the numbers of a part's first frame and of the frame after its last. The last part has no end.

    Raises SourceError if the source does not know its length, or the part is empty.
    """
    if part is None:
        return 0, sys.maxsize
    number, count = part
    if source.length is None:
        raise SourceError(
            f"{images}: its number of pictures is not known before they are read; leave out --part, and --start, "
            "--duration and --max-fps with it"
        )
    first, end = source.length * (number - 1) // count, source.length * number // count
    if first == end:
        raise SourceError(
            f"{images}: part {number} of {count} has none of its {source.length} pictures; give fewer parts with --part"
        )
    return first, sys.maxsize if number == count else end


def open_writer(
    db: str | Path, model: Model, create: bool, options: BuildOptions = DEFAULT_BUILD, known: Map | None = None
) -> MapWriter:
    """Open the map `db` for adding features of the model.

    create: create the map if there is none.
    options: the storage of tokens in a new map, and the digest of its model.
    known: the map as it was read before, None if it was not. What has not changed is not read again.

    Raises MapError.
    """
    dims, db = model.bundle.info.dims, Path(db)
    settings = None
    if create and not (db / "map.sqlite").exists():
        settings = token_settings(model, options.token_type, options.keep_tokens)
        if options.model_digest is not None:
            settings[DIGEST] = options.model_digest
    return MapWriter.open(
        db,
        identity=model.bundle.identity,
        descriptor_dim=dims.descriptor,
        token_shape=(dims.tokens, dims.token_dim),
        settings=settings,
        install_model=model.bundle.install if create else None,
        known=None if known is None else known.catalog,
    )


def _raise_empty(images: str | Path, read: int, left_out: int, skipped: Sequence[str]) -> None:
    """Raise SourceError for a new map that no picture was added to."""
    if left_out:
        raise SourceError(
            f"{images}: none of its {left_out} pictures has a place, which --min-distance needs; give --poses, or "
            "choose with --min-change"
        )
    first = skipped[0] if skipped else "there was none"
    raise SourceError(f"{images}: none of its {read} pictures could be read; first: {first}")


def _open_map(db: Path, bundle: Bundle, create: bool, options: BuildOptions) -> Map | None:
    """Open the map without its descriptors. Return None for a map that is to be created.

    Raises MapError if the map belongs to another model or stores tokens in another way than the options ask for.
    """
    if create and not (db / "map.sqlite").exists():
        return None
    with ExitStack() as stack:
        map_ = stack.enter_context(Map.open(db, descriptors=False))
        if map_.identity != bundle.identity:
            raise MapError(
                f"{db}: made with model {map_.identity[:12]}, not with {bundle.identity[:12]}; "
                "give --model that one, or choose another --db"
            )
        if map_.model_digest is not None:
            bundle.check_digest(map_.model_digest)
        elif options.model_digest is not None:
            raise MapError(f"{db}: was made without --model-digest; leave it out, or build another map")
        stored = map_.token_format
        if options.token_type not in (None, stored.type) or options.keep_tokens not in (None, stored.keep):
            raise MapError(f"{db}: stores {stored}; leave --tokens and --keep-tokens out, or build another map")
        stack.pop_all()
    return map_


@contextmanager
def _prepared(
    missing: Iterator[tuple[Frame, Keyframe | None]], source: Source, model: Model, options: BuildOptions
) -> Iterator[Iterator[Prepared]]:
    """Iterate over prepared frames. They are decoded in one thread and resized in another, while others are encoded.

    A live source is read when a frame is asked for, because only its newest frame counts.
    """

    def resize(frames: Iterator[tuple[Frame, Keyframe | None]]) -> Iterator[Prepared]:
        return (prepare(frame, before, model, options.thumbnails) for frame, before in frames)

    if source.live:
        yield resize(missing)
    else:
        with read_ahead(missing) as frames, read_ahead(resize(frames), ENCODE_BATCH) as pictures:
            yield pictures


def _batches(pictures: Iterator[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Yield lists of `size` pictures, the last possibly shorter."""
    while batch := list(islice(pictures, size)):
        yield batch
