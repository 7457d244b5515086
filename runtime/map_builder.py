"""Building a map: every picture of a folder, encoded and stored with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from pairvpr.errors import MapError, SourceError
from pairvpr.runtime.map import Map, MapWriter, Record
from pairvpr.runtime.model import Model
from pairvpr.runtime.poses import Place, PlaceFinder
from pairvpr.runtime.sources import list_pictures
from pairvpr.runtime.token_choice import token_settings

ENCODE_BATCH = 8
"""Pictures per encoder pass: enough to fill a device, few enough that a break costs little."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BuildReport:
    """What became of a folder's pictures.

    already: those the map held from an earlier run; skipped: one line per picture that could not be read.
    """

    added: int
    already: int
    with_place: int
    skipped: tuple[str, ...]


def add_pictures(
    images: str | Path,
    db: str | Path,
    model: Model,
    *,
    poses: str | Path | None = None,
    strict: bool = False,
    create: bool = False,
    token_type: str | None = None,
    keep_tokens: float | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Add every picture of the folder `images` to the map `db`; those it already holds from there are left out.

    poses: a pose file (see `PlaceFinder`). strict: a picture that cannot be read is an error, not a skipped one.
    create: make the map where there is none. token_type, keep_tokens: how a new map stores tokens (see
    `token_settings`); those of an existing one must be the same. progress: told pictures done and to do.
    Raises MapError or SourceError; what was committed before stays.
    """
    source = str(Path(images).resolve())
    pictures = list_pictures(images)
    present = _present(Path(db), model.bundle.identity, create, token_type, keep_tokens)
    finder = PlaceFinder(poses)
    _check_names(db, source, [name for name, _ in pictures], present)
    if poses is not None:
        _check_poses(db, poses, [name for name, _ in pictures], present, finder)
    todo = [(name, path) for name, path in pictures if name not in present]

    added = with_place = done = 0
    skipped: list[str] = []
    with ExitStack() as stack:
        writer: MapWriter | None = None
        for batch in _batches(todo):
            read = list(_read(batch, model, finder, strict, skipped))
            if read:
                features = model.encode_prepared(np.stack([image for _, image, _ in read]))
                writer = writer or stack.enter_context(open_writer(Path(db), model, create, token_type, keep_tokens))
                for i, (name, _, place) in enumerate(read):
                    writer.add(
                        name=name,
                        source=source,
                        features=features[i],
                        timestamp=place.timestamp,
                        pose=place.pose,
                        gps=place.gps,
                    )
                    added += 1
                    with_place += place.pose is not None or place.gps is not None
            done += len(batch)
            if progress is not None:
                progress(done, len(todo))
    if added == 0 and not present:
        raise SourceError(f"{images}: none of its {len(pictures)} pictures could be read; first: {skipped[0]}")
    return BuildReport(added, len(pictures) - len(todo), with_place, tuple(skipped))


def _present(
    db: Path, identity: str, create: bool, token_type: str | None, keep_tokens: float | None
) -> dict[str, Record]:
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
            raise MapError(
                f"{db}: stores {held.keep:.0%} of the tokens as {held.type}; leave --tokens and --keep-tokens out, or "
                "build another map"
            )
        return {record.name: record for record in places.records}


def _check_names(db: str | Path, source: str, names: Sequence[str], present: Mapping[str, Record]) -> None:
    """Raise MapError for a name that the map holds from another folder."""
    for name in names:
        if name in present and present[name].source != source:
            raise MapError(
                f"{db}: already holds a picture {name!r}, from {present[name].source}; put new pictures into a "
                "subfolder and give the folder above it, so that names differ"
            )


def _check_poses(
    db: str | Path, poses: str | Path, names: Sequence[str], present: Mapping[str, Record], finder: PlaceFinder
) -> None:
    """Raise SourceError for a file of other pictures' poses, MapError for poses that come too late."""
    matched = [name for name in names if finder.in_file(name)]
    if not matched:
        raise SourceError(f"{poses}: none of its entries belongs to one of the pictures; check names or time stamps")
    late = [n for n in matched if n in present and present[n].pose is None and present[n].gps is None]
    if late:
        raise MapError(
            f"{db}: already holds {len(late)} of these pictures without their poses ({late[0]!r} first); "
            "build a new map with --poses from the start"
        )


def open_writer(
    db: Path, model: Model, create: bool, token_type: str | None = None, keep_tokens: float | None = None
) -> MapWriter:
    """The map `db` opened for adding the model's features; made where there is none and `create` says so.

    token_type, keep_tokens: how a new map stores tokens, see `token_settings`.
    """
    dims = model.bundle.info.dims
    new = create and not (db / "map.sqlite").exists()
    return MapWriter.open(
        db,
        identity=model.bundle.identity,
        descriptor_dim=dims.descriptor,
        token_shape=(dims.tokens, dims.token_dim),
        settings=token_settings(model, token_type, keep_tokens) if new else None,
        install_model=model.bundle.install if create else None,
    )


def _batches(pictures: Sequence[tuple[str, Path]]) -> Iterator[list[tuple[str, Path]]]:
    remaining = iter(pictures)
    while batch := list(islice(remaining, ENCODE_BATCH)):
        yield batch


def _read(
    batch: Sequence[tuple[str, Path]], model: Model, finder: PlaceFinder, strict: bool, skipped: list[str]
) -> Iterator[tuple[str, np.ndarray, Place]]:
    """Name, prepared picture and place of each picture that can be read; the others go to `skipped`."""
    for name, path in batch:
        try:
            image, place = model.prepare(path), finder(name, path)
        except SourceError as error:
            if strict:
                raise
            skipped.append(str(error))
        else:
            yield name, image, place
