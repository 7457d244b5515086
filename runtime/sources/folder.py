"""Read a picture file or a folder of them."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from time import perf_counter

from pairvpr.errors import SourceError, one_line
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.picture_formats import PICTURE_EXTENSIONS, UNREAD_EXTENSIONS
from pairvpr.runtime.remarks import remark
from pairvpr.runtime.sources.base import Frame, Source, Wanted, every_frame

# Thumbnails and deleted files of Synology, QNAP, Windows and macOS.
SYSTEM_FOLDERS = ("@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "$recycle.bin", "__macosx")

log = logging.getLogger(__name__)


class PictureSource(Source):
    """Provide one picture file. A fault in the file is raised."""

    single = True
    length = 1

    def __init__(self, path: Path) -> None:
        self._path = path
        self.names = (path.name,)
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

    def __init__(self, folder: Path) -> None:
        self._pictures = list_pictures(folder)
        self.length = len(self._pictures)
        self.names = [name for name, _ in self._pictures]
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
    are left out. Other things that are left out are remarked: pictures of formats that are not read, names with control
    characters, folders without rights, dead links, and the folders of thumbnails and deleted files of NAS systems.

    Raises SourceError if the folder cannot be read, or holds no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder: name a folder of pictures")
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise SourceError(f"the folder {folder} cannot be read ({error.strerror}): check its rights") from error
    listing = _Listing()
    listing.walk(folder, (folder.resolve(),))
    paths = {path.relative_to(folder).as_posix(): path for path in listing.pictures}
    left_out = [
        f"{len(paths_)} {kind} {treatment}; first: {one_line(repr(str(paths_[0])))}"
        for (kind, treatment), paths_ in sorted(listing.left_out.items())
    ]
    if not paths and (folder / "map.sqlite").exists():
        raise SourceError(
            f"{folder} is a map, not a folder of pictures: name a folder of pictures here, and the map as --db"
        )
    if not paths:
        known = " ".join(PICTURE_EXTENSIONS)
        raise SourceError("; ".join([f"{folder} holds no pictures ({known}): name a folder that does", *left_out]))
    for text in left_out:
        remark(f"{folder}: {text}")
    if listing.systems:
        log.warning(
            "%s: folders of thumbnails and deleted files are passed over: %s",
            folder,
            ", ".join(sorted(listing.systems)),
        )
    return sorted(paths.items(), key=lambda item: (natural_order(item[0]), item[0]))


def natural_order(name: str) -> list[list[str | int]]:
    """Return a sorting key that compares the numbers in a path's parts by value."""
    # Splitting by a group alternates text and number, so that the same positions always compare.
    split = [re.split(r"([0-9]+)", part) for part in PurePosixPath(name).parts]
    return [[int(s) if i % 2 else s for i, s in enumerate(part)] for part in split]


class _Listing:
    """Find the picture files below a folder.

    pictures: the files that are read.
    left_out: the paths that should have been read, by kind (plural) and treatment.
    systems: names of passed over folders of a NAS or an archive.
    """

    def __init__(self) -> None:
        self.pictures: list[Path] = []
        self.left_out: dict[tuple[str, str], list[Path]] = defaultdict(list)
        self.systems: set[str] = set()

    def walk(self, folder: Path, above: tuple[Path, ...]) -> None:
        """Find the pictures below `folder`. A linked folder is entered unless it leads back up (`above`)."""
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            self.left_out["folders", "cannot be read and are left out: check their rights"].append(folder)
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                self._take(entry, above)
            except OSError:
                self.left_out["files", "cannot be accessed and are left out: check their rights"].append(entry)

    def _take(self, entry: Path, above: tuple[Path, ...]) -> None:
        extension = entry.suffix.lower()
        if entry.is_dir():
            if entry.name.lower() in SYSTEM_FOLDERS:
                self.systems.add(entry.name)
            elif (resolved := entry.resolve()) not in above:
                self.walk(entry, (*above, resolved))
        elif entry.is_symlink() and not entry.exists():
            self.left_out["links", "lead nowhere and are left out"].append(entry)
        elif extension in UNREAD_EXTENSIONS:
            self.left_out[f"{extension} pictures", f"are not read: {UNREAD_EXTENSIONS[extension]}"].append(entry)
        elif extension in PICTURE_EXTENSIONS:
            # An answer is one line of UTF-8 that holds the name.
            if is_clean(entry.name):
                self.pictures.append(entry)
            else:
                self.left_out["names", "hold control characters or no text and are left out: rename the files"].append(
                    entry
                )


def is_clean(name: str) -> bool:
    """Return whether a file name fits on one line of UTF-8: no control character, line end or undecodable byte."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)
