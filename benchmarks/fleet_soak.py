"""Ask a fleet for long, while tiles are added and workers are killed, and compare every answer with one map's.

    python -m benchmarks.fleet_soak --seconds 600 --out fleet_soak.json

`pairvpr fleet serve` answers from shards on a local Ray cluster of three nodes. The maps have made-up features. In the
end one map of the pictures of each version answers the same queries, pair by pair. Every answer must be equal to its.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fleet import PER_SEGMENT, build_map
from pairvpr.runtime import PlaceRecognizer
from pairvpr.runtime.fleet.publishing import adopt
from pairvpr.runtime.map import merge_maps
from tests.runtime.fleet.clusters import Nodes, descendants
from tests.scenes import draw_scene

NODES = 3
TILE = 2 * PER_SEGMENT  # pictures that are added at a time
QUERIES = 12
TOP_K = 20
PATIENCE = 180.0  # seconds after which an answer counts as lost
COMPARED = ("matches", "accepted", "reason", "compared", "complete")
"""Parts of an answer that must be equal to those of the one map."""


@dataclass
class Observations:
    """What clients, publisher and killer saw.

    answers: number of equal answers by version, query and compared parts as JSON.
    waits: seconds of each answer. lost: errors of requests without an answer.
    published: seconds after the start and number of each version. killed: seconds after the start.
    """

    began: float = field(default_factory=time.monotonic)
    answers: Counter[tuple[int, int, str]] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    published: list[tuple[float, int]] = field(default_factory=list)
    first_seen: dict[int, float] = field(default_factory=dict)
    killed: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.began


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two tiles, and between two kills")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=2000, help="pictures in the first version")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Run, print the figures, and fail if an answer was wrong or lost."""
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), args)
    print(json.dumps(found, indent=1, allow_nan=False))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    if found["wrong"] or found["lost"] or not found["answers"]:
        sys.exit(1)


