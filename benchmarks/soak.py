"""Run for long: query a map with a looped video while pictures are added to the map, and watch the memory.

    python -m benchmarks.soak --seconds 1800 --out soak.json

`pairvpr-run` runs as on a robot, in a process of its own, on an endless stream, with a report at its end. Pictures are
made by code. Each picture of the map stands for twenty records, with different noise in its features, because the
figures depend only on the number of records.
"""

from __future__ import annotations

import argparse
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import pairvpr
from pairvpr.runtime import load_model
from pairvpr.runtime.features import Features
from pairvpr.runtime.map import MapWriter
from pairvpr.runtime.mapping.builder import open_writer
from pairvpr.runtime.model import Model
from tests.scenes import draw_scene

SIZE = (240, 320)
ALIKE = 20  # records made of one picture
LOOP = 120  # frames of the video: each place, on another visit
WARM_UP = 0.25  # of the time, but 60 seconds at most
ADDED = 8  # pictures at a time


@dataclass
class SoakFigures:
    """Observations of a run: its answers in order, and resident memory in MB with the seconds."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, MB
    added: int = 0

    def slope(self, after: float) -> float:
        """Return the growth of memory in MB a minute after `after` seconds, by least squares."""
        taken = np.array([each for each in self.memory if each[0] >= after])
        return float(np.polyfit(taken[:, 0] / 60, taken[:, 1], 1)[0])


def soak(folder: Path, seconds: float, pictures: int, rate: float, every: float) -> dict[str, Any]:
    """Let `pairvpr-run` answer for `seconds`, with `rate` frames a second, and return the figures.

    pictures: of the map. every: seconds between additions to it.
    """
    model = load_model(None, "cpu", threads=1)
    features = model.encode([draw_scene(place, 0, SIZE) for place in range(-(-pictures // ALIKE))])
    db = folder / "map"
    with open_writer(db, model, create=True) as store:
        _add(store, features, range(pictures))
    with _looped_video(rate) as (address, sent):
        measured, errors, status = _run(folder, address, db, seconds, every, features, model)
    return {
        "seconds": seconds,
        "pictures": pictures,
        "pictures_added": measured.added,
        "frames_sent": sent[0],
        **_said(measured, min(WARM_UP * seconds, 60.0)),
        "taken_in": errors.count("refreshed"),
        "exit_status": status,
        "processors": os.cpu_count(),
        "load_after": os.getloadavg()[0],
    }


def _said(measured: SoakFigures, warm_up: float) -> dict[str, Any]:
    answers = measured.answers
    numbers = [int(match[1]) for each in answers if (match := re.search(r"#(\d+)$", each["query"]))]
    spent = [each["timings"]["total"] for each in answers if each["error"] is None]
    after = [memory for at, memory in measured.memory if at >= warm_up]
    return {
        "answers": len(answers),
        "answers_in_order": numbers == sorted(set(numbers)) and len(numbers) == len(answers),
        "errors": sum(each["error"] is not None for each in answers),
        "ms": {f"p{p}": round(float(np.percentile(spent, p)), 1) for p in (50, 95, 99)} | {"longest": max(spent)},
        "warm_up_s": warm_up,
        "memory_mb": {"first": round(after[0], 1), "last": round(after[-1], 1), "largest": round(max(after), 1)},
        "memory_mb_a_minute": round(measured.slope(warm_up), 3),
    }


def _run(
    folder: Path, address: str, db: Path, seconds: float, every: float, features: Features, model: Model
) -> tuple[SoakFigures, str, int]:
    """Query the map, add to it and watch the memory to the end; return observations, stderr and exit status.

    Raises RuntimeError if not even a first answer comes.
    """
    command = [
        sys.executable,
        "-m",
        "pairvpr.cli.run",
        "--db",
        str(db),
        "--query",
        address,
        "--format",
        "jsonl",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(pairvpr.__file__).parent.parent)}
    with (folder / "stderr").open("w") as said:
        process = subprocess.Popen(
            [*command, "--report", str(folder / "run.html")], stdout=subprocess.PIPE, stderr=said, env=environment
        )
    measured = SoakFigures()
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        if not first:
            raise RuntimeError(f"pairvpr-run gave no answer: {(folder / 'stderr').read_text()}")
        measured.answers.append(json.loads(first))
        reader = threading.Thread(target=measured.answers.extend, args=(map(json.loads, process.stdout),))
        reader.start()
        began, due = time.monotonic(), every
        while process.poll() is None and (now := time.monotonic() - began) < seconds:
            measured.memory.append((now, _resident(process.pid)))
            if now >= due:
                with open_writer(db, model, create=False) as store:
                    size = len(store.names())
                    _add(store, features, range(size, size + ADDED))
                measured.added += ADDED
                due = time.monotonic() - began + every
            time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        reader.join()
        return measured, (folder / "stderr").read_text(), process.wait()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _add(store: MapWriter, features: Features, numbers: range) -> None:
    """Add records of these numbers, each with the features of one of the pictures and noise of its own."""
    for number in numbers:
        noise, source = np.random.default_rng(number), features[number % len(features)]
        descriptors = source.descriptors + 0.02 * noise.standard_normal(source.descriptors.shape, np.float32)
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        tokens = source.tokens * noise.uniform(0.98, 1.02)
        store.add(name=f"{number:06d}.jpg", source="soak", features=Features(descriptors, tokens))


def _resident(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    return int(re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1000  # type: ignore[index]


@contextmanager
def _looped_video(rate: float) -> Iterator[tuple[str, list[int]]]:
    """Serve the frames of a short video endlessly, as network cameras do; yield the address and frame count."""
    frames, sent, stopped = [], [0], threading.Event()
    for i in range(LOOP):
        stream = io.BytesIO()
        Image.fromarray(draw_scene(i, 1, SIZE)).save(stream, "JPEG", quality=90)
        frames.append(stream.getvalue())

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with suppress(OSError):  # the reader leaves
                while not stopped.wait(1 / rate):
                    jpeg = frames[sent[0] % LOOP]
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    self.wfile.write(head.encode() + jpeg + b"\r\n")
                    sent[0] += 1

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/video", sent
        finally:
            stopped.set()
            server.shutdown()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--pictures", type=int, default=5000, help="Of the map.")
    parser.add_argument("--rate", type=float, default=10.0, help="Frames that come a second.")
    parser.add_argument("--every", type=float, default=10.0, help="Seconds between additions to the map.")
    parser.add_argument("--out", type=Path, help="Also write the result there.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = json.dumps(
            soak(Path(folder), args.seconds, args.pictures, args.rate, args.every), indent=1, allow_nan=False
        )
    print(result)
    if args.out is not None:
        args.out.write_text(result + "\n")


if __name__ == "__main__":
    main()
