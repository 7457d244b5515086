"""Where the service listens: a Unix socket, or a port of this computer."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pairvpr.errors import ServiceError

FORMS = "unix:PATH or HOST:PORT, as unix:/run/places.sock or 127.0.0.1:7411"
BACKLOG = 100  # connections that wait to be taken, while a map is opened say
CONNECT_TIMEOUT = 1.0  # seconds in which a service that lives takes a connection


class Listener:
    """A socket that listens, and the address where it can be reached; use it as a context manager.

    The file of a Unix socket goes when it is closed.
    """

    def __init__(self, address: str, *, remote: bool = False) -> None:
        """Listen at `address`, one of FORMS; port 0 takes any that is free.

        remote: also where other computers can connect.
        Raises ServiceError where the address is none, is in use, or may not be had.
        """
        kind, _, rest = address.partition(":")
        self._file: Path | None = None
        if kind == "unix":
            self._file = Path(rest)
            self.socket = _bind_file(self._file, address)
        else:
            self.socket = _bind_port(address, remote)
        self._inode = _inode(self._file) if self._file else None
        self.socket.listen(BACKLOG)
        bound = self.socket.getsockname()
        self.address = address if self._file else f"{address.rpartition(':')[0]}:{bound[1]}"

    def close(self) -> None:
        """Stop listening, and remove the socket's file if it is still this one's; may be called again."""
        self.socket.close()
        if self._file is not None and _inode(self._file) == self._inode:
            self._file.unlink()
        self._file = None

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bind_file(path: Path, address: str) -> socket.socket:
    if path == Path():
        raise ServiceError(f"{address!r} names no file: give {FORMS}")
    listening = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise ServiceError(
            f"{path} cannot be listened at ({error.strerror or error}): choose a path of at most 100 letters in a "
            "folder that exists and that you may write, such as $XDG_RUNTIME_DIR"
        ) from error
    except BaseException:
        listening.close()
        raise
    return listening


def _remove_stale(path: Path) -> None:
    """Remove the socket of a service that is gone; raises ServiceError for anything else that is there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ServiceError(f"{path} is there and is no socket: choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_TIMEOUT)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:  # nobody listens any more
            path.unlink()
            return
        except FileNotFoundError:  # it went just now
            return
        except TimeoutError:  # somebody listens and is busy
            pass
    raise ServiceError(f"another service listens at {path}: stop it, or choose another path")


def _bind_port(address: str, remote: bool) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        raise ServiceError(f"{address!r} is no address: give {FORMS}; a host is localhost or an IP address") from None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ServiceError(f"{address!r} has no port from 0 to 65535: give {FORMS}")
    if not (ip.is_loopback or remote):
        raise ServiceError(
            f"{address}: other computers could connect there, and there is neither password nor encryption; give "
            "127.0.0.1, or --allow-remote if that is meant"
        )
    listening = socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port is free again at once
        listening.bind((host, int(port)))
    except OSError as error:
        listening.close()
        raise ServiceError(f"{address} cannot be listened at ({error.strerror}): choose another port") from error
    return listening


def _inode(path: Path) -> tuple[int, int] | None:
    with suppress(FileNotFoundError):
        found = os.lstat(path)
        return found.st_dev, found.st_ino
    return None
