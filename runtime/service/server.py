"""Recognize pictures for other programs over HTTP, in the order of the requests."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import signal
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

from pairvpr import __version__
from pairvpr.errors import PairVPRError, SourceError
from pairvpr.printing import json_line
from pairvpr.runtime.answer import FORMAT
from pairvpr.runtime.image import decode_picture
from pairvpr.runtime.map_refresh import Refresher
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.service.http import HttpConnection, Limits, RefusedError, Request, names_this_computer
from pairvpr.runtime.service.listener import Listener
from pairvpr.runtime.sources import Frame

PROTOCOL = 1
RECOGNIZE, INFO = f"/v{PROTOCOL}/recognize", f"/v{PROTOCOL}/info"
METHODS = {RECOGNIZE: ("POST", "OPTIONS"), INFO: ("GET", "HEAD", "OPTIONS")}
QUIET = 60.0  # seconds between two lines of the log on requests that fail

T = TypeVar("T")

log = logging.getLogger(__name__)


class Service:
    """Answer the clients of one listener with one recognizer.

    One thread recognizes one picture after the other, in the order in which the requests were complete.
    """

    def __init__(
        self, recognizer: PlaceRecognizer, listener: Listener, matches: int, limits: Limits | None = None
    ) -> None:
        """Serve at `listener`.

        matches: number of matches that an answer lists if its request does not say.
        """
        self._recognizer = recognizer
        self._refresher = Refresher(recognizer)
        self._listener = listener
        self._matches = matches
        self._limits = limits or Limits()
        self._thread = ThreadPoolExecutor(1, "pairvpr recognizer")
        self._turn = asyncio.Lock()  # it is granted in the order of waiting
        self._stopping = asyncio.Event()
        self._connections: dict[asyncio.Task[None], HttpConnection] = {}
        self._receiving: set[asyncio.Task[None]] = set()  # those without a complete request
        self._unanswered = 0  # requests waiting or being answered
        self._faults = 0  # pictures that could not be recognized since the last line of the log on them
        self._silent_until = 0.0
        self._warned = False  # of scores that are unlike those of the calibration
        self._memory = 0  # bytes of all pictures held or arriving

    async def run(self) -> None:
        """Serve until `stop`. The picture in hand is then answered, and those waiting are refused."""
        server = await asyncio.start_server(self._welcome, sock=self._listener.socket)
        try:
            await self._stopping.wait()
        finally:
            server.close()
            self._listener.close()
            for task in self._receiving:
                task.cancel()
            while self._connections:
                await asyncio.wait(self._connections)
            self._thread.shutdown()

    def stop(self) -> None:
        """End `run`. Call it in the thread of `run`."""
        self._stopping.set()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task, connection = _this_task(), HttpConnection(reader, writer, self._limits)
        self._connections[task] = connection
        try:
            try:
                await self._converse(connection)
            finally:
                await connection.close()
        except OSError as error:
            log.debug("a connection broke: %s", error)
        except asyncio.CancelledError:  # by `run`, for a client without a request
            log.debug("a connection was closed, because the service stops")
        finally:
            writer.transport.abort()  # does nothing to a closed one
            del self._connections[task]

    async def _converse(self, connection: HttpConnection) -> None:
        """Answer a client's requests until the client or the service ends."""
        try:
            if len(self._connections) > self._limits.clients and not self._close_idle():
                raise RefusedError(503, f"busy: {self._limits.clients} clients are connected already")
            while not self._stopping.is_set() and await self._exchange(connection):
                pass
        except RefusedError as refusal:
            await connection.send(refusal.status, _error(str(refusal)), last=True, allowed=refusal.allowed)
            await self._interruptible(connection.linger())

    def _close_idle(self) -> bool:
        """Close the connection that has been silent for the longest time. Return whether there is one."""
        idle = [(each.idle_since, each) for each in self._connections.values() if each.idle_since is not None]
        if not idle:
            return False
        min(idle, key=lambda each: each[0])[1].dismiss()
        return True

    async def _exchange(self, connection: HttpConnection) -> bool:
        """Answer one request. Return whether another may follow."""
        request = await self._interruptible(connection.request())
        if request is None:
            return False
        self._check_names(request)
        question = self._question(request)
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            self._check_size(taken + size)
            if self._memory + size > self._limits.memory:
                raise RefusedError(503, "busy: too many pictures at once")
            taken += size
            self._memory += size

        try:
            content = await self._interruptible(connection.body(take))
            if request.method == "OPTIONS":
                methods = METHODS[request.path]
                told = (json_line({"format": FORMAT, "methods": methods, "error": None}) + "\n").encode()
                return await connection.send(200, told, last=self._stopping.is_set(), allowed=methods)
            if question is None:
                status, answer = 200, self._info()
            else:
                status, answer = await self._answer(connection, question, content)
        finally:
            self._memory -= taken
        return await connection.send(status, answer, last=self._stopping.is_set())

    async def _answer(self, connection: HttpConnection, question: Question, content: bytearray) -> tuple[int, bytes]:
        """Wait for this request's turn. Return the status and the answer."""
        if self._unanswered > self._limits.waiting:
            return 503, _error(f"busy: {self._limits.waiting} pictures wait already")
        self._unanswered += 1
        try:
            async with self._turn:
                if self._stopping.is_set():
                    return 503, _error("the service is stopping")
                if connection.abandoned:
                    raise ConnectionError("the client did not wait for its answer")
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._thread, self._recognize, question, content)
        finally:
            self._unanswered -= 1

    def _recognize(self, question: Question, content: bytearray) -> tuple[int, bytes]:
        """Return the status and the answer. No fault of one picture may end the service for the others."""
        started = perf_counter()
        picture, error = None, None
        try:
            try:
                picture = decode_picture(content, question.name or "the picture", self._limits.pixels)
            except SourceError as fault:
                error = str(fault)
            frame = Frame(question.name, question.timestamp, picture, error, 1e3 * (perf_counter() - started))
            self._refresher.poll()
            answer = self._recognizer.recognize_frame(frame)
            if answer.warning is not None and not self._warned:
                self._warned = True
                log.warning("%s", answer.warning)
        except PairVPRError as fault:
            self._log_fault(str(fault), bug=False)
            return 500, _error(str(fault))
        except Exception as fault:
            self._log_fault("this is a bug", bug=True)
            return 500, _error(f"{type(fault).__name__}: see the service's log")
        line = answer.to_json(question.matches) + "\n"
        return 200 if error is None else 422, line.encode("utf-8", "backslashreplace")

    def _log_fault(self, text: str, *, bug: bool) -> None:
        """Log that a picture could not be recognized, at most once in QUIET seconds and with the number since then."""
        self._faults += 1
        now = perf_counter()
        if now >= self._silent_until:
            count = "a picture" if self._faults == 1 else f"{self._faults} pictures"
            log.error("%s could not be recognized: %s", count, text, exc_info=bug)
            self._faults, self._silent_until = 0, now + QUIET

    def _question(self, request: Request) -> Question | None:
        """Return the question of a request, None for a request of information. Raises RefusedError."""
        methods = METHODS.get(request.path)
        if methods is None:
            raise RefusedError(404, f"there is no {request.path}: ask for {' or '.join(METHODS)}")
        if request.method not in methods:
            raise RefusedError(405, f"{request.path} takes {methods[0]}, not {request.method}", methods)
        self._check_size(request.length)
        if request.path == INFO or request.method == "OPTIONS":
            return None
        return Question.from_parameters(request.parameters, self._matches)

    def _check_names(self, request: Request) -> None:
        """Refuse a page of another site that reaches a loopback port through the browser on this computer.

        Raises RefusedError.
        """
        if not self._listener.is_loopback:
            return
        if not names_this_computer(request.host):
            raise RefusedError(421, f"this is localhost, not {request.host or 'a request without Host'}")
        if request.origin and not names_this_computer(request.origin.partition("://")[2]):
            raise RefusedError(403, f"pages of {request.origin} may not ask this service")

    def _check_size(self, size: int) -> None:
        if size > self._limits.body:
            raise RefusedError(413, f"a picture of more than {self._limits.body} bytes: send a smaller one")

    def _info(self) -> bytes:
        recognizer, bundle = self._recognizer, self._recognizer.model.bundle
        weights = bundle.info.weights
        told = {
            "protocol": PROTOCOL,
            "format": FORMAT,
            "version": __version__,
            "map": {"pictures": len(recognizer.map), "identity": recognizer.map.identity},
            "model": {
                "preset": bundle.info.preset,
                "trained": weights.trained,
                "licence": bundle.info.licence,
                "measure": bundle.info.measure.value,
            },
            "device": recognizer.model.engines.device,
            "precision": recognizer.model.engines.precision,
            "top_k": recognizer.top_k,
            "budget_ms": recognizer.budget_ms,
            "limits": dataclasses.asdict(self._limits),
            "unanswered": self._unanswered,
            "warning": recognizer.score_warning,
            "error": None,
        }
        return (json_line(told) + "\n").encode()

    async def _interruptible(self, receiving: Coroutine[Any, Any, T]) -> T:
        """Await data from a client. The wait is cancelled when the service stops."""
        task = _this_task()
        self._receiving.add(task)
        try:
            return await receiving
        finally:
            self._receiving.discard(task)


