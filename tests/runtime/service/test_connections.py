"""Connections of the service: counted until they are closed, and never in the way of a client that asks."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("h11")

from pairvpr.errors import MapError, ServiceError
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.measure import Measure
from pairvpr.runtime.service import listener as listener_module
from pairvpr.runtime.service import server
from pairvpr.runtime.service.http import Limits, names_this_computer
from pairvpr.runtime.service.listener import Listener
from pairvpr.runtime.service.server import Service
from pairvpr.runtime.sources import Frame

GET = b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
POST = b"POST /v1/recognize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx"


class Recognizer:
    """A recognizer that answers at once, or fails."""

    def __init__(self, fault: Exception | None = None) -> None:
        weights = SimpleNamespace(trained=True, licence="none")
        info = SimpleNamespace(weights=weights, preset="none", licence="none", measure=Measure.SCORE)
        engines = SimpleNamespace(device="cpu", precision="fp32")
        self.model = SimpleNamespace(bundle=SimpleNamespace(info=info), engines=engines)
        self.map = Pictures()
        self.top_k, self.budget_ms, self.score_warning, self.fault = 1, None, None, fault

    def recognize_frame(self, frame: Frame) -> Recognition:
        if self.fault is not None:
            raise self.fault
        return Recognition(frame.name)


class Pictures(list[str]):
    """A map without pictures."""

    identity = "none"


def run(
    address: str,
    scene: Callable[[Service, str], Awaitable[None]],
    limits: Limits | None = None,
    recognizer: Recognizer | None = None,
) -> None:
    """Run a scene beside a service."""

    async def both() -> None:
        listener = Listener(address)
        service = Service(recognizer or Recognizer(), listener, 10, limits)  # type: ignore[arg-type]
        running = asyncio.create_task(service.run())
        try:
            await scene(service, listener.address)
        finally:
            service.stop()
            await running

    asyncio.run(asyncio.wait_for(both(), 60))


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def ask(address: str, raw: bytes) -> bytes:
    reader, writer = await connect(address)
    writer.write(raw)
    answer = await reader.read()
    writer.close()
    return answer


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path / 'x.sock'}"


def test_silent_clients_do_not_lock_a_real_one_out(address: str) -> None:
    async def scene(service: Service, where: str) -> None:
        silent = [await connect(where) for _ in range(70)]
        await until(lambda: len(service._connections) == 64)
        assert (await ask(where, GET)).startswith(b"HTTP/1.1 200 ")
        assert await silent[0][0].read() == b""  # the one that was silent for the longest time
        assert not silent[-1][0].at_eof()
        for _, writer in silent:
            writer.close()
        await until(lambda: not service._connections)

    run(address, scene)


def test_clients_with_half_a_request_are_not_idle(address: str) -> None:
    async def scene(service: Service, where: str) -> None:
        busy = [await connect(where) for _ in range(2)]
        for _, writer in busy:
            writer.write(b"GET ")
        await until(lambda: [each.idle_since for each in service._connections.values()] == [None, None])
        assert b"busy: 2 clients are connected already" in await ask(where, GET)
        for _, writer in busy:
            writer.close()

    run(address, scene, Limits(clients=2))


def test_a_client_that_does_not_read_is_counted_and_cut_off(address: str) -> None:
    async def scene(service: Service, where: str) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            client.connect(where.removeprefix("unix:"))
            loop = asyncio.get_running_loop()
            asked = asyncio.create_task(loop.sock_sendall(client, GET.replace(b"close", b"keep-alive") * 20_000))
            await until(lambda: len(service._connections) == 1)
            await asyncio.sleep(0.2)
            assert len(service._connections) == 1
            await until(lambda: not service._connections)
            asked.cancel()

    run(address, scene, Limits(patience=0.5))


def test_head_and_options(address: str) -> None:
    async def scene(service: Service, where: str) -> None:
        whole, head = await ask(where, GET), await ask(where, GET.replace(b"GET", b"HEAD"))
        assert head == whole[: whole.index(b"\r\n\r\n") + 4]
        for path, methods in ((b"info", b"GET, HEAD, OPTIONS"), (b"recognize", b"POST, OPTIONS")):
            told = await ask(where, GET.replace(b"GET", b"OPTIONS").replace(b"info", path))
            assert told.startswith(b"HTTP/1.1 200 ")
            assert b"Allow: " + methods + b"\r\n" in told
        for method in (b"HEAD", b"PUT", b"TRACE", b"CONNECT"):
            refused = await ask(where, GET.replace(b"GET", method).replace(b"info", b"recognize"))
            assert refused.startswith(b"HTTP/1.1 405 ")
            assert b"Allow: POST, OPTIONS\r\n" in refused
        assert (await ask(where, GET.replace(b"/v1/info", b"*").replace(b"GET", b"OPTIONS"))).startswith(
            b"HTTP/1.1 404 "
        )

    run(address, scene)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Host: 127.0.0.1:7411", 200),
        (b"Host: LOCALHOST", 200),
        (b"Host: [::1]:80", 200),
        (b"Host: evil.example", 421),
        (b"Host: 127.0.0.1.evil.example", 421),
        (b"Host: localhost@evil.example", 421),
        (b"Host: localhost\r\nOrigin: http://localhost:3000", 200),
        (b"Host: localhost\r\nOrigin: https://evil.example", 403),
        (b"Host: localhost\r\nOrigin: null", 403),
    ],
)
def test_pages_of_other_sites_do_not_reach_a_loopback_port(headers: bytes, status: int) -> None:
    async def scene(service: Service, where: str) -> None:
        answer = await ask(where, GET.replace(b"Host: localhost", headers))
        assert int(answer[9:12]) == status
        assert (json.loads(answer.partition(b"\r\n\r\n")[2])["error"] is None) == (status == 200)

    run("127.0.0.1:0", scene)


def test_the_name_does_not_matter_at_a_unix_socket(address: str) -> None:
    async def scene(service: Service, where: str) -> None:
        answer = await ask(where, GET.replace(b"localhost", b"robot"))
        assert answer.startswith(b"HTTP/1.1 200 ")

    run(address, scene)


def test_names_of_this_computer() -> None:
    assert all(map(names_this_computer, ("localhost", "127.9.9.9:1", "[::1]")))
    assert not any(map(names_this_computer, ("", ":80", "10.0.0.1", "[::1", "a]", "localhost.example")))


def test_requests_that_fail_leave_a_bounded_log(
    address: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "decode_picture", lambda *_: None)

    async def scene(service: Service, where: str) -> None:
        for _ in range(30):
            assert (await ask(where, POST)).startswith(b"HTTP/1.1 500 ")
        assert [each for each in caplog.messages if "could not" in each] == [
            "a picture could not be recognized: broken"
        ]
        service._silent_until = 0.0
        await ask(where, POST)
        assert "30 pictures could not be recognized: broken" in caplog.messages

    with caplog.at_level(logging.INFO):
        run(address, scene, recognizer=Recognizer(MapError("broken")))


def test_of_many_starts_at_one_stale_socket_one_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.sock"
    alive = listener_module._is_alive
    together = threading.Barrier(2, timeout=20)

    def slow(file: Path) -> bool:
        """Let both starts find the stale socket before one of them acts."""
        found = alive(file)
        if file == path:
            together.wait()
        return found

    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        listeners: list[Listener] = []
        refused: list[ServiceError] = []

        def start(listeners: list[Any] = listeners, refused: list[Any] = refused) -> None:
            try:
                listeners.append(Listener(f"unix:{path}"))
            except ServiceError as error:
                refused.append(error)

        with monkeypatch.context() as patch:
            patch.setattr(listener_module, "_is_alive", slow)
            starts = [threading.Thread(target=start) for _ in range(2)]
            for each in starts:
                each.start()
            for each in starts:
                each.join()
        assert (len(listeners), len(refused)) == (1, 1)
        assert "another service listens" in str(refused[0])
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(path))
            listeners[0].socket.accept()[0].close()
        listeners[0].close()
        assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_a_socket_that_appears_at_the_last_moment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.sock"
    others: list[Listener] = []
    remove = listener_module._remove_stale

    def slow(file: Path) -> None:
        remove(file)
        if not others:
            others.append(None)  # type: ignore[arg-type]  # the second start is not delayed
            others[0] = Listener(f"unix:{path}")

    monkeypatch.setattr(listener_module, "_remove_stale", slow)
    with pytest.raises(ServiceError, match="another service listens"):
        Listener(f"unix:{path}")
    with others[0], socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
    assert os.listdir(tmp_path) == []  # noqa: PTH208
