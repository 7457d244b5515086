"""Listen at a Unix socket or a port of this computer."""

from __future__ import annotations

import errno
import ipaddress
import os
import secrets
import socket
import stat
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from pairvpr.errors import ServiceError

FORMS = "unix:PATH or HOST:PORT, such as unix:/run/places.sock or 127.0.0.1:7411"
BACKLOG = 100  # connections waiting to be accepted, such as while the map is opened
LONGEST = 107  # bytes of a socket's path
CONNECT_TIMEOUT = 1.0  # seconds in which a running service accepts a connection


class Listener(AbstractContextManager["Listener"]):
    """A listening socket and its address. Use it as a context manager.

    Closing it removes the file of a Unix socket.
    is_loopback: whether it is a port of this computer alone.
    """

    def __init__(self, address: str, *, remote: bool = False) -> None:
        """Listen at `address`, in one of the FORMS. Port 0 takes any free port.

        remote: allow an address that other computers can reach.
        Raises ServiceError if the address is invalid, in use or not permitted.
        """
        kind, _, rest = address.partition(":")
        self._file: Path | None = None
        if kind == "unix":
            self._file = Path(rest)
            self.socket, self._inode = _bind_file(self._file, address)
        else:
            self.socket = _bind_port(address, remote)
        self.socket.listen(BACKLOG)
        bound = self.socket.getsockname()
        self.address = address if self._file else f"{address.rpartition(':')[0]}:{bound[1]}"
        # Pages in a browser reach a loopback port. They send the name under which they found it, and their own.
        self.is_loopback = self._file is None and ipaddress.ip_address(bound[0]).is_loopback

    def close(self) -> None:
        """Stop listening, and remove the socket's file if it still belongs to this listener. May be called again."""
        self.socket.close()
        if self._file is not None and _inode(self._file) == self._inode:
            self._file.unlink()
        self._file = None

    def __exit__(self, *_: object) -> None:
        self.close()


def _bind_file(path: Path, address: str) -> tuple[socket.socket, tuple[int, int] | None]:
    """Listen at a path, and return the socket and the inode of its file. Of several starts at once, one gets it."""
    if path == Path():
        raise ServiceError(f"{address!r} names no file: give --listen {FORMS}")
    listening = socket.socket(socket.AF_UNIX)
    own = path.with_name(f".{secrets.token_hex(4)}")
    try:
        if len(os.fsencode(path)) > LONGEST:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        listening.bind(str(own))
        listening.listen(BACKLOG)
        inode = _inode(own)  # later, another start may have the file aside for a moment
        try:
            _remove_stale(path)
            # The socket gets its name when it listens already. A link never replaces another's socket.
            os.link(own, path)
        finally:
            own.unlink()
    except FileExistsError:
        listening.close()
        raise _taken(path) from None
    except OSError as error:
        listening.close()
        raise ServiceError(
            f"{path}: cannot listen there ({error.strerror or error}); give --listen a path of at most 100 letters "
            "in an existing folder that you may write, such as $XDG_RUNTIME_DIR"
        ) from error
    except BaseException:
        listening.close()
        raise
    return listening, inode


def _remove_stale(path: Path) -> None:
    """Remove the socket of a service that has ended. Raises ServiceError if anything else is at the path."""
    with suppress(FileNotFoundError):  # there is none, or it was removed just now
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ServiceError(f"{path} exists and is not a socket: give --listen another path")
        if _is_alive(path):
            raise _taken(path)
        # Another start may have put its socket there meanwhile. Of two that rename it, one finds it.
        aside = path.with_name(f".{secrets.token_hex(4)}")
        path.rename(aside)
        try:
            if _is_alive(aside):
                with suppress(FileExistsError):
                    os.link(aside, path)
                raise _taken(path)
        finally:
            aside.unlink()


def _is_alive(path: Path) -> bool:
    """Return whether a service listens at the socket file. Raises FileNotFoundError if it is gone."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_TIMEOUT)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:  # its service has ended
            return False
        except TimeoutError:  # its service is busy
            pass
    return True


def _taken(path: Path) -> ServiceError:
    return ServiceError(f"another service listens at {path}: stop it, or give --listen another path")


def _bind_port(address: str, remote: bool) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        raise ServiceError(
            f"{address!r} is not an address: give --listen {FORMS}; a host is localhost or an IP address"
        ) from None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ServiceError(f"{address!r} has no port from 0 to 65535: give --listen {FORMS}")
    if not (ip.is_loopback or remote):
        raise ServiceError(
            f"{address}: other computers could connect, without password or encryption; give --listen 127.0.0.1:PORT, "
            "or add --allow-remote"
        )
    listening = socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port is free again at once
        listening.bind((host, int(port)))
    except OSError as error:
        listening.close()
        raise ServiceError(f"{address}: cannot listen there ({error.strerror}); give --listen another port") from error
    return listening


def _inode(path: Path) -> tuple[int, int] | None:
    with suppress(FileNotFoundError):
        found = os.lstat(path)
        return found.st_dev, found.st_ino
    return None
