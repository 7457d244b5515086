"""Build the parts of a source side by side, and publish them together."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairvpr.errors import EngineError, MapError, SourceError, one_line
from pairvpr.files import remove
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.fleet.publishing import AdoptReport, NameClashError, adopt
from pairvpr.runtime.fleet.staging import Progress
from pairvpr.runtime.fleet.storage import FolderStorage
from pairvpr.runtime.fleet.version import read_current, read_start
from pairvpr.runtime.map import catalog
from pairvpr.runtime.map.errors import reading, writing
from pairvpr.runtime.mapping.builder import BuildOptions, BuildReport, add_pictures
from pairvpr.runtime.mapping.known_pictures import rename_advice
from pairvpr.runtime.model import default_bundle, load_model
from pairvpr.runtime.sources import open_source

LOCKED = 60.0
"""Seconds to wait for the lock of a task that is dying."""

PartRunner = Callable[[Callable[..., BuildReport], Sequence[tuple[Any, ...]]], list[BuildReport]]
"""Calls a function once with each of some arguments, and returns the results in this order."""


def build_fleet(
    images: str | Path,
    fleet: str | Path,
    parts: int,
    *,
    model: str | Path | None = None,
    work: str | Path | None = None,
    options: BuildOptions | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> tuple[list[BuildReport], AdoptReport]:
    """Build the pictures of a source in parts, and publish them in the order of the source.

    A repeated call goes on after an interruption. The published pictures are those of one `build_map`. Parts of another
    source, or of other options, are never published with them.

    images: the source, see `open_source`. It must know its number of pictures.
    parts: number of parts.
    model: folder of a bundle. None takes the fleet's model, or the default model for a new fleet.
    work: folder of the unpublished parts. They lie in a subfolder for this source, its names and these options, which
    is deleted at the end. None takes the fleet's with `.work` at its end.
    address: build the parts in tasks of a Ray cluster, see `FleetRecognizer.open`. Its nodes must find source, model
    and `work` under the same paths. None builds one after the other in this process.
    progress: see `adopt`.
    Raises the errors of `build_map` and `adopt`, and EngineError without Ray or a cluster. Raises SourceError before
    anything is built if there are more parts than pictures, or their number is not known. Raises MapError if the fleet
    holds a picture of the same name from another source, before anything is built if the names are known.
    """
    path = Path(fleet)
    bundle = _find_model(path, model)
    chosen, source = _with_absolute_paths(options or BuildOptions()), str(images)
    if Path(source).exists():  # tasks have another working folder
        source = str(Path(source).absolute())
    outset = _read_outset(source, parts, chosen)
    _check_names(path, images, outset)
    above = path.with_name(f"{path.name}.work") if work is None else Path(work)
    folder = above / _key(outset, parts, chosen, bundle)
    maps = [folder / f"part{number:04d}" for number in range(1, parts + 1)]
    arguments = [
        (source, str(map_.absolute()), str(bundle), dataclasses.replace(chosen, part=(number, parts)))
        for number, map_ in enumerate(maps, 1)
    ]
    run = _run_here if address is None else _find_runner(address, parts)
    reports = run(build_part, arguments)
    try:
        published = adopt(maps, path, progress)
    except NameClashError as error:
        _clean(folder)
        raise _clash(images, path, outset.origin, error.name) from error
    _clean(folder)
    return reports, published


@dataclass(frozen=True)
class _Outset:
    """A source before it is read: its origin, number of pictures, and names if they are known."""

    origin: str
    length: int
    names: tuple[str, ...] | None


def _with_absolute_paths(options: BuildOptions) -> BuildOptions:
    source = options.source
    if source.undistort is not None:
        source = dataclasses.replace(source, undistort=Path(source.undistort).absolute())
    poses = None if options.poses is None else Path(options.poses).absolute()
    return dataclasses.replace(options, source=source, poses=poses)


def _read_outset(images: str, parts: int, options: BuildOptions) -> _Outset:
    with open_source(images, options.source) as source:
        length, names = source.length, source.names
        if length is None:
            raise SourceError(
                f"{images}: its number of pictures is not known before they are read; leave out --start, --duration "
                "and --max-fps, or use `pairvpr map build` and `pairvpr fleet adopt`"
            )
        if length < parts:
            raise SourceError(
                f"{images}: has {length} pictures, fewer than {parts} parts; give --shards {max(1, length)}"
            )
        return _Outset(source.origin, length, None if names is None else tuple(names))


def _check_names(fleet: Path, images: str | Path, outset: _Outset) -> None:
    """Raise MapError if the fleet holds a picture with a name of the source, but from another one."""
    storage = FolderStorage(fleet)
    if outset.names is None or not read_start(storage)[0]:
        return
    wanted = set(outset.names)
    for tile in read_current(storage).tiles:
        records = catalog.load(fleet / tile.folder).records.live()
        for row, name in enumerate(records.names()):
            if name in wanted and records[row].source != outset.origin:
                raise _clash(images, fleet, outset.origin, name)


def _clash(images: str | Path, fleet: Path, origin: str, name: str) -> MapError:
    advice = rename_advice(origin, name)
    return MapError(f"{images}: {fleet} already holds another picture {name!r}; {advice}; nothing was published")


def _key(outset: _Outset, parts: int, options: BuildOptions, bundle: Path) -> str:
    """Return the name of the folder for the parts of one source with one set of options."""
    poses = None
    if options.poses is not None:
        with reading(Path(options.poses)):
            poses = hashlib.sha256(Path(options.poses).read_bytes()).hexdigest()
    content = (outset, parts, options, poses, Bundle.open(bundle).digest)
    return hashlib.sha256(repr(content).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _clean(folder: Path) -> None:
    """Delete the parts, and the folder above them if nothing else is in it."""
    with writing(folder):
        remove(folder)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def build_part(images: str, db: str, model: str, options: BuildOptions) -> BuildReport:
    """Build one part of a source, or go on with it. Raises the errors of `add_pictures`.

    A task that was killed may hold the map's lock for a moment longer, so the lock is waited for.
    """
    loaded, ends = load_model(model, digest=options.model_digest), time.monotonic() + LOCKED
    while True:
        try:
            return add_pictures(images, db, loaded, options, create=True)
        except MapError as error:
            if "is being written by" not in str(error) or time.monotonic() > ends:
                raise
            time.sleep(1.0)


def _find_model(fleet: Path, model: str | Path | None) -> Path:
    """Return the absolute folder of the bundle to build with. Raises MapError for another model than the fleet's."""
    storage = FolderStorage(fleet)
    if not read_start(storage)[0]:
        return (default_bundle() if model is None else Path(model)).absolute()
    version = read_current(storage)
    if model is None:
        return (fleet / version.model_folder).absolute()
    identity = Bundle.open(model).identity
    if identity != version.identity:
        raise MapError(
            f"{fleet} was made with model {version.identity[:12]}, not with {identity[:12]} ({model}): leave out "
            "--model, or choose another fleet"
        )
    return Path(model).absolute()


def _run_here(build: Callable[..., BuildReport], arguments: Sequence[tuple[Any, ...]]) -> list[BuildReport]:
    return [build(*each) for each in arguments]


def _find_runner(address: str, parts: int) -> PartRunner:
    """Return a runner of tasks in a cluster. Raises EngineError without Ray."""
    try:
        from pairvpr.runtime.fleet.ray_api import run_tasks
    except ImportError as error:
        raise EngineError(
            f'--address needs Ray ({one_line(error)}): run pip install "pairvpr[fleet]", or leave it out'
        ) from error
    return lambda build, arguments: run_tasks(address, parts, build, arguments)
