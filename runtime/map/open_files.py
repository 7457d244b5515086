"""Let this process open the files of all segments of a map at once."""

from __future__ import annotations

import resource
from pathlib import Path

from pairvpr.errors import MapError

_SPARE_FILES = 256  # open files left for the rest of the process


def allow_open_files(path: Path, segments: int) -> None:
    """Raise the process's soft limit of open files if the map's segments need it. Raises MapError."""
    needed = segments + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError) as error:
        raise MapError(
            f"{path} has {segments} segments, but this process may open only {soft} files: "
            f"allow more with `ulimit -n {needed}`, or merge them with `pairvpr map compact --db {path}`"
        ) from error
