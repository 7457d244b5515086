"""Read a fleet's files from a folder, an HTTP server of plain files or an object store."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPResponse
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pairvpr.errors import MapError, one_line
from pairvpr.files import open_member, write_atomically
from pairvpr.runtime.bundle_info import FileInfo
from pairvpr.runtime.map.errors import writing

if TYPE_CHECKING:
    from pairvpr.runtime.fleet.object_store import OpenObject

TIMEOUT = 30.0
"""Seconds that a server may be silent."""
_BLOCK = 1 << 20
_GONE = (404, 410)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a Path keeps one slash of two


class Stream:
    """An open file of a fleet, read from the beginning on."""

    def __init__(self, where: str, raw: IO[bytes] | FileIO | HTTPResponse | OpenObject) -> None:
        self._where, self._raw = where, raw

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`, and none at the end. Raises MapError."""
        with _reading(self._where):
            return self._raw.read(size) or b""

    def close(self) -> None:
        """Close the file."""
        self._raw.close()


class Storage(ABC):
    """Give access to a fleet's files by their names, with `/` between the parts.

    if_absent: the remedy if there is no fleet.
    if_cut: the remedy for a file that is shorter than the fleet lists.
    """

    if_absent: str
    if_cut: str

    @abstractmethod
    def where(self, file: str) -> str:
        """Return the address of a file for messages."""

    @abstractmethod
    def open(self, file: str) -> Stream | None:
        """Open a file. Return None if it is missing. Raises MapError."""

    def read(self, file: str, limit: int) -> bytes | None:
        """Return the content of a file of at most `limit` bytes, or None if it is missing. Raises MapError."""
        stream = self.open(file)
        if stream is None:
            return None
        with closing(stream):
            content = bytearray()
            while block := stream.read(min(_BLOCK, limit + 1 - len(content))):
                content += block
        if len(content) > limit:
            raise MapError(f"{self.where(file)} has more than {limit} bytes: it is not of a fleet")
        return bytes(content)


class FolderStorage(Storage):
    """A fleet in a folder."""

    if_absent = "publish maps there with `pairvpr fleet adopt`"
    if_cut = "publish its map again with `pairvpr fleet adopt`, or restore the fleet from a copy"

    def __init__(self, path: Path) -> None:
        """Take a folder, which may be missing. Raises MapError for an address."""
        if _ADDRESS.match(str(path)):
            address = re.sub(":/+", "://", str(path), count=1)
            raise MapError(f"{address} is an address, which only `pairvpr fleet pull` reads: give the fleet's folder")
        self.path = path

    def where(self, file: str) -> str:
        """Return the path of a file."""
        return str(self.path / file)

    def open(self, file: str) -> Stream | None:
        """Open a regular file, see `Storage.open`."""
        path = self.path / file
        with _reading(str(path)):
            try:
                return Stream(str(path), open_member(path.parent, path.name))
            except (FileNotFoundError, NotADirectoryError):
                return None


class HttpStorage(Storage):
    """A fleet on an HTTP server of plain files."""

    if_absent = "check the address, which is that of the folder with fleet.json"
    if_cut = "run the command again"

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") + "/"

    def where(self, file: str) -> str:
        """Return the address of a file."""
        return self._url + urllib.parse.quote(file)

    def open(self, file: str) -> Stream | None:
        """Request a file, see `Storage.open`."""
        url = self.where(file)
        with _reading(url):
            try:
                return Stream(url, urllib.request.urlopen(url, timeout=TIMEOUT))
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in _GONE:
                    return None
                raise


class ObjectStorage(Storage):
    """A fleet in an object store, or anywhere else that fsspec has a plug-in for."""

    if_absent = HttpStorage.if_absent
    if_cut = HttpStorage.if_cut

    def __init__(self, url: str) -> None:
        """Take an address such as s3://bucket/fleet. Raises MapError without fsspec or its plug-in."""
        self._url = url.rstrip("/") + "/"
        try:
            from pairvpr.runtime.fleet.object_store import ObjectStore
        except ImportError as error:
            raise MapError(
                f'{url} needs fsspec ({one_line(error)}): run pip install "pairvpr[objects]" and its plug-in for the '
                "address, such as s3fs"
            ) from error
        try:
            self._store = ObjectStore(url)
        except ImportError as error:
            raise MapError(f"{url} needs a plug-in of fsspec ({one_line(error)}): install it with pip") from error
        except OSError as error:
            raise MapError(
                f"{url} cannot be read ({one_line(error)}): give a folder, or an address that begins with http://, "
                "https://, s3:// or another name that fsspec knows"
            ) from error

    def where(self, file: str) -> str:
        """Return the address of a file."""
        return self._url + file

    def open(self, file: str) -> Stream | None:
        """Open an object, see `Storage.open`."""
        where = self.where(file)
        with _reading(where):
            try:
                return Stream(where, self._store.open(file))
            except FileNotFoundError:
                return None


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn exceptions of reading from a disk or a server into MapError."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise MapError(
            f"{where} cannot be read ({one_line(reason)}): check the network or the disk, and run the command again"
        ) from error


def open_storage(fleet: str | Path) -> Storage:
    """Return the storage of a fleet: a folder, or an address such as http://host/fleet or s3://bucket/fleet.

    Raises MapError for an address that nothing here can read.
    """
    text = str(fleet)
    if text.startswith(("http://", "https://")):
        return HttpStorage(text)
    if _ADDRESS.match(text):
        return ObjectStorage(text)
    return FolderStorage(Path(fleet))


def fetch(storage: Storage, file: str, info: FileInfo, target: Path) -> None:
    """Copy a file of a fleet to `target`, in one step. Raises MapError unless its content has this size and sha256."""
    where, digest, size = storage.where(file), hashlib.sha256(), 0
    source = storage.open(file)
    if source is None:
        raise MapError(f"{where} is missing: restore the fleet from a copy, or run the command again later")
    with closing(source), writing(target), write_atomically(target) as partial:
        with partial.open("wb") as copy:
            while size <= info.bytes and (block := source.read(_BLOCK)):
                digest.update(block)
                size += len(block)
                copy.write(block)
        if size < info.bytes:
            raise MapError(f"{where} was cut short ({size} of {info.bytes} bytes): {storage.if_cut}")
        if size > info.bytes or digest.hexdigest() != info.sha256:
            raise MapError(
                f"{where} is damaged (its sha256 is not the one that the fleet lists): restore it from a copy"
            )


def describe_file(path: Path) -> FileInfo:
    """Return size and sha256 of a file. Raises OSError, and ValueError unless it is a regular file."""
    digest = hashlib.sha256()
    with open_member(path.parent, path.name) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
        return FileInfo(os.fstat(stream.fileno()).st_size, digest.hexdigest())
