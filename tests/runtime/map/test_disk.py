"""Write-protected folders, full disks, and processes with too few open files.

Run as a script this file does one of its `scene_` functions, which change their process's rights or limits.
"""

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from pairvpr.errors import MapError
from pairvpr.files import find_partials
from pairvpr.runtime.features import Features
from pairvpr.runtime.map import Map, MapWriter, merge_maps, repair_map, verify_map

SHAPE = {"identity": "a" * 64, "descriptor_dim": 8, "token_shape": (50, 4)}
NOBODY = 65534


def features_of(number):
    random = np.random.default_rng(number)
    descriptors = random.standard_normal((1, 8), np.float32)
    descriptors /= np.linalg.norm(descriptors)
    return Features(descriptors, random.standard_normal((1, 50, 4), np.float32))


def install_model(folder):
    (folder / "bundle.json").write_text("{}")


def write(path, numbers, *, per_commit=2, name="{}.jpg"):
    with MapWriter.open(path, **SHAPE, install_model=install_model) as store:
        for number in numbers:
            store.add(name=name.format(number), source="/pictures", features=features_of(number))
            if number % per_commit == per_commit - 1:
                store.commit()


def message_of(call):
    """Return the message of the MapError that the call raises."""
    with pytest.raises(MapError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def count(path):
    with Map.open(path) as opened:
        return len(opened.read_tokens(range(len(opened))))


def scene_read_only(path):
    """Read and try to write as the user nobody, because root may write everywhere."""
    if os.geteuid() == 0:
        os.setuid(NOBODY)
    return count(path), message_of(lambda: write(path, [9])), message_of(lambda: write(path / "new", [9]))


def scene_hot_journal_read_only(path):
    if os.geteuid() == 0:
        os.setuid(NOBODY)
    return message_of(lambda: Map.open(path))


def scene_die_in_a_transaction(path):
    connection = sqlite3.connect(path / "map.sqlite", isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")  # pages go to the file before the commit
    connection.execute("BEGIN IMMEDIATE")
    for number in range(100, 200):
        connection.execute("INSERT INTO segments VALUES (?, ?, 1, 1, 1, 1)", (number, "x" * 1000))
    connection.execute("UPDATE blocks SET content = zeroblob(2000)")
    os.kill(os.getpid(), signal.SIGKILL)


def scene_segment_too_large(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    return message_of(lambda: write(path, range(4, 300), per_commit=100))


def scene_catalog_too_large(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    return message_of(lambda: write(path, range(4, 300), name="{}" + "x" * 2000))


def scene_few_files(path):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
    found = count(path)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 60))
    return found, message_of(lambda: Map.open(path))


def run(scene, path):
    """Return the result of the scene in a separate process, or None if a signal killed it."""
    command = [sys.executable, __file__, scene.__name__, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode < 0:
        return None
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def path():
    """A map of 4 pictures in 2 segments, in a folder that everybody may enter (pytest's own are private)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "map")
        write(path, range(4))
        yield path


@pytest.fixture
def read_only(path):
    """The same map, write-protected."""
    parts = [path, *path.rglob("*")]

    def allow(mode):
        for part in parts:
            part.chmod(mode | 0o111 if part.is_dir() else mode)

    yield lambda: allow(0o444)
    allow(0o644)


def test_a_read_only_map_can_be_read(path, read_only):
    read_only()
    found, existing, new = run(scene_read_only, path)
    assert found == 4
    assert existing.endswith("allow writing there or choose another folder")
    assert new.startswith(f"{path / 'new'} cannot be written")
    assert new.endswith("allow writing there or choose another folder")


def test_a_transaction_of_a_killed_writer_is_rolled_back(path, read_only):
    assert run(scene_die_in_a_transaction, path) is None
    journal = path / "map.sqlite-journal"
    assert journal.stat().st_size > 512

    read_only()
    parts = [path, *path.rglob("*")]
    assert journal in parts
    journal.chmod(0o444)
    message = run(scene_hot_journal_read_only, path)
    assert "was left in the middle of a commit and must be written to restore it" in message

    for part in parts:
        part.chmod(0o755 if part.is_dir() else 0o644)
    assert count(path) == 4
    assert not journal.exists()
    assert verify_map(path) == []


@pytest.mark.parametrize(
    ("scene", "file"), [(scene_segment_too_large, "segments"), (scene_catalog_too_large, "map.sqlite")]
)
def test_a_file_size_limit_keeps_committed_pictures(path, scene, file):
    message = run(scene, path)
    assert message.startswith(f"{path / file} cannot be written")
    assert message.endswith("run the command again; committed pictures are kept")
    kept = count(path)
    assert kept == 4 if file == "segments" else 4 < kept < 300
    assert verify_map(path) == []
    assert not list(path.rglob("*.partial"))
    write(path, range(1000, 1004))
    assert count(path) == kept + 4


def test_a_full_disk_keeps_committed_pictures(path):
    disk = path.parent / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system takes root's rights")
    try:
        message = message_of(lambda: write(disk / "map", range(1000)))
        assert message.endswith("make room and run the command again; committed pictures are kept")
        kept = count(disk / "map")
        assert 10 < kept < 1000
        assert kept % 2 == 0
        assert verify_map(disk / "map") == []

        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        write(disk / "map", range(kept, 100 + kept))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert count(disk / "map") == kept + 100
        assert "Read-only file system" in message_of(lambda: write(disk / "map", [5000]))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_interrupts_merge_and_repair_safely(path):
    disk = path.parent / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system takes root's rights")
    write(path, range(4, 1004), per_commit=250)
    try:
        write(disk / "map", [5000])
        message = message_of(lambda: merge_maps([path], disk / "map"))
        assert message.endswith("make room and run the command again; committed pictures are kept")
        kept = count(disk / "map")
        assert verify_map(disk / "map") == []
        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        report = merge_maps([path], disk / "map")
        assert (report.merged, report.already) == (1005 - kept, kept - 1)

        file = max((disk / "map" / "segments").iterdir(), key=lambda file: file.stat().st_size)
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        used = sum(file.stat().st_size for file in disk.rglob("*") if file.is_file())
        subprocess.run(["mount", "-o", f"remount,size={(used >> 10) + 40}k", str(disk)], check=True)
        message = message_of(lambda: repair_map(disk / "map"))
        assert message.endswith("make room and run the command again; committed pictures are kept")
        assert len(verify_map(disk / "map")) == 1
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert repair_map(disk / "map").kept == 1004
        assert count(disk / "map") == 1004
        assert find_partials(disk / "map") == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_more_segments_than_open_files_are_allowed(path):
    write(path, range(4, 60), per_commit=1)
    found, message = run(scene_few_files, path)
    assert found == 60
    assert "has 58 segments, but this process may open only 40 files" in message
    assert "ulimit -n" in message


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))  # noqa: T201
