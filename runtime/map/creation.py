"""Create a map: check its folder, and bring its parts to the disk in a safe order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pairvpr import __version__
from pairvpr.errors import MapError
from pairvpr.files import find_partials, remove, sync, write_atomically
from pairvpr.printing import json_line
from pairvpr.runtime.map import catalog, lock, segments
from pairvpr.runtime.map.errors import reading, writing
from pairvpr.runtime.map.list_file import remove_other_lists
from pairvpr.runtime.map.meta import Meta
from pairvpr.runtime.map.tokens import TokenFormat

MODEL = "model"

_PARTS = {lock.FILE, MODEL, segments.FOLDER}


def prepare_folder(path: Path) -> None:
    """Make the folder if it is missing. Raises MapError unless it holds a map or may become one."""
    with reading(path):
        if path.exists() and not path.is_dir():
            raise MapError(f"{path} is a file, not a folder: choose another path for the map")
        if path.is_dir() and not _may_become_map(path):
            raise MapError(f"{path} is not empty and holds no map: choose an empty or new folder")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def describe_map(identity: str, descriptor_dim: int, token_shape: tuple[int, int], settings: Mapping[str, Any]) -> Meta:
    """Return the properties of a new map; see `MapWriter.open`."""
    asked = json.loads(json.dumps(dict(settings), allow_nan=False))
    return Meta(
        identity=identity,
        settings=asked,
        descriptor_dim=descriptor_dim,
        token_shape=TokenFormat.from_settings(asked).stored_shape(token_shape),
        created_by=__version__,
    )


def create_map(path: Path, meta: Meta, install_model: Callable[[Path], None]) -> None:
    """Fill a folder that the caller has prepared and locked: first the model, last the catalog.

    The parts that an interrupted creation left are made again.
    Raises MapError if the folder cannot be written, and the exceptions of `install_model`.
    """
    with writing(path):
        for leftover in (path / MODEL, *find_partials(path)):
            remove(leftover)
        with write_atomically(path / MODEL) as model:  # on the disk before the catalog
            model.mkdir()
            install_model(model)
        (path / segments.FOLDER).mkdir(exist_ok=True)
        sync(path)
        catalog.create(path, meta)
        sync(path.absolute().parent)


def clean_map(path: Path, state: catalog.Catalog) -> None:
    """Check that the segments of a state of the map `path` are there, and delete the files of interrupted commits.

    Raises MapError if a segment is missing or has another size.
    """
    for entry in state.segments:
        segments.check_present(path / segments.FOLDER, entry)
    segments.remove_leftovers(path / segments.FOLDER, {entry.file for entry in state.segments})
    remove_other_lists(path, state.meta.lists)


def check_same(path: Path, held: Meta, wanted: Meta) -> None:
    """Raise MapError unless the map `path`, which holds `held`, may take pictures of a map like `wanted`."""
    if held.identity != wanted.identity:
        raise MapError(
            f"{path} was made with model {held.identity[:12]}, not {wanted.identity[:12]}: "
            f"use its own model, {path / MODEL}, or build another map"
        )
    shapes = (held.descriptor_dim, *held.token_shape), (wanted.descriptor_dim, *wanted.token_shape)
    if shapes[0] != shapes[1]:
        raise MapError(
            f"{path} holds features of sizes {shapes[0]}, not {shapes[1]}: use its own model, {path / MODEL}"
        )
    if held.settings != wanted.settings:
        raise MapError(
            f"{path} was made with settings {json_line(held.settings)}, not {json_line(wanted.settings)}: "
            "use the same settings or build another map"
        )


def _may_become_map(path: Path) -> bool:
    names = {entry.name for entry in path.iterdir()}
    if not names or catalog.FILE in names:
        return True
    # An interrupted creation leaves a signed lock, some of the parts and no segment.
    unfinished = {entry.name for entry in find_partials(path)}
    if not names <= _PARTS | unfinished or not lock.is_lock(path / lock.FILE):
        return False
    if names == {lock.FILE}:
        return True
    stored = path / segments.FOLDER
    return lock.is_signed(path / lock.FILE) and not (stored.exists() and any(stored.iterdir()))
