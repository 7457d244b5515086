"""Delete the files of a fleet that its current version does not need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pairvpr.errors import MapError
from pairvpr.runtime.fleet.publication import LOCK, publishing_to
from pairvpr.runtime.fleet.storage import FolderStorage
from pairvpr.runtime.fleet.version import FILE, read_current
from pairvpr.runtime.map.errors import writing


@dataclass(frozen=True)
class GcReport:
    """The outcome of a collection: number and size in bytes of the files deleted."""

    files: int
    bytes: int


def collect(fleet: str | Path) -> GcReport:
    """Delete the files of a fleet that its current version does not need.

    These are older versions, and the remains of interrupted publications.
    Raises MapError if there is no fleet, another publisher is at work, or a file cannot be deleted.
    """
    path = Path(fleet)
    read_current(FolderStorage(path))
    with publishing_to(path) as version:
        if version is None:
            raise MapError(f"{path} holds no fleet any more")
        wanted = {FILE, LOCK, version.file}
        wanted |= {f"{tile.folder}/{name}" for tile in version.tiles for name in tile.files}
        wanted |= {f"{version.model_folder}/{name}" for name in version.model}
        with writing(path):
            spare = [
                file
                for file in sorted(path.rglob("*"))
                if (file.is_symlink() or not file.is_dir()) and file.relative_to(path).as_posix() not in wanted
            ]
            size = sum(file.lstat().st_size for file in spare)
            for file in spare:
                file.unlink()
            for folder in sorted((each for each in path.rglob("*") if each.is_dir()), reverse=True):
                if not any(folder.iterdir()):
                    folder.rmdir()
    return GcReport(len(spare), size)
