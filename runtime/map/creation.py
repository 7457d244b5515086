"""Making a folder a map: which folders may become one, and in which order its parts come to the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pairvpr.errors import MapError
from pairvpr.runtime.map import catalog, lock, segments
from pairvpr.runtime.map.catalog import Meta
from pairvpr.runtime.map.errors import reading, writing

MODEL = "model"

_NEW_MODEL = f"{MODEL}.new"
_NEW_CATALOG = f"{catalog.FILE}.new"
_PARTS = {lock.FILE, MODEL, _NEW_MODEL, segments.FOLDER, _NEW_CATALOG, f"{_NEW_CATALOG}-journal"}


def prepare_folder(path: Path) -> None:
    """Make the folder if it is not there; raises MapError unless a map is, or may come to be, in it."""
    with reading(path):
        if path.exists() and not path.is_dir():
            raise MapError(f"{path} is a file, not a folder: choose another path for the map")
        if path.is_dir() and not _may_become_map(path):
            raise MapError(f"{path} is not empty and holds no map: choose an empty or new folder")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def create_map(path: Path, meta: Meta, install_model: Callable[[Path], None]) -> None:
    """Fill the folder, which the caller has prepared and locked: first the model, last the catalog.

    What a creation that was cut short left behind is done again. Raises MapError where the folder
    cannot be written, and what `install_model` raises.
    """
    with writing(path):
        model, new_model = path / MODEL, path / _NEW_MODEL
        for leftover in (model, new_model):
            if leftover.exists():
                shutil.rmtree(leftover)
        new_model.mkdir()
        install_model(new_model)
        _sync_tree(new_model)
        new_model.rename(model)
        (path / segments.FOLDER).mkdir(exist_ok=True)
        segments.sync_folder(path)
        catalog.create(path, meta)
        segments.sync_folder(path.absolute().parent)


def _may_become_map(path: Path) -> bool:
    names = {entry.name for entry in path.iterdir()}
    if not names or catalog.FILE in names:
        return True
    # A creation that was cut short leaves a signed lock, some of the parts and no segment yet.
    if not names <= _PARTS or not lock.is_lock(path / lock.FILE):
        return False
    if names == {lock.FILE}:
        return True
    stored = path / segments.FOLDER
    return lock.is_signed(path / lock.FILE) and not (stored.exists() and any(stored.iterdir()))


def _sync_tree(folder: Path) -> None:
    """Bring all files below the folder to the disk, so that the catalog never comes before the model."""
    for parent, _, files in os.walk(folder):
        for name in files:
            descriptor = os.open(Path(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        segments.sync_folder(Path(parent))
