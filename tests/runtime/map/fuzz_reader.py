"""A process that reads files on request. A crash, a hang or too much memory ends this process only.

Run as a script it takes lines of JSON, [kind, path], and answers each with a line: what came of reading that.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pairvpr
from pairvpr.errors import MapError, PairVPRError
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.map import Map, repair_map, tables, verify_map
from pairvpr.runtime.map.records import encode
from pairvpr.runtime.remarks import remark_scope
from pairvpr.runtime.sources import SourceOptions, open_source

CPU_SECONDS, SECONDS = 20.0, 600.0  # for one of them; the largest picture there may be takes a few
MEMORY = 2 << 30  # bytes beyond what the process has before it reads anything


class Reader:
    """Start the process when it is first needed, and again after it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, kind: str, path: Path) -> dict[str, Any]:
        """Return the result of reading a "source", "map" or "bundle". Raises AssertionError if the process crashed."""
        if self._process is None:
            command = [sys.executable, __file__]
            pipe = subprocess.PIPE
            # The package that is tested, wherever another one is installed.
            environment = {**os.environ, "PYTHONPATH": str(Path(pairvpr.__file__).parent.parent)}
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([kind, str(path)]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            _, said = self._process.communicate()
            code, self._process = self._process.returncode, None
            raise AssertionError(f"reading {path} ended with exit code {code}: {said}")
        outcome: dict[str, Any] = json.loads(line)
        assert "bug" not in outcome, outcome["bug"]
        return outcome

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


def read_source(path: Path) -> dict[str, Any]:
    """Read a picture, folder or bag. Return numbers of frames announced and read, and errors."""
    errors, timestamps, places = [], [], []
    with open_source(str(path), SourceOptions()) as source:
        promised = source.length
        for frame in source:
            assert (frame.picture is None) == (frame.error is not None)
            assert frame.picture is None or frame.picture.mode == "RGB"
            timestamps.append(frame.timestamp)
            errors += [] if frame.error is None else [frame.error]
            places += [] if frame.pose is None else [frame.pose.x, frame.pose.y, frame.pose.z, *(frame.pose.q or ())]
    assert all(map(math.isfinite, places))
    assert all(map(math.isfinite, (each for each in timestamps if each is not None)))
    return {"promised": promised, "frames": len(timestamps), "errors": errors}


def read_map(path: Path) -> dict[str, Any]:
    """Return a digest of each picture of a map. For a refused map, return the error and the result of a repair."""
    try:
        damages = verify_map(path)
    except MapError as error:
        damages = [str(error)]
    try:
        return {"pictures": _pictures(path), "damages": damages}
    except MapError as error:
        outcome: dict[str, Any] = {"refused": str(error), "damages": damages}
    try:
        report = repair_map(path)
    except MapError as error:
        return {**outcome, "not repaired": str(error)}
    assert (path / "model").is_dir() == (verify_map(path) == [])
    return {**outcome, "kept": _pictures(path), "lost": [*report.dropped, *[""] * report.nameless]}


def read_bundle(path: Path) -> dict[str, Any]:
    """Return the description of a bundle after checking all its files."""
    bundle = Bundle.open(path)
    bundle.verify()
    return {"info": bundle.info.to_json()}


def _pictures(path: Path) -> dict[str, str]:
    with Map.open(path) as opened:
        tokens = opened.read_tokens(range(len(opened)))
        return {
            record.name: hashlib.sha256(
                # Less segment, row and their checksum, which a repair may change.
                json.dumps(encode(record)[:-6]).encode() + opened.descriptors[row].tobytes() + tokens[row].tobytes()
            ).hexdigest()
            for row, record in enumerate(opened.records)
        }


class _Heard(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        WARNINGS.append(record.getMessage())


WARNINGS: list[str] = []
READS = {"source": read_source, "map": read_map, "bundle": read_bundle}


def _outcome(kind: str, path: Path) -> dict[str, Any]:
    WARNINGS.clear()
    try:
        with remark_scope():  # as commands have one; counts are said at its end
            outcome = READS[kind](path)
        return {**outcome, "warnings": WARNINGS[:]} if kind == "source" else outcome
    except PairVPRError as error:
        return {"refused": str(error)}
    except BaseException:
        return {"bug": traceback.format_exc()}


def _serve() -> None:
    faulthandler.enable()
    logging.getLogger("pairvpr").addHandler(_Heard(logging.WARNING))
    faulthandler.register(signal.SIGPROF, chain=True)  # which then ends the process
    tables.IN_VAIN = 1000  # a repair that looks for more rows than these maps could have takes seconds
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY, here + MEMORY))
    for line in sys.stdin:
        kind, path = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        outcome = _outcome(kind, Path(path))
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
