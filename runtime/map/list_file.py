"""The file of a map's inverted lists, and its entry in the map's settings."""

from __future__ import annotations

import re
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from pairvpr.errors import MapError, one_line
from pairvpr.files import check_folder, find_partials, open_member, write_atomically
from pairvpr.runtime.inverted_lists import InvertedLists, ListRecall
from pairvpr.runtime.map.errors import reading, writing
from pairvpr.validation import check_int, check_keys, check_real

FOLDER = "lists"
GROWTH = 1.5
"""The lists are made again when the map has this many times the pictures that they were made of."""

_MOST_LISTS = 1 << 20
_FILE = re.compile(r"\d{6,}\.safetensors")


@dataclass(frozen=True)
class ListEntry:
    """The entry of the lists in the map's settings.

    number: number of the file.
    crc: crc32 of the file.
    last_id: id of the last picture that is in a list. Later ones are compared all.
    pictures: number of pictures in the lists.
    lists, probes: number of lists, and of those that a search compares.
    at_1, at_100, compared, queries: see `ListRecall`.
    """

    number: int
    crc: int
    last_id: int
    pictures: int
    lists: int
    probes: int
    at_1: float
    at_100: float
    compared: float
    queries: int

    @property
    def file(self) -> str:
        """Return the name of the file in FOLDER."""
        return f"{self.number:06d}.safetensors"

    def to_json(self) -> dict[str, Any]:
        """Return the value that the settings hold."""
        return asdict(self)

    @staticmethod
    def from_json(value: object) -> ListEntry:
        """Decode the value that the settings hold. Raises ValueError."""
        fields = check_keys(value, "its entry of lists", set(ListEntry.__dataclass_fields__))
        highest = {"crc": 2**32 - 1, "lists": _MOST_LISTS, "probes": _MOST_LISTS}
        shares = {"at_1", "at_100", "compared"}
        numbers: dict[str, Any] = {
            name: check_real(held, f"{name} of its lists", 0, 1)
            if name in shares
            else check_int(held, f"{name} of its lists", 0 if name == "crc" else 1, highest.get(name, 2**63 - 1))
            for name, held in fields.items()
        }
        return ListEntry(**numbers)


@dataclass(frozen=True)
class StoredLists:
    """The lists of a map as its file has them. `ids` (n,) are those of the pictures, ascending."""

    ids: npt.NDArray[np.int64]
    lists: InvertedLists

    def of_rows(self, ids: npt.NDArray[np.int64], path: Path) -> InvertedLists:
        """Return the lists of the first rows of the map `path`, which has these ids (m,), ascending.

        Raises MapError if the file lacks pictures of the map.
        """
        ids = ids[: np.searchsorted(ids, self.ids[-1], "right")]
        at = np.searchsorted(self.ids, ids)
        if (self.ids[at] != ids).any():
            raise _damage(path / FOLDER, "they lack pictures of the map")
        return InvertedLists(self.lists.centroids, self.lists.assigned[at], self.lists.probes)


def write_lists(path: Path, number: int, stored: StoredLists, recall: ListRecall) -> ListEntry:
    """Write the file of the map `path`, and return its entry, which nothing refers to yet. Raises MapError."""
    content = safetensors.numpy.save(
        {
            "centroids": np.ascontiguousarray(stored.lists.centroids, "<f4"),
            "ids": np.ascontiguousarray(stored.ids, "<i8"),
            "lists": np.ascontiguousarray(stored.lists.assigned, "<i4"),
        }
    )
    entry = ListEntry(
        number,
        zlib.crc32(content),
        int(stored.ids[-1]),
        len(stored.ids),
        len(stored.lists.centroids),
        stored.lists.probes,
        **asdict(recall),
    )
    folder = path / FOLDER
    with writing(folder):
        folder.mkdir(exist_ok=True)
    with reading(folder):
        check_folder(folder)
    with writing(folder / entry.file), write_atomically(folder / entry.file) as partial:
        partial.write_bytes(content)
    return entry


def read_lists(path: Path, entry: ListEntry, dim: int) -> StoredLists:
    """Read the lists of the map `path`, whose descriptors have `dim` numbers. Raises MapError unless they are whole."""
    folder = path / FOLDER
    try:
        check_folder(folder)
        with open_member(folder, entry.file) as stream:
            most = 4096 + 4 * dim * entry.lists + 12 * entry.pictures
            content = stream.read(most + 1) or b""
        if len(content) > most or zlib.crc32(content) != entry.crc:
            raise ValueError("it is not as it was written")
        return _decode(content, entry, dim)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _damage(folder / entry.file, error) from error


def _decode(content: bytes, entry: ListEntry, dim: int) -> StoredLists:
    """Decode a file. Raises ValueError or SafetensorError. Whoever made it made its checksum."""
    tensors = safetensors.numpy.load(content)
    shapes = {"centroids": (entry.lists, dim), "ids": (entry.pictures,), "lists": (entry.pictures,)}
    types = {"centroids": "float32", "ids": "int64", "lists": "int32"}
    found = {name: (array.shape, array.dtype.name) for name, array in tensors.items()}
    if found != {name: (shape, types[name]) for name, shape in shapes.items()}:
        raise ValueError("it does not hold the lists that the map names")
    ids, lists = tensors["ids"], tensors["lists"].astype(np.int64)
    if not np.isfinite(tensors["centroids"]).all() or lists.min() < 0 or lists.max() >= entry.lists:
        raise ValueError("its numbers are no lists")
    if ids[0] < 1 or ids[-1] != entry.last_id or (np.diff(ids) <= 0).any():
        raise ValueError("its ids do not rise")
    return StoredLists(ids, InvertedLists(tensors["centroids"], lists, min(entry.probes, entry.lists)))


def _damage(file: Path, fault: object) -> MapError:
    db = file.parent if file.name == FOLDER else file.parent.parent
    return MapError(
        f"{file} cannot be used ({one_line(fault)}): make the lists again with `pairvpr map index --ivf --db {db}`, or "
        "go without with --precision float16"
    )


def remove_other_lists(path: Path, entry: ListEntry | None) -> None:
    """Delete the files of lists that the map `path` does not refer to. Raises MapError."""
    folder = path / FOLDER
    if not folder.is_dir() or folder.is_symlink():
        return
    with writing(folder):
        for file in folder.iterdir():
            if _FILE.fullmatch(file.name) and (entry is None or file.name != entry.file):
                file.unlink()
        for file in find_partials(folder):
            file.unlink()


def next_number(path: Path) -> int:
    """Return a number that no file of lists has. A file is never replaced, because a reader may be about to open it."""
    folder = path / FOLDER
    files = [file.name for file in folder.iterdir() if _FILE.fullmatch(file.name)] if folder.is_dir() else []
    return max((int(name.partition(".")[0]) for name in files), default=0) + 1
