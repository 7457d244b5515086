"""Read a picture file or a folder of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from time import perf_counter

from pairvpr.errors import SourceError
from pairvpr.runtime.image import PICTURE_EXTENSIONS, load_picture
from pairvpr.runtime.sources.base import Frame, Source, Wanted, every_frame


class PictureSource(Source):
    """Provide one picture file. A fault in the file is raised."""

    live = False
    single = True
    length: int | None = 1

    def __init__(self, path: Path) -> None:
        self._path = path
        self.names: Sequence[str] | None = (path.name,)
        self.origin = str(path.resolve().parent)

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """Yield the picture if it is wanted."""
        if not wanted(0, self._path.name, None):
            return
        started = perf_counter()
        picture = load_picture(self._path)
        yield Frame(self._path.name, None, picture, None, (perf_counter() - started) * 1e3, path=self._path)

    def close(self) -> None:
        """Do nothing: no file stays open between frames."""


class FolderSource(Source):
    """Provide all pictures of a folder and its subfolders. An unreadable picture gives a Frame with its error."""

    live = False
    single = False

    def __init__(self, folder: Path) -> None:
        self._pictures = list_pictures(folder)
        self.length: int | None = len(self._pictures)
        self.names: Sequence[str] | None = [name for name, _ in self._pictures]
        self.origin = str(folder.resolve())

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """Yield the pictures that are wanted. The others are not opened."""
        for number, (name, path) in enumerate(self._pictures):
            if wanted(number, name, None):
                yield read_frame(name, None, path)

    def close(self) -> None:
        """Do nothing: no file stays open between frames."""


def read_frame(name: str, timestamp: float | None, path: Path) -> Frame:
    """Return the Frame of a picture file, with an error if the file cannot be read."""
    picture, error = None, None
    started = perf_counter()
    try:
        picture = load_picture(path)
    except SourceError as fault:
        error = str(fault)
    return Frame(name, timestamp, picture, error, (perf_counter() - started) * 1e3, path=path)


def list_pictures(folder: str | Path) -> list[tuple[str, Path]]:
    """List the names and paths of the pictures in a folder and its subfolders.

    A name is a posix path relative to `folder`. The order is natural (2.jpg before 10.jpg). Hidden files and folders
    are left out.

    Raises SourceError if the folder or a subfolder cannot be read, or holds no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder: name a folder of pictures")
    paths = {path.relative_to(folder).as_posix(): path for path in _walk(folder, (folder.resolve(),))}
    if not paths and (folder / "map.sqlite").exists():
        raise SourceError(
            f"{folder} is a map, not a folder of pictures: name a folder of pictures here, and the map as --db"
        )
    if not paths:
        known = " ".join(PICTURE_EXTENSIONS)
        raise SourceError(f"{folder} holds no pictures ({known}): name a folder that does")
    return sorted(paths.items(), key=lambda item: (natural_order(item[0]), item[0]))


def natural_order(name: str) -> list[list[str | int]]:
    """Return a sorting key that compares the numbers in a path's parts by value."""
    # Splitting by a group alternates text and number, so that the same positions always compare.
    split = [re.split(r"([0-9]+)", part) for part in PurePosixPath(name).parts]
    return [[int(s) if i % 2 else s for i, s in enumerate(part)] for part in split]


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the picture files below `folder`. A linked folder is entered unless it leads back up (`above`)."""
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise SourceError(f"the folder {folder} cannot be read ({error.strerror}): check its rights") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            resolved = entry.resolve()
            if resolved not in above:
                yield from _walk(entry, (*above, resolved))
        elif entry.suffix.lower() in PICTURE_EXTENSIONS:
            if not entry.name.isprintable():  # an answer is one line of UTF-8 that holds the name
                raise SourceError(f"{str(entry)!r} has a name that cannot be printed: rename it")
            yield entry
