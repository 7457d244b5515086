"""A map is as before or after a commit whenever its writer dies, and readers never see half a commit.

Run as a script this file is the writer that the tests start and kill.
"""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pairvpr.errors import MapError
from pairvpr.runtime.features import Features
from pairvpr.runtime.map import Map, MapWriter, catalog, verify_map
from pairvpr.runtime.map.segments import FOLDER, write_segment

SHAPE = {"identity": "a" * 64, "descriptor_dim": 8, "token_shape": (5, 4)}
PER_COMMIT = 3


def features_of(number):
    random = np.random.default_rng(number)
    descriptors = random.standard_normal((1, 8), np.float32)
    descriptors /= np.linalg.norm(descriptors)
    return Features(descriptors, random.standard_normal((1, 5, 4), np.float32))


def install_model(folder):
    (folder / "bundle.json").write_text("{}")
    (folder / "part").mkdir()
    (folder / "part" / "encoder.onnx").write_bytes(bytes(1000))


def open_writer(path):
    return MapWriter.open(path, **SHAPE, install_model=install_model)


def write(path, total):
    """Add pictures until the map has `total`, printing the number of committed ones."""
    with open_writer(path) as store:
        for number in range(len(store.names()), total):
            store.add(name=f"{number}.jpg", source="/pictures", features=features_of(number))
            if number % PER_COMMIT == PER_COMMIT - 1:
                store.commit()
                print(number + 1, flush=True)  # noqa: T201
                time.sleep(0.0005)


def check(path):
    """Return the number of pictures after checking that they are the first ones, whole and undamaged."""
    with Map.open(path) as opened:
        count = len(opened)
        assert [record.name for record in opened.records] == [f"{number}.jpg" for number in range(count)]
        if count:
            expected = Features.concatenate([features_of(number) for number in range(count)])
            np.testing.assert_array_equal(opened.descriptors, expected.descriptors)
            np.testing.assert_array_equal(opened.read_tokens(range(count)), expected.tokens.astype(np.float16))
    assert (path / "model" / "part" / "encoder.onnx").stat().st_size == 1000
    return count