def soak(home: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run clients, publisher and killer together. Return the figures."""
    build_map(home / "one", range(args.pictures))
    adopt([home / "one"], home / "fleet")
    tiles = [home / f"tile{number}" for number in range(1, int(args.seconds / args.every) + 1)]
    for number, tile in enumerate(tiles):
        first = args.pictures + number * TILE
        build_map(tile, range(first, first + TILE))
    queries = [home / f"query{number}.png" for number in range(QUERIES)]
    for number, query in enumerate(queries):
        Image.fromarray(draw_scene(number, 1, (96, 128))).save(query)
    nodes = Nodes(cpus=-(-args.shards * args.replicas // NODES))
    try:
        nodes.start_all(NODES)
        with serving(home / "fleet", nodes.address, args) as port:
            seen = watch(home / "fleet", port, nodes, tiles, queries, args)
    finally:
        nodes.close()
    return report(home / "one", tiles, queries, seen, args)


@contextmanager
def serving(fleet: Path, address: str, args: argparse.Namespace) -> Iterator[int]:
    """Run `pairvpr fleet serve` for the block. Give its port."""
    command = [sys.executable, "-m", "pairvpr", "fleet", "serve", "--fleet", str(fleet), "--listen", "127.0.0.1:0"]
    command += ["--address", address, "--shards", str(args.shards), "--replicas", str(args.replicas)]
    command += ["--top-k", str(TOP_K), "--matches", str(TOP_K), "--batch-size", "1", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = ""
        while "answering at" not in line:
            line = process.stderr.readline()
            if not line:
                raise RuntimeError("the service has not started")
        reader = threading.Thread(target=forward, args=(process.stderr,), daemon=True)
        reader.start()
        try:
            yield int(line.rpartition(":")[2])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
            reader.join(10)


def forward(lines: Any) -> None:
    """Print the lines of the service, so that its pipe never fills."""
    for line in lines:
        print(line, end="", file=sys.stderr, flush=True)


def watch(
    fleet: Path, port: int, nodes: Nodes, tiles: list[Path], queries: list[Path], args: argparse.Namespace
) -> Observations:
    """Ask until the time is over. Add a tile in the middle of each period, and kill a worker at its end."""
    seen, stop = Observations(), threading.Event()
    clients = [
        threading.Thread(target=ask_on, args=(port, queries, number, seen, stop)) for number in range(args.clients)
    ]
    for client in clients:
        client.start()
    try:
        for number, tile in enumerate(tiles):
            sleep_until(seen, (number + 0.5) * args.every)
            version = adopt([tile], fleet).version
            seen.published.append((round(seen.seconds(), 1), version))
            sleep_until(seen, (number + 0.9) * args.every)
            kill_worker(nodes)
            seen.killed.append(round(seen.seconds(), 1))
        sleep_until(seen, args.seconds)
    finally:
        stop.set()
        for client in clients:
            client.join()
    return seen


def sleep_until(seen: Observations, seconds: float) -> None:
    """Sleep until this number of seconds after the start."""
    time.sleep(max(0.0, seconds - seen.seconds()))


def ask_on(port: int, queries: list[Path], client: int, seen: Observations, stop: threading.Event) -> None:
    """Ask one query after the other, as one client of the service."""
    contents = [query.read_bytes() for query in queries]
    number = client
    while not stop.is_set():
        number = (number + 1) % len(contents)
        began = time.monotonic()
        try:
            answer = ask(port, contents[number])
        except (OSError, http.client.HTTPException, ValueError) as error:
            with seen.lock:
                seen.lost.append(f"{seen.seconds():.1f} s: {type(error).__name__}: {error}")
            continue
        key = (answer["shards"]["version"], number, compared_parts(answer))
        with seen.lock:
            seen.waits.append(time.monotonic() - began)
            seen.answers[key] += 1
            seen.first_seen.setdefault(key[0], round(seen.seconds(), 1))


def ask(port: int, content: bytes) -> dict[str, Any]:
    """Return the answer to a picture. Raises OSError, HTTPException or ValueError without one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", "/v1/recognize", content)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise ValueError(f"status {response.status}: {body[:200]!r}")
        found: dict[str, Any] = json.loads(body)
        return found
    finally:
        connection.close()


def compared_parts(answer: dict[str, Any]) -> str:
    """Return the parts of an answer that must be equal, as one text."""
    return json.dumps({name: answer[name] for name in COMPARED}, allow_nan=False)


def kill_worker(nodes: Nodes) -> None:
    """Kill the process of a shard. Raises RuntimeError if there is none."""
    found = []
    for pid in [pid for node in nodes.started for pid in descendants(node.pid)]:
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Worker"):
                found.append(pid)
    if not found:
        raise RuntimeError("no shard is running")
    os.kill(random.choice(found), signal.SIGKILL)


def report(
    one: Path, tiles: list[Path], queries: list[Path], seen: Observations, args: argparse.Namespace
) -> dict[str, Any]:
    """Compare the answers with those of one map of each version's pictures, and return the figures."""
    by_version: dict[int, Counter[tuple[int, str]]] = defaultdict(Counter)
    for (version, number, text), count in seen.answers.items():
        by_version[version][number, text] += count
    wrong, changed, before = 0, 0, list[str]()
    for version in range(1, len(tiles) + 2):
        if version > 1:
            merge_maps([tiles[version - 2]], one)
        with PlaceRecognizer.open(one, top_k=TOP_K, batch_size=1, device="cpu") as recognizer:
            expected = [
                compared_parts(json.loads(recognizer.recognize(query).to_json(matches=TOP_K))) for query in queries
            ]
        changed += sum(earlier != later for earlier, later in zip(before, expected, strict=False))
        before = expected
        held = by_version.pop(version, Counter())
        wrong += sum(count for (number, text), count in held.items() if text != expected[number])
    wrong += sum(sum(held.values()) for held in by_version.values())  # versions that never were
    taken_over = [
        round(seen.first_seen[version] - at, 1) for at, version in seen.published if version in seen.first_seen
    ]
    return {
        "seconds": args.seconds,
        "nodes": NODES,
        "shards": args.shards,
        "replicas": args.replicas,
        "clients": args.clients,
        "pictures": [args.pictures, args.pictures + TILE * len(seen.published)],
        "answers": sum(seen.answers.values()),
        "wrong": wrong,
        "lost": len(seen.lost),
        "faults": seen.lost[:10],
        "incomplete": sum(count for key, count in seen.answers.items() if '"complete": false' in key[2]),
        "tiles_added": len(seen.published),
        "expected_answers_changed_by_tiles": changed,
        "versions_answered": len(seen.first_seen),
        "workers_killed": len(seen.killed),
        "seconds_to_take_over": taken_over,
        "answer_seconds": {
            name: round(float(np.quantile(seen.waits, share)), 3)
            for name, share in (("median", 0.5), ("p99", 0.99), ("most", 1.0))
            if seen.waits
        },
    }


if __name__ == "__main__":
    main()
