"""`pairvpr serve`: whatever a client does, the next one gets its answer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("h11")

from pairvpr.cli.main import main as pairvpr
from pairvpr.cli.run import main
from pairvpr.errors import ServiceError
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.mapping.builder import add_pictures
from pairvpr.runtime.measure import DESCRIPTOR_ALONE
from pairvpr.runtime.model import load_model
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.service.listener import Listener
from pairvpr.runtime.service.server import Question, Service
from pairvpr.runtime.sources import Frame
from tests.scenes import draw_scene

COUNT, SIZE = 3, (96, 128)
GARBAGE = 1000
CLIENT = Path(__file__).resolve().parents[3] / "examples" / "recognize.cpp"


class Running:
    """The command in a process of its own, at a Unix socket."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / "places.sock"
        command = [
            sys.executable,
            "-m",
            "pairvpr",
            "serve",
            "--db",
            home / "map",
            "--listen",
            f"unix:{self.path}",
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        self.said = []
        while "answering at" not in (line := self.process.stderr.readline()):
            assert line, self.said
            self.said.append(line)

    def ask(self, raw: bytes) -> tuple[int, dict]:
        """Status and JSON of the answer to the bytes of one request."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))  # waits for its place in the queue, as it would not with a time limit
            client.settimeout(120)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(raw)  # refused before all was sent, the answer says why
            answer = b""
            while part := client.recv(1 << 16):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head[9:12]), json.loads(body)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, errors
        assert "Traceback" not in errors


def post(picture: bytes, query: str = "", path: str = "/v1/recognize") -> bytes:
    head = f"POST {path}{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(picture)}\r\n\r\n"
    return head.encode() + picture


def encoded(place: int, visit: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(draw_scene(place, visit, SIZE)).save(stream, kind)
    return stream.getvalue()


PICTURE = encoded(1, 1)
INFO = b"GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "db").mkdir()
    for place in range(COUNT):
        (home / "db" / f"p{place}.png").write_bytes(encoded(place, 0))
    (home / "query.png").write_bytes(PICTURE)
    add_pictures(home / "db", home / "map", load_model(), create=True)
    return home


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[Running]:
    """One service for all tests: each leaves it able to answer. It ends in order, its files as they were."""
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in (home / "map").rglob("*")}
    running = Running(home)
    try:
        yield running
        running.stop()
    finally:
        running.process.kill()
    assert not running.path.exists()
    assert before == {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in (home / "map").rglob("*")}


@pytest.fixture(autouse=True)
def answers_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "service" in request.fixturenames:
        until = time.monotonic() + 60
        while (got := request.getfixturevalue("service").ask(post(PICTURE)))[0] == 503 and time.monotonic() < until:
            time.sleep(0.1)  # the rest of the flood is still being dropped
        status, answer = got
        assert (status, answer["error"], answer["compared"]) == (200, None, COUNT)


def comparable(answer: dict) -> dict:
    return {key: value for key, value in answer.items() if key != "timings"}


def test_the_answer_is_the_line_of_the_command(service: Running, home: Path) -> None:
    arguments = ["--db", str(home / "map"), "--query", str(home / "query.png"), "--format", "jsonl"]
    line = json.loads(CliRunner().invoke(main, arguments).stdout)
    status, answer = service.ask(post(PICTURE, "?name=query.png"))
    assert status == 200
    assert list(answer) == list(line)
    assert comparable(answer) == comparable(line)
    _, answer = service.ask(post(PICTURE, "?name=a%20b&timestamp=12.5&matches=1"))
    assert (answer["query"], answer["timestamp"], len(answer["matches"])) == ("a b", 12.5, 1)


def test_raw_pixels_as_ppm(service: Running) -> None:
    raw = f"P6\n{SIZE[1]} {SIZE[0]}\n255\n".encode() + np.asarray(Image.open(io.BytesIO(PICTURE))).tobytes()
    assert comparable(service.ask(post(raw))[1]) == comparable(service.ask(post(PICTURE))[1])


def test_information(service: Running) -> None:
    status, info = service.ask(INFO)
    assert (status, info["protocol"], info["format"], info["map"]["pictures"]) == (200, 1, 1, COUNT)
    assert info["limits"]["body"] == 16 << 20
    assert info["warning"] is None


def test_other_scores_are_logged_once_and_told(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        PlaceRecognizer.open(home / "map") as recognizer,
        Listener(f"unix:{home / 'other.sock'}", remote=False) as listener,
    ):
        warned = dataclasses.replace(recognizer.recognize(home / "query.png"), warning="scores are unlike")
        recognizer.recognize_frame = lambda frame: warned  # type: ignore[method-assign,assignment,misc]
        service = Service(recognizer, listener, 1)
        answers = [service._recognize(Question("q", None, 1), bytearray(PICTURE)) for _ in range(2)]
    assert [json.loads(content)["warning"] for _, content in answers] == ["scores are unlike"] * 2
    assert caplog.messages.count("scores are unlike") == 1


@pytest.mark.parametrize(
    ("raw", "status", "told"),
    [
        (post(b"no picture"), 422, "is not a picture"),
        (post(b""), 422, "is empty"),
        (post(PICTURE[:200]), 422, "is damaged"),
        (post(b"P6\n6000 6000\n255\n"), 422, "more than 25 megapixels"),
        (post(b"x" * (17 << 20)), 413, "more than 16777216 bytes"),
        (post(PICTURE, "?nmae=a"), 400, "unknown parameters nmae"),
        (post(PICTURE, "?matches=0"), 400, "at least 1"),
        (post(PICTURE, "?timestamp=nan"), 400, "finite"),
        (post(PICTURE, path="/v2/recognize"), 404, "there is no /v2/recognize"),
        (post(PICTURE, path="/v1/info"), 405, "takes GET"),
        (b"\x00\x01 garbage\r\n\r\n", 400, "not HTTP/1.1"),
        (b"GET /" + b"x" * 70_000, 431, "not HTTP/1.1"),
    ],
    ids=[
        "text",
        "nothing",
        "half",
        "pixels",
        "bytes",
        "name",
        "matches",
        "time",
        "version",
        "method",
        "binary",
        "long",
    ],
)
def test_refusals_give_the_reason(service: Running, raw: bytes, status: int, told: str) -> None:
    got, answer = service.ask(raw)
    assert got == status
    assert told in answer["error"]


def test_garbage_does_not_stop_the_service(service: Running) -> None:
    """Requests with bytes changed, cut out and inserted, from clients that leave without reading the answer."""
    rng = random.Random(7)
    good = post(PICTURE[:400], "?name=a&matches=2")
    for _ in range(GARBAGE):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(min(len(raw), 150))
            raw[place : place + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(service.path))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(raw[: rng.randint(1, len(raw))])
    deadline = time.monotonic() + 60
    while (answered := service.ask(post(PICTURE)))[0] == 503 and time.monotonic() < deadline:
        time.sleep(0.1)  # requests of the last clients are still in its queue
    assert answered[0] == 200
    assert answered[1]["error"] is None


def test_clients_killed_during_a_request(service: Running) -> None:
    script = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
    script += "s.sendall(sys.stdin.buffer.read()); print(flush=True); time.sleep(600)"
    for raw in (post(PICTURE)[:500], post(PICTURE)):
        command = [sys.executable, "-c", script, str(service.path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdin
            assert client.stdout
            client.stdin.write(raw)
            client.stdin.close()
            client.stdout.readline()
            client.kill()


def test_fifty_clients_at_once(service: Running) -> None:
    got: list[tuple[int, dict]] = []
    clients = [threading.Thread(target=lambda: got.append(service.ask(post(PICTURE)))) for _ in range(50)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    statuses = Counter(status for status, _ in got)
    assert sum(statuses.values()) == 50
    assert statuses.keys() <= {200, 503}
    assert statuses[200] >= 17, "one that is answered and 16 that may wait"
    for status, answer in got:
        assert (answer["error"] or "").startswith("busy") == (status == 503)


def test_a_slow_client_is_refused(service: Running) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(120)
        client.connect(str(service.path))
        client.sendall(post(PICTURE)[:300])
        answer = b""
        while part := client.recv(1 << 16):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_several_requests_on_one_connection(service: Running) -> None:
    request = post(PICTURE).replace(b"Connection: close\r\n", b"")
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as answers:
        client.settimeout(120)
        client.connect(str(service.path))
        client.sendall(2 * request)
        for _ in range(2):
            head = dict(line.strip().lower().split(b": ") for line in iter(answers.readline, b"\r\n") if b": " in line)
            assert json.loads(answers.read(int(head[b"content-length"])))["compared"] == COUNT


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_the_client_in_cpp(service: Running, home: Path, tmp_path: Path) -> None:
    program = tmp_path / "recognize"
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(CLIENT)]
    subprocess.run(command, check=True)
    done = subprocess.run([program, service.path, home / "query.png"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["query"], answer["compared"]) == ("query.png", COUNT)
    done = subprocess.run([program, service.path, CLIENT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not a picture" in done.stderr
    done = subprocess.run([program, tmp_path / "none", CLIENT], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No such file" in done.stderr


def test_a_live_socket_is_refused_and_a_stale_one_replaced(service: Running, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="another service listens"):
        Listener(f"unix:{service.path}")
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    with Listener(f"unix:{stale}") as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(stale))
        stale.unlink()
        stale.write_text("another's")
        listener.close()
    assert stale.read_text() == "another's"
    with pytest.raises(ServiceError, match="is not a socket"):
        Listener(f"unix:{stale}")


def test_a_port_of_this_computer() -> None:
    for address in ("127.0.0.1:0", "localhost:0"):
        with Listener(address) as listener:
            host, _, port = listener.address.rpartition(":")
            with socket.create_connection((host, int(port)), 10):
                pass
            with pytest.raises(ServiceError, match="give --listen another port"):
                Listener(f"127.0.0.1:{port}")
    with Listener("0.0.0.0:0", remote=True) as listener:
        assert listener.address.startswith("0.0.0.0:")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--listen", "0.0.0.0:0"], "--allow-remote"),
        (["--listen", "[::]:0"], "--allow-remote"),
        (["--listen", "example.org:80"], "a host is localhost or an IP address"),
        (["--listen", "127.0.0.1:70000"], "no port from 0 to 65535"),
        (["--listen", "7411"], "is not an address"),
        (["--listen", "unix:"], "names no file"),
        (["--listen", "unix:nowhere/x.sock"], "in an existing folder"),
        (["--listen", "unix:" + "x" * 200], "at most 100 letters"),
        (["--listen", "unix:x.sock"], "holds no map"),
        (["--listen", "unix:x.sock", "--rotate", "90"], "No such option '--rotate'"),
        ([], "Missing option '--listen'"),
    ],
    ids=" ".join,
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(pairvpr, ["serve", "--db", "nowhere", *options])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert told in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--serve", "0.0.0.0:0"], "--allow-remote"),
        (["--serve", "unix:x.sock", "--query", "a.jpg"], "--query and --serve exclude each other"),
        (["--serve", "unix:x.sock", "--rotate", "90"], "--rotate needs --query"),
        (["--serve", "unix:x.sock", "--out", "x"], "--out needs --query"),
        (["--query", "a.jpg", "--allow-remote"], "--allow-remote needs --serve"),
        ([], "give --query; to answer other programs, run `pairvpr serve`"),
    ],
    ids=" ".join,
)
def test_mistakes_in_the_old_spelling_are_told_in_one_line(options: list[str], told: str) -> None:
    result = CliRunner().invoke(main, ["--db", "nowhere", *options])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert told in result.stderr


def test_the_old_spelling_serves_and_names_the_new_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options reach the service, and stderr has one line about the spelling."""
    served = []

    def serve(recognizer: PlaceRecognizer, listener: Listener, matches: int, ready: Callable[[], None]) -> None:
        served.append((listener.address, matches, recognizer.top_k))
        ready()

    monkeypatch.setattr("pairvpr.runtime.service.server.serve", serve)
    options = ["--db", str(home / "map"), "--matches", "3", "--top-k", "2"]
    old = CliRunner().invoke(main, [*options, "--serve", f"unix:{home}/old.sock"])
    new = CliRunner().invoke(pairvpr, ["serve", *options, "--listen", f"unix:{home}/new.sock"])
    assert (old.exit_code, new.exit_code) == (0, 0), old.stderr + new.stderr
    assert served == [(f"unix:{home}/old.sock", 3, 2), (f"unix:{home}/new.sock", 3, 2)]
    assert [line for line in old.stderr.splitlines() if "pairvpr serve --listen" in line] == old.stderr.splitlines()[:1]
    assert "pairvpr serve" not in new.stderr


class Slow:
    """A recognizer that answers on a signal of the test."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def recognize_frame(self, frame: Frame) -> Recognition:
        self.begun.set()
        assert self.go_on.wait(60)
        return Recognition(frame.name)


def test_the_request_in_hand_is_answered_before_the_end(tmp_path: Path) -> None:
    """The waiting request is refused, a client without a request gets nothing, and the socket is removed."""
    path, slow = tmp_path / "slow.sock", Slow()

    async def scene() -> tuple[bytes, bytes, bytes]:
        service = Service(slow, Listener(f"unix:{path}"), 10)  # type: ignore[arg-type]
        running = asyncio.create_task(service.run())
        answers, writers = [], []
        for raw in (post(PICTURE), post(PICTURE), b"POST "):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(raw)
            writers.append(writer)
            answers.append(asyncio.create_task(reader.read()))
            while not slow.begun.is_set():
                await asyncio.sleep(0.01)
        while service._unanswered < 2:
            await asyncio.sleep(0.01)
        service.stop()
        await asyncio.sleep(0.1)
        assert not path.exists()
        slow.go_on.set()
        await running
        first, second, third = await asyncio.gather(*answers)
        for writer in writers:
            writer.close()
            await writer.wait_closed()
        return first, second, third

    first, second, third = asyncio.run(asyncio.wait_for(scene(), 60))
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second.startswith(b"HTTP/1.1 503 ")
    assert b"stopping" in second
    assert third == b""


def test_a_descriptor_alone_answers_with_similarities_and_says_so(descriptor_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    for place in range(COUNT):
        (tmp_path / "db" / f"p{place}.png").write_bytes(encoded(place, 0))
    add_pictures(tmp_path / "db", tmp_path / "map", load_model(descriptor_bundle), create=True)
    running = Running(tmp_path)
    try:
        assert sum(DESCRIPTOR_ALONE in line for line in running.said) == 1
        status, told = running.ask(INFO)
        assert (status, told["model"]["measure"]) == (200, "similarity")
        status, answer = running.ask(post(PICTURE, "?name=query.png"))
    finally:
        running.stop()
    assert (status, answer["error"], answer["compared"], answer["complete"]) == (200, None, 0, True)
    assert answer["best"]["name"] == "p1.png"
    assert {(match["score"], match["stage"]) for match in answer["matches"]} == {(None, "descriptor")}
    similarities = [match["similarity"] for match in answer["matches"]]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] > 0.5
