"""One client of the service: HTTP/1.1 requests in, JSON out, through h11; the only module that imports it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
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
LINGER = 2.0  # seconds in which a client that is refused may still send, so that it comes to read why


@dataclass(frozen=True)
class Limits:
    """What a client may ask of the service.

    clients: connections at once. waiting: requests that wait while one is answered. body: bytes of a request's body.
    memory: bytes of all bodies at once. pixels: of a picture. idle: seconds without a request after which a
    connection is closed. patience: seconds for a whole request to arrive, and for an answer to be taken.
    """

    clients: int = 64
    waiting: int = 16
    body: int = 16 << 20
    memory: int = 128 << 20
    pixels: int = 25_000_000
    idle: float = 60.0
    patience: float = 10.0


class RefusedError(Exception):
    """A request that is not answered: an HTTP status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Request:
    """What a client asks, without the body. length: the body's bytes as announced, 0 where they are not."""

    method: str
    path: str
    parameters: dict[str, str]
    length: int


class HttpConnection:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits) -> None:
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._http = h11.Connection(h11.SERVER)

    @property
    def abandoned(self) -> bool:
        """Whether the client has closed its side."""
        return self._reader.at_eof()

    async def request(self) -> Request | None:
        """The next request's head; None where the client says nothing more.

        Raises RefusedError for what is no HTTP, and for a head that does not arrive in time.
        """
        event = self._next_event()
        if event is h11.NEED_DATA:
            try:
                await asyncio.wait_for(self._read(), self._limits.idle)
            except asyncio.TimeoutError:
                return None
            event = await self._in_time(self._event())
        return _request(event) if isinstance(event, h11.Request) else None

    async def body(self, take: Callable[[int], None]) -> bytearray:
        """The body of the request; `take` is asked before each part, with its bytes, and may raise RefusedError.

        Raises RefusedError where it is damaged or not here in time, too.
        """
        return await self._in_time(self._body(take))

    async def send(self, status: int, content: bytes, *, last: bool = False) -> bool:
        """Answer the request with JSON; whether the client may ask again, which it may not if this is the `last`."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return False
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        if last:
            headers.append(("Connection", "close"))
        await self._write(h11.Response(status_code=status, headers=headers), h11.Data(content), h11.EndOfMessage())
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            return True
        return False

    async def linger(self) -> None:
        """Take what the client still sends: closed at once, the connection would drop the answer it has not read."""
        if self._writer.can_write_eof():
            self._writer.write_eof()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._discard(), LINGER)

    async def _discard(self) -> None:
        while await self._reader.read(CHUNK):
            pass

    async def _body(self, take: Callable[[int], None]) -> bytearray:
        content = bytearray()
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise ConnectionError("the client went in the middle of a request")
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
            raise RefusedError(error.error_status_hint, f"not understood: {error}") from error

    async def _read(self) -> None:
        self._http.receive_data(await self._reader.read(CHUNK))

    async def _write(self, *events: h11.Event) -> None:
        for event in events:
            self._writer.write(self._http.send(event) or b"")
        try:
            await asyncio.wait_for(self._writer.drain(), self._limits.patience)
        except asyncio.TimeoutError:
            self._writer.transport.abort()
            raise ConnectionError("the client does not take its answer") from None

    async def _in_time(self, arriving: Coroutine[Any, Any, T]) -> T:
        try:
            return await asyncio.wait_for(arriving, self._limits.patience)
        except asyncio.TimeoutError:
            raise RefusedError(408, f"the request took more than {self._limits.patience:g} s to arrive") from None


def _request(head: h11.Request) -> Request:
    """The parts of a request's head; raises RefusedError where its target is none."""
    try:
        target = urlsplit(head.target.decode("ascii"))
        pairs = parse_qsl(target.query, keep_blank_values=True, strict_parsing=bool(target.query), errors="strict")
    except ValueError as error:
        raise RefusedError(400, f"the request's target is damaged ({error})") from error
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        raise RefusedError(400, "a parameter is given twice")
    length = next((int(value) for name, value in head.headers if name == b"content-length"), 0)
    return Request(head.method.decode("ascii"), target.path, parameters, length)
