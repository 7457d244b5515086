"""One connection of the service: HTTP/1.1 requests in, JSON out. The only module that imports h11."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pairvpr.errors import ServiceError

try:
    import h11
except ImportError as error:
    raise ServiceError(f'the service needs h11 ({error}); run pip install "pairvpr[serve]"') from error

T = TypeVar("T")

CHUNK = 1 << 16
LINGER = 2.0  # seconds in which a refused client may go on sending, so that it can read the reason


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    clients: connections at once.
    waiting: requests that wait while another is answered.
    body: bytes of a request's body.
    memory: bytes of all bodies at once.
    pixels: pixels of a picture.
    idle: seconds without a request after which a connection is closed.
    patience: seconds for a whole request to arrive, and for the client to read an answer.
    """

    clients: int = 64
    waiting: int = 16
    body: int = 16 << 20
    memory: int = 128 << 20
    pixels: int = 25_000_000
    idle: float = 60.0
    patience: float = 10.0


class RefusedError(Exception):
    """A request is refused, with an HTTP status and a reason.

    allowed: the methods that the path takes, for status 405.
    """

    def __init__(self, status: int, message: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.allowed = allowed


@dataclass(frozen=True)
class Request:
    """The head of a request.

    length: bytes of the body as announced, 0 if not announced.
    host, origin: the headers of these names, "" without.
    """

    method: str
    path: str
    parameters: dict[str, str]
    length: int
    host: str
    origin: str


class HttpConnection:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits) -> None:
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._http = h11.Connection(h11.SERVER)
        self._method = b""
        self.idle_since: float | None = None  # the loop's time since which no byte of a request has come

    @property
    def abandoned(self) -> bool:
        """True if the client has closed its side."""
        return self._reader.at_eof()

    async def request(self) -> Request | None:
        """Read the head of the next request. Return None if the client sends no more.

        Raises RefusedError if it is not HTTP or does not arrive in time.
        """
        event = self._next_event()
        if event is h11.NEED_DATA:
            self.idle_since = asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._read(), self._limits.idle)
            except asyncio.TimeoutError:
                return None
            finally:
                self.idle_since = None
            event = await self._in_time(self._event())
        if not isinstance(event, h11.Request):
            return None
        self._method = event.method
        return _request(event)

    def dismiss(self) -> None:
        """Make `request` return None, for a client without a request."""
        self.idle_since = None
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]  # data after the end would be a fault
        self._reader.feed_eof()

    async def body(self, take: Callable[[int], None]) -> bytearray:
        """Read the body of the request.

        take: called with the number of bytes of each part before the part is kept; it may raise RefusedError.
        Raises RefusedError if the body is damaged or does not arrive in time.
        """
        return await self._in_time(self._body(take))

    async def send(self, status: int, content: bytes, *, last: bool = False, allowed: Sequence[str] = ()) -> bool:
        """Answer the request with JSON. Return whether the client may send another; it may not after the `last`.

        allowed: the methods that the path takes. None are named if it is empty.
        """
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return False
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        if allowed:
            headers.append(("Allow", ", ".join(allowed)))
        if last:
            headers.append(("Connection", "close"))
        body = [] if self._method == b"HEAD" else [h11.Data(content)]
        await self._write(h11.Response(status_code=status, headers=headers), *body, h11.EndOfMessage())
        if not self._is_complete():
            return False
        self._http.start_next_cycle()
        return True

    def _is_complete(self) -> bool:
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def linger(self) -> None:
        """Read and drop the rest of the request. Closing at once would lose the answer that the client has not read."""
        if self._writer.can_write_eof():
            self._writer.write_eof()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._discard(), LINGER)

    async def close(self) -> None:
        """Close the connection when the client has read its answer, or after the patience of the limits.

        Until then the system keeps the socket and the answer. So the caller counts the connection until then.
        """
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), self._limits.patience)
        except asyncio.TimeoutError:
            self._writer.transport.abort()

    async def _discard(self) -> None:
        while await self._reader.read(CHUNK):
            pass

    async def _body(self, take: Callable[[int], None]) -> bytearray:
        content = bytearray()
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise ConnectionError("the client left in the middle of a request")
            take(len(event.data))
            content += event.data
        return content

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._write(h11.InformationalResponse(status_code=100, headers=[]))
            await self._read()
        return event

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise RefusedError(error.error_status_hint, f"not HTTP/1.1: {error}") from error

    async def _read(self) -> None:
        self._http.receive_data(await self._reader.read(CHUNK))

    async def _write(self, *events: h11.Event) -> None:
        for event in events:
            self._writer.write(self._http.send(event) or b"")
        try:
            await asyncio.wait_for(self._writer.drain(), self._limits.patience)
        except asyncio.TimeoutError:
            self._writer.transport.abort()
            raise ConnectionError("the client does not read its answer") from None

    async def _in_time(self, arriving: Coroutine[Any, Any, T]) -> T:
        try:
            return await asyncio.wait_for(arriving, self._limits.patience)
        except asyncio.TimeoutError:
            raise RefusedError(408, f"the request took more than {self._limits.patience:g} s to arrive") from None


def _request(head: h11.Request) -> Request:
    """Parse the head of a request. Raises RefusedError for an invalid target."""
    try:
        target = urlsplit(head.target.decode("ascii"))
        pairs = parse_qsl(target.query, keep_blank_values=True, strict_parsing=bool(target.query), errors="strict")
    except ValueError as error:
        raise RefusedError(400, f"the request's target is damaged ({error})") from error
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        raise RefusedError(400, "a parameter is given twice")
    headers = {name: value.decode("latin-1") for name, value in head.headers}
    length = int(headers.get(b"content-length", 0))
    host, origin = headers.get(b"host", ""), headers.get(b"origin", "")
    return Request(head.method.decode("ascii"), target.path, parameters, length, host, origin)


def names_this_computer(host: str) -> bool:
    """Return whether a Host header, or the part of an Origin after "://", is localhost or a loopback address."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
