"""Build the parts of a source side by side, and publish them together."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pairvpr.errors import EngineError, MapError, one_line
from pairvpr.files import remove
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.fleet.publishing import AdoptReport, Progress, adopt
from pairvpr.runtime.fleet.storage import FolderStorage
from pairvpr.runtime.fleet.version import read_current, read_start
from pairvpr.runtime.map.errors import writing
from pairvpr.runtime.mapping.builder import BuildOptions, BuildReport, add_pictures
from pairvpr.runtime.model import default_bundle, load_model

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

    A repeated call goes on after an interruption. The published pictures are those of one `build_map`.

    images: the source, see `open_source`. It must know its number of pictures.
    parts: number of parts.
    model: folder of a bundle. None takes the fleet's model, or the default model for a new fleet.
    work: folder of the unpublished parts, which is deleted at the end. None takes the fleet's with `.work` at its end.
    address: build the parts in tasks of a Ray cluster, see `FleetRecognizer.open`. Its nodes must find source, model
    and `work` under the same paths. None builds one after the other in this process.
    progress: see `adopt`.
    Raises the errors of `build_map` and `adopt`, and EngineError without Ray or a cluster.
    """
    path = Path(fleet)
    folder = path.with_name(f"{path.name}.work") if work is None else Path(work)
    bundle = _find_model(path, model)
    chosen, source = options or BuildOptions(), str(images)
    if Path(source).exists():  # tasks have another working folder
        source = str(Path(source).absolute())
    if chosen.poses is not None:
        chosen = dataclasses.replace(chosen, poses=Path(chosen.poses).absolute())
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    maps = [folder / f"part{number:04d}" for number in range(1, parts + 1)]
    arguments = [
        (source, str(map_.absolute()), str(bundle), dataclasses.replace(chosen, part=(number, parts)))
        for number, map_ in enumerate(maps, 1)
    ]
    run = _run_here if address is None else _find_runner(address, parts)
    reports = run(build_part, arguments)
    published = adopt(maps, path, progress)
    with writing(folder):
        for map_ in maps:
            remove(map_)
        if not any(folder.iterdir()):
            folder.rmdir()
    return reports, published


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
        from pairvpr.runtime.fleet.cluster import run_tasks
    except ImportError as error:
        raise EngineError(
            f'--address needs Ray ({one_line(error)}): run pip install "pairvpr[fleet]", or leave it out'
        ) from error
    return lambda build, arguments: run_tasks(address, parts, build, arguments)
