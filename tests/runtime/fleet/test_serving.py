"""`pairvpr fleet serve` answers over HTTP, takes over new versions, and ends with its shards."""

from __future__ import annotations

import http.client
import importlib.util
import io
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("h11")

from pairvpr.cli.main import main
from pairvpr.runtime.fleet.publishing import adopt
from tests.runtime.fleet.fleets import build
from tests.scenes import draw_scene

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "pairvpr[fleet]"'
)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


def ask(path: Path) -> dict:
    picture = io.BytesIO()
    Image.fromarray(draw_scene(0, 1, (96, 128))).save(picture, "PNG")
    connection = UnixConnection(path)
    connection.request("POST", "/v1/recognize", picture.getvalue(), {"Host": "x", "Connection": "close"})
    answer = connection.getresponse()
    assert answer.status == 200
    return json.loads(answer.read())


@pytest.mark.parametrize(
    "options", [[], pytest.param(["--address", "local"], marks=[needs_ray, pytest.mark.slow])], ids=["here", "ray"]
)
def test_answers_over_http(tmp_path: Path, options: list[str]) -> None:
    adopt([build(tmp_path / "a", range(12))], tmp_path / "fleet")
    path = tmp_path / "fleet.sock"
    command = [sys.executable, "-m", "pairvpr", "fleet", "serve", "--fleet", tmp_path / "fleet", "--shards", "2"]
    with subprocess.Popen(
        [*command, "--listen", f"unix:{path}", *options], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            said = [process.stderr.readline()]
            while "answering at" not in said[-1]:
                assert said[-1], said
                said.append(process.stderr.readline())
            answer = ask(path)
            assert answer["shards"] == {"asked": 2, "answered": 2, "version": 1}
            assert len(answer["matches"]) == 10
            adopt([build(tmp_path / "b", range(3), drive="b")], tmp_path / "fleet")
            ends = time.monotonic() + 60
            while ask(path)["shards"] != {"asked": 2, "answered": 2, "version": 2}:
                assert time.monotonic() < ends
                time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def test_an_address_that_cannot_be_used(tmp_path: Path) -> None:
    adopt([build(tmp_path / "a", range(3))], tmp_path / "fleet")
    arguments = ["fleet", "serve", "--fleet", str(tmp_path / "fleet"), "--listen", "0.0.0.0:0"]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "--allow-remote" in result.stderr
