"""Picture files and folders of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from time import perf_counter

from pairvpr.errors import SourceError
from pairvpr.runtime.image import PICTURE_EXTENSIONS, load_picture
from pairvpr.runtime.sources.base import Frame, Source, Wanted, every_frame


class PictureSource(Source):
    """One picture file; a fault in it is raised."""

    live = False
    single = True
    length: int | None = 1

    def __init__(self, path: Path) -> None:
        self._path = path
        self.names: Sequence[str] | None = (path.name,)
        self.origin = str(path.resolve().parent)

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """The picture, if it is wanted."""
        if not wanted(0, self._path.name, None):
            return
        started = perf_counter()
        picture = load_picture(self._path)
        yield Frame(self._path.name, None, picture, None, (perf_counter() - started) * 1e3, path=self._path)

    def close(self) -> None:
        """Nothing stays open between frames."""


class FolderSource(Source):
    """All pictures of a folder and its subfolders; one that cannot be read gives a Frame with its error."""

    live = False
    single = False

    def __init__(self, folder: Path) -> None:
        self._pictures = list_pictures(folder)
        self.length: int | None = len(self._pictures)
        self.names: Sequence[str] | None = [name for name, _ in self._pictures]
        self.origin = str(folder.resolve())

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """The pictures that are wanted; the others are not opened."""
        for number, (name, path) in enumerate(self._pictures):
            if wanted(number, name, None):
                yield picture_frame(name, None, path)

    def close(self) -> None:
        """Nothing stays open between frames."""


def picture_frame(name: str, timestamp: float | None, path: Path) -> Frame:
    """The Frame of a picture file, with its error if it cannot be read."""
    picture, error = None, None
    started = perf_counter()
    try:
        picture = load_picture(path)
    except SourceError as fault:
        error = str(fault)
    return Frame(name, timestamp, picture, error, (perf_counter() - started) * 1e3, path=path)


def list_pictures(folder: str | Path) -> list[tuple[str, Path]]:
    """Names (posix paths relative to `folder`) and paths of its pictures, subfolders included.

    In natural order (2.jpg before 10.jpg), without hidden files and folders. Raises SourceError if the folder
    or one inside it cannot be read, or if there is no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder: name a folder of pictures")
    paths = {path.relative_to(folder).as_posix(): path for path in _walk(folder, (folder.resolve(),))}
    if not paths and (folder / "map.sqlite").exists():
        raise SourceError(f"{folder} is a map, no pictures: name a folder of pictures here, and the map as --db")
    if not paths:
        known = " ".join(PICTURE_EXTENSIONS)
        raise SourceError(f"{folder} holds no pictures ({known}): name a folder that does")
    return sorted(paths.items(), key=lambda item: (natural_order(item[0]), item[0]))


def natural_order(name: str) -> list[list[str | int]]:
    """A sorting key under which numbers in a path's parts count as numbers."""
    # Splitting by a group alternates text and number, so that the same positions always compare.
    split = [re.split(r"([0-9]+)", part) for part in PurePosixPath(name).parts]
    return [[int(s) if i % 2 else s for i, s in enumerate(part)] for part in split]


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The picture files below `folder`; linked folders are entered unless they lead back up (`above`)."""
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
            if not entry.name.isprintable():  # an answer names the picture, one a line, in UTF-8
                raise SourceError(f"{str(entry)!r} has a name that cannot be printed: rename it")
            yield entry
