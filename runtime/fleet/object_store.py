"""Open files in object stores through fsspec. No other module imports fsspec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.core import url_to_fs

from pairvpr.errors import one_line


class ObjectStore:
    """Open the objects below an address. Plug-ins raise exceptions of their own, which become OSError here."""

    def __init__(self, url: str) -> None:
        """Connect as the plug-in for the address does. Raises OSError, and ImportError if there is no plug-in."""
        with _plugin():
            self._files, self._root = url_to_fs(url)

    def open(self, key: str) -> OpenObject:
        """Open an object by its name below the address. Raises FileNotFoundError if it is missing, and OSError."""
        with _plugin():
            return OpenObject(self._files.open(f"{self._root.rstrip('/')}/{key}", "rb"))


class OpenObject:
    """An open object, read from the beginning on."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`, and none at the end. Raises OSError."""
        with _plugin():
            return bytes(self._raw.read(size))

    def close(self) -> None:
        """Close the object."""
        self._raw.close()


@contextmanager
def _plugin() -> Iterator[None]:
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:  # each plug-in has its own classes: for missing credentials, a lost connection
        raise OSError(f"{type(error).__name__}: {one_line(error)}") from error