@pytest.mark.parametrize("step", ["write_segment", "catalog.append"])
def test_a_signal_takes_effect_after_the_commit(tmp_path, monkeypatch, step):
    """What was told of pictures before, as of their loops, then holds of the map."""
    where = f"pairvpr.runtime.map.{'pending' if step == 'write_segment' else 'writer'}.{step}"
    happened, original = [], write_segment if step == "write_segment" else catalog.append

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        happened.append(step)
        return original(*arguments)

    monkeypatch.setattr(where, interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background ignores it
    try:
        with open_writer(tmp_path / "map") as store:
            store.add(name="0.jpg", source="/pictures", features=features_of(0))
            with pytest.raises(KeyboardInterrupt):
                store.commit()
    finally:
        signal.signal(signal.SIGINT, before)
    assert happened == [step]
    assert check(tmp_path / "map") == 1


def start(*arguments):
    """Start this file as a script and wait until its imports are done."""
    command = [sys.executable, __file__, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def dies(step, job):
    """Return whether a forked process dies at its n-th use of a file before the end of its job."""
    child = os.fork()
    if child == 0:
        left = step

        def hook(event, arguments):
            nonlocal left
            if event in {"open", "os.rename", "os.mkdir", "os.remove", "sqlite3.connect"}:
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(hook)
        job()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def edit(path):
    """Remove the last of 3 commits' pictures, and compact."""
    with MapWriter.edit(path) as store:
        store.remove([f"{3 * PER_COMMIT - 1}.jpg"])
        store.compact()


def die_at_every_step(path):
    """Write 2 commits in a process killed at its n-th use of a file, for every n.

    After each death the map must be whole, and must be completed by another writer.
    """
    step = 0
    while True:
        folder = path / str(step)
        died = dies(step, lambda folder=folder: write(folder, 2 * PER_COMMIT))
        if (folder / catalog.FILE).exists():
            assert check(folder) % PER_COMMIT == 0
        write(folder, 2 * PER_COMMIT)
        assert check(folder) == 2 * PER_COMMIT
        assert {file.name for file in folder.iterdir()} == {"lock", "map.sqlite", "model", "segments"}
        assert len(list((folder / FOLDER).iterdir())) == 2
        if not died:
            print("steps", step, flush=True)  # noqa: T201
            return
        step += 1


def edit_and_die_at_every_step(path):
    """Remove a picture and compact, in a process that dies at its n-th use of a file, for every n."""
    step, counts = 0, set()
    while True:
        folder = path / str(step)
        write(folder, 3 * PER_COMMIT)
        died = dies(step, lambda folder=folder: edit(folder))
        counts.add((check(folder), catalog.load(folder).meta.segments))
        assert verify_map(folder) == []
        with MapWriter.edit(folder) as store:
            store.compact()
            assert len(store.names()) in (3 * PER_COMMIT, 3 * PER_COMMIT - 1)
        check(folder)
        assert len(list((folder / FOLDER).iterdir())) == 1
        if not died:
            assert counts == {(9, 3), (8, 3), (8, 1)}  # before, between and after the two commits
            print("steps", step, flush=True)  # noqa: T201
            return
        step += 1


def test_a_writer_killed_at_random_moments(tmp_path):
    path = tmp_path / "map"
    chance, longest = random.Random(5), 0.12
    counts = []
    while len(counts) < 15 or len(set(counts)) <= 5:  # until enough writers were killed at work
        process = start("write", path, 100_000)
        time.sleep(chance.uniform(0, longest))
        process.kill()
        said, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL
        counts.append(check(path) if (path / catalog.FILE).exists() else 0)
        if counts[-1] == max(counts[:-1], default=0):
            longest *= 1.5  # other work has the processor
            assert longest < 60
        if not counts[-1]:
            continue
        assert verify_map(path) == []
        assert counts[-1] >= max((int(line) for line in said.split()), default=0)
    assert counts == sorted(counts)
    write(path, counts[-1] + 10)
    assert check(path) == counts[-1] + 10
    assert len(list((path / FOLDER).iterdir())) == catalog.load(path).meta.segments


def test_a_writer_killed_at_every_step(tmp_path):
    process = start("die", tmp_path)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert int(said.split()[-1]) > 15


def test_an_editor_killed_at_every_step(tmp_path):
    process = start("edit", tmp_path)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert int(said.split()[-1]) > 6


def test_a_reader_beside_a_writer(tmp_path):
    path = tmp_path / "map"
    write(path, PER_COMMIT)
    early = Map.open(path)
    process = start("write", path, 80 * PER_COMMIT)
    counts = []
    while process.poll() is None:
        counts.append(check(path))
    process.communicate()
    assert process.returncode == 0
    assert all(count % PER_COMMIT == 0 for count in counts)
    assert len(set(counts)) > 5  # it was read while it grew
    assert check(path) == 80 * PER_COMMIT
    with early:
        assert len(early) == len(early.read_tokens(range(PER_COMMIT))) == PER_COMMIT


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "map"
    with open_writer(path) as store:
        with pytest.raises(MapError, match=rf"being written by process {os.getpid()} on .* since 20"):
            open_writer(path)
        store.add(name="0.jpg", source="/pictures", features=features_of(0))
    with open_writer(path) as store:
        assert store.names() == {"0.jpg": "/pictures"}


def test_files_of_interrupted_commits_are_removed(tmp_path):
    path = tmp_path / "map"
    write(path, PER_COMMIT)
    folder = path / FOLDER
    for name in ("000002.safetensors", "000003.safetensors.tmp", ".000003.safetensors.4f.partial"):
        (folder / name).write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    assert check(path) == PER_COMMIT
    assert verify_map(path) == []
    write(path, 2 * PER_COMMIT)
    assert {file.name for file in folder.iterdir()} == {
        "000001.safetensors",
        "000002.safetensors",
        "notes.txt",
    }
    assert check(path) == 2 * PER_COMMIT


def test_a_segment_is_on_the_disk_before_it_is_committed(tmp_path, monkeypatch):
    path = tmp_path / "map"
    write(path, PER_COMMIT)
    events = []
    sync, rename, append = os.fsync, Path.rename, catalog.append

    def note_sync(descriptor):
        events.append(("sync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def note_rename(source, target):
        events.append(("rename", source.stat().st_ino))
        return rename(source, target)

    def note_append(*arguments):
        events.append(("commit", None))
        append(*arguments)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(catalog, "append", note_append)
    write(path, 2 * PER_COMMIT)
    file = (path / FOLDER / "000002.safetensors").stat().st_ino
    folder = (path / FOLDER).stat().st_ino
    assert events == [("sync", file), ("rename", file), ("sync", folder), ("commit", None)]


def test_a_failed_creation_can_be_repeated(tmp_path):
    path = tmp_path / "map"

    def fail(folder):
        (folder / "half").write_text("")
        raise RuntimeError("the bundle is gone")

    with pytest.raises(RuntimeError, match="the bundle is gone"):
        MapWriter.open(path, **SHAPE, install_model=fail)
    with pytest.raises(MapError, match="holds no map"):
        Map.open(path)
    write(path, PER_COMMIT)
    assert check(path) == PER_COMMIT
    assert not (path / "model" / "half").exists()


def test_a_failed_commit_can_be_repeated_by_another_writer(tmp_path, monkeypatch):
    path = tmp_path / "map"
    write(path, PER_COMMIT)

    def fail(*arguments):
        raise sqlite3.OperationalError("database or disk is full")

    store = open_writer(path)
    with monkeypatch.context() as patched:
        patched.setattr(catalog, "append", fail)
        with pytest.raises(MapError, match=r"map\.sqlite cannot be written .* make room"), store:  # noqa: PT012
            store.add(name="3.jpg", source="/pictures", features=features_of(3))
            with pytest.raises(MapError, match="make room"):
                store.commit()
            with pytest.raises(MapError, match="open it again"):
                store.commit()
            raise MapError("map.sqlite cannot be written again: make room")
    assert check(path) == PER_COMMIT
    write(path, 2 * PER_COMMIT)
    assert check(path) == 2 * PER_COMMIT


if __name__ == "__main__":
    print("ready", flush=True)  # noqa: T201
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1] == "die":
        die_at_every_step(Path(sys.argv[2]))
    else:
        edit_and_die_at_every_step(Path(sys.argv[2]))
