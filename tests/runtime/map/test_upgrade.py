"""Maps of the formats before blocks are read as they are. The first commit brings them to the present format, whole."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pairvpr.runtime.features import Features
from pairvpr.runtime.map import Map, MapWriter, Record, catalog, repair_map, tables, verify_map
from pairvpr.runtime.map.meta import FORMAT, INDEX
from tests.runtime.map.forging import edit_records, has_rows, make_map, to_rows

SHAPE = {"identity": "a" * 64, "descriptor_dim": 8, "token_shape": (5, 4)}
COUNT = 300  # more than a block


@pytest.fixture(params=["float16"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = make_map(tmp_path / "map", COUNT, request.param)
    with MapWriter.edit(path) as writer:
        writer.remove(["4.jpg"])
    return to_rows(path)


def add(path: Path) -> None:
    with MapWriter.open(path, **SHAPE) as writer:
        features = Features(np.eye(1, 8, dtype=np.float32), np.ones((1, 5, 4), np.float32))
        if "new.jpg" not in writer.names():
            writer.add(name="new.jpg", source="/new", features=features)


def remove(path: Path) -> None:
    with MapWriter.edit(path) as writer:
        writer.remove({"3.jpg", "299.jpg"} & set(writer.names()))


def compact(path: Path) -> None:
    with MapWriter.edit(path) as writer:
        writer.compact()


def content(path: Path) -> dict[str, Any]:
    """Return each record less its storage, with its features, after verifying the map."""
    assert verify_map(path) == []
    with Map.open(path) as opened:
        tokens = opened.read_tokens(range(len(opened)))
        return {
            record.name: (_stripped(record), opened.descriptors[row].tobytes(), tokens[row].tobytes())
            for row, record in enumerate(opened.records)
        }


def _stripped(record: Record) -> tuple[Any, ...]:
    return record.id, record.source, record.timestamp, record.pose, record.gps, record.descriptor_crc, record.tokens_crc


def test_a_map_of_rows_is_read_and_left_as_it_is(path: Path) -> None:
    before = (path / "map.sqlite").read_bytes()
    assert len(content(path)) == COUNT - 1
    MapWriter.edit(path).close()
    assert repair_map(path).aside == ()
    assert (path / "map.sqlite").read_bytes() == before


@pytest.mark.parametrize("path", ["float16", "int8"], indirect=True)
@pytest.mark.parametrize("job", [add, remove, compact])
def test_the_first_commit_brings_a_map_to_blocks(path: Path, job: Callable[[Path], None]) -> None:
    before = content(path)
    job(path)
    assert not has_rows(path)
    assert catalog.load(path).meta.format == FORMAT == 3
    after = content(path)
    gone = {"3.jpg", "299.jpg"} if job is remove else set()
    assert {name: each for name, each in after.items() if name != "new.jpg"} == {
        name: each for name, each in before.items() if name not in gone
    }
    assert ("new.jpg" in after) == (job is add)


def test_compaction_brings_a_map_to_blocks_that_has_nothing_to_free(path: Path) -> None:
    compact(path)
    to_rows(path)
    before = content(path)
    with MapWriter.edit(path) as writer:
        assert writer.compact() == 0
    assert not has_rows(path)
    assert content(path) == before


def test_a_repair_brings_a_map_to_blocks(path: Path) -> None:
    edit_records(path, lambda record: record)
    with sqlite3.connect(path / "map.sqlite") as connection:
        connection.execute("UPDATE records SET name = 'x' WHERE id = 9")
    connection.close()
    assert repair_map(path).kept == COUNT - 2
    assert not has_rows(path)
    assert "8.jpg" not in content(path)


def test_a_large_map_of_rows_is_still_searched_in_half_precision(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Map.open(path, descriptors=False) as small:
        assert small.index_precision == "float32"
    monkeypatch.setattr("pairvpr.runtime.map.meta.HALF_PRECISION_FROM", COUNT - 1)
    with Map.open(path) as opened:
        assert opened.index_precision == "float16"
        remove(path)
        with Map.open(path) as after, opened.open_newer() or opened as newer:
            assert after.index_precision == newer.index_precision == after.settings[INDEX] == "float16"


@pytest.mark.slow
@pytest.mark.parametrize("job", [add, remove, compact])
def test_a_conversion_killed_at_every_statement(path: Path, job: Callable[[Path], None]) -> None:
    sound, work = content(path), path.parent / "work"
    formats = set()
    for step in range(1000):
        shutil.copytree(path, work)
        died = _dies(lambda: job(work), step)
        formats.add(has_rows(work))
        names = set(content(work))
        assert names >= set(sound) - {"3.jpg", "299.jpg"}
        assert names & {"3.jpg", "299.jpg"} in (set(), {"3.jpg", "299.jpg"})
        job(work)
        assert not has_rows(work)
        kept = {name: each for name, each in content(work).items() if name != "new.jpg"}
        assert kept == {name: each for name, each in sound.items() if name in kept}
        assert len(kept) == len(sound) - 2 * (job is remove)
        shutil.rmtree(work)
        if not died:
            break
    assert step > 10
    assert formats == {True, False}


def _dies(job: Callable[[], None], step: int) -> bool:
    """Return whether a forked process dies at its n-th statement of SQL before the end of its job."""
    child = os.fork()
    if child == 0:
        left, connect = step, tables.connect

        def count(_: str) -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        def traced(file: Path, mode: str) -> sqlite3.Connection:
            connection = connect(file, mode)
            connection.execute("PRAGMA cache_size=1")  # pages reach the file before the commit
            connection.set_trace_callback(count)
            return connection

        tables.connect = traced
        job()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0
