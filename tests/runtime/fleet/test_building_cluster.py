"""Parts of a source that are built on several nodes make the pictures of one map, although processes are killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from pairvpr.runtime import build_map
from pairvpr.runtime.fleet.building import build_fleet
from pairvpr.runtime.fleet.storage import FolderStorage
from pairvpr.runtime.fleet.version import read_current
from pairvpr.runtime.mapping.builder import BuildOptions
from tests.runtime.fleet.clusters import Nodes, descendants
from tests.runtime.fleet.test_building import assert_same
from tests.scenes import draw_scene

PARTS = 4


def tasks(node: int) -> list[int]:
    """Return the processes of a node that build parts."""
    found = []
    for pid in descendants(node):
        with suppress(OSError):
            if b"ray::build_part" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
@pytest.mark.parametrize("count", [pytest.param(60, marks=pytest.mark.slow), pytest.param(600, marks=pytest.mark.soak)])
def test_killed_processes_and_nodes_build_the_same(tmp_path: Path, count: int) -> None:
    lines = ["name,latitude,longitude"]
    (tmp_path / "pictures").mkdir()
    for place in range(count):
        name = f"p{place:03d}.png"
        Image.fromarray(draw_scene(place, 0, (96, 128))).save(tmp_path / "pictures" / name)
        lines.append(f"{name},{48 + place / 1000},11")
    (tmp_path / "poses.csv").write_text("\n".join(lines))
    build_map(tmp_path / "pictures", tmp_path / "one", poses=tmp_path / "poses.csv")
    options = BuildOptions(poses=tmp_path / "poses.csv")
    nodes, stop, killed = Nodes(cpus=2), threading.Event(), list[str]()

    def kill() -> None:
        """Kill a task on the first node, then the last node."""
        while not stop.is_set() and not (found := tasks(nodes.started[0].pid)):
            time.sleep(0.02)
        if not stop.is_set():
            os.kill(found[0], signal.SIGKILL)
            killed.append("task")
        while not stop.is_set() and not tasks(nodes.started[-1].pid):
            time.sleep(0.02)
        if not stop.is_set():
            nodes.kill(nodes.started[-1])
            killed.append("node")

    try:
        nodes.start_all(3)
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            _, published = build_fleet(
                tmp_path / "pictures", tmp_path / "fleet", PARTS, options=options, address=nodes.address
            )
        finally:
            stop.set()
            killer.join()
            sys.modules["ray"].shutdown()
    finally:
        nodes.close()
    assert (killed, published.added) == (["task", "node"], count)
    assert_same(tmp_path / "fleet", tmp_path / "one")
    build_fleet(tmp_path / "pictures", tmp_path / "alone", PARTS, options=options)
    digests = [
        [tile.digest for tile in read_current(FolderStorage(tmp_path / name)).tiles] for name in ("fleet", "alone")
    ]
    assert digests[0] == digests[1]
