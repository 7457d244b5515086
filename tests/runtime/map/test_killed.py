"""Changes to a map killed at random moments keep committed pictures, and can be repeated.

Run as a script this file kills processes that do so: its own arguments are the job, a folder and how many moments.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import pairvpr
from pairvpr.runtime.features import Features
from pairvpr.runtime.map import Map, MapWriter, catalog, merge_maps, repair_map, verify_map, writer

SHAPE = {"identity": "a" * 64, "descriptor_dim": 8, "token_shape": (5, 4)}
OWN = {f"{number}.jpg" for number in range(12)}
OTHERS = {f"{number}.jpg" for number in range(12, 36)}
GONE = {"1.jpg", "5.jpg", "13.jpg", "30.jpg"}
DAMAGED = {"2.jpg"}
ADDED = {f"{number}.jpg" for number in range(100, 107)}


def features_of(name):
    random = np.random.default_rng(int(name.partition(".")[0]))
    descriptors = random.standard_normal((1, 8), np.float32)
    descriptors /= np.linalg.norm(descriptors)
    return Features(descriptors, random.standard_normal((1, 5, 4), np.float32))


def install_model(folder):
    (folder / "bundle.json").write_text("{}")


def build(path, names):
    """Add the missing pictures to a map, 3 to a segment."""
    with MapWriter.open(path, **SHAPE, install_model=install_model) as store:
        for name in sorted(names - set(store.names()), key=lambda name: int(name.partition(".")[0])):
            store.add(name=name, source="/pictures", features=features_of(name))


def damage(path):
    """Flip the last bit of the first segment: the tokens of its last picture."""
    file = path / "segments" / "000001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def names_in(path):
    """Return the names in a map after checking each picture's features."""
    with Map.open(path) as opened:
        names = [record.name for record in opened.records]
        expected = [features_of(name) for name in names]
        np.testing.assert_array_equal(opened.descriptors, np.concatenate([each.descriptors for each in expected]))
        tokens = np.concatenate([each.tokens for each in expected]).astype(np.float16)
        np.testing.assert_array_equal(opened.read_tokens(range(len(names))), tokens)
    return set(names)


def change(path, other):
    build(path, ADDED)
    merge_maps([other], path)
    with MapWriter.edit(path) as store:
        store.remove(GONE & set(store.names()))
        store.compact()


def say_commits(pipe):
    """Make every commit print the names that it added (+) and removed (-)."""
    append, delete, replace = catalog.append, catalog.delete, catalog.replace

    def say(what):
        os.write(pipe, f"{what}\n".encode())

    def saying_append(connection, meta, segment, records):
        append(connection, meta, segment, records)
        say(" ".join(f"+{record.name}" for record in records))

    def saying_delete(connection, records):
        delete(connection, records)
        say(" ".join(f"-{record.name}" for record in records))

    def saying_replace(*arguments):
        replace(*arguments)
        say("compacted")

    catalog.append, catalog.delete, catalog.replace = saying_append, saying_delete, saying_replace


def run_and_kill(job, seconds):
    """Run the job in a process killed after a time in seconds (None: never). Return whether it died, and its output."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        say_commits(write)
        job()
        os._exit(0)
    os.close(write)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(read) as stream:
        said = stream.read().split()
    assert status in (0, -signal.SIGKILL), status
    return status != 0, said


def check_change(path, other, said):
    """Check the map of a process killed during changes, and that the changes can be repeated."""
    assert verify_map(path) == []
    names = names_in(path)
    assert OWN - GONE <= names <= OWN | ADDED | OTHERS
    added = {word[1:] for word in said if word[0] == "+"}
    removed = {word[1:] for word in said if word[0] == "-"}
    assert added - GONE <= names
    if removed:
        assert removed == GONE
        assert names == (OWN | ADDED | OTHERS) - GONE
    elif names >= OTHERS - GONE:
        assert names & GONE in (GONE, set())  # all were removed, or none
    change(path, other)
    assert names_in(path) == (OWN | ADDED | OTHERS) - GONE
    assert len(list((path / "segments").iterdir())) == catalog.load(path).meta.segments == 1
    assert verify_map(path) == []


def check_repair(path):
    """Check the map of a process killed during a repair, and that the repair can be repeated."""
    assert len(verify_map(path)) <= 1
    with Map.open(path) as opened:
        assert OWN - DAMAGED <= {record.name for record in opened.records} <= OWN
    report = repair_map(path)
    assert report.kept == len(OWN - DAMAGED)
    assert names_in(path) == OWN - DAMAGED
    assert verify_map(path) == []
    assert {file.name for file in (path / "damaged").iterdir()} == {"map.sqlite", "000001.safetensors"}
    assert len(list((path / "segments").iterdir())) == catalog.load(path).meta.segments


def kill(kind, folder, moments):
    """Run the job once to measure its time, then kill it at `moments` random moments."""
    writer.COMMIT_PICTURES = 3
    build(folder / "sound", OWN)
    build(folder / "other", OTHERS)
    if kind == "repair":
        damage(folder / "sound")
    chance, path, killed, taken = random.Random(moments), folder / "map", 0, 0.0
    for moment in range(-1, moments):
        shutil.copytree(folder / "sound", path)
        began = time.monotonic()
        job = (lambda: change(path, folder / "other")) if kind == "change" else (lambda: repair_map(path))
        died, said = run_and_kill(job, None if moment < 0 else chance.uniform(0, taken))
        if moment < 0:
            taken = time.monotonic() - began
        else:
            taken *= 1.1 if died else 0.8  # a disk is not as fast every time
        killed += died
        if kind == "change":
            check_change(path, folder / "other", said)
        else:
            check_repair(path)
        shutil.rmtree(path)
    print(killed)  # noqa: T201


@pytest.mark.parametrize("kind", ["change", "repair"])
@pytest.mark.parametrize("moments", [10, pytest.param(200, marks=pytest.mark.soak)])
def test_killed_at_random_moments(tmp_path, kind, moments):
    command = [sys.executable, __file__, kind, str(tmp_path), str(moments)]
    # The package that is tested, wherever another one is installed.
    environment = {**os.environ, "PYTHONPATH": str(Path(pairvpr.__file__).parent.parent)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60 * moments, check=True, env=environment)
    assert int(done.stdout) >= moments // 3  # the others were done by then


if __name__ == "__main__":
    kill(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