@dataclass(frozen=True)
class Question:
    """The parameters of a request.

    name: name of the picture in the answer. timestamp: its time in seconds. matches: number of matches to list.
    """

    name: str
    timestamp: float | None
    matches: int

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str], matches: int) -> Question:
        """Parse a request's parameters. Raises RefusedError for unknown and invalid ones.

        matches: the default.
        """
        unknown = parameters.keys() - {"name", "timestamp", "matches"}
        if unknown:
            raise RefusedError(
                400, f"unknown parameters {', '.join(sorted(unknown))}: there are name, timestamp and matches"
            )
        try:
            timestamp = float(parameters["timestamp"]) if "timestamp" in parameters else None
            matches = int(parameters.get("matches", matches))
        except ValueError as error:
            raise RefusedError(400, f"a parameter is not a number ({error})") from error
        if matches < 1 or not math.isfinite(timestamp or 0):
            raise RefusedError(400, "matches must be at least 1, timestamp a finite number of seconds")
        return cls(parameters.get("name", ""), timestamp, matches)


def serve(recognizer: PlaceRecognizer, listener: Listener, matches: int, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C. Call it in the main thread.

    ready: called just before the first client is accepted.
    """

    async def until_told() -> None:
        service = Service(recognizer, listener, matches)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.stop)
        ready()
        await service.run()

    asyncio.run(until_told())


def _error(message: str) -> bytes:
    return (json_line({"format": FORMAT, "error": message}) + "\n").encode()


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
