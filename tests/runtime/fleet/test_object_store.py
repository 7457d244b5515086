"""A robot fetches its tiles from an object store, through fsspec."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("fsspec")

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from pairvpr.cli.main import main
from pairvpr.errors import MapError
from pairvpr.runtime.fleet.publishing import adopt
from pairvpr.runtime.fleet.pulling import pull
from pairvpr.runtime.map import verify_map
from tests.runtime.fleet.fleets import build, content_at, gps_of

RADIUS = 400.0
URL = "memory://bucket/fleet"


class FailingError(Exception):
    """An exception of a plug-in that is no OSError."""


class FailingStore(MemoryFileSystem):
    """A store whose connection is lost in the middle of large objects."""

    protocol = "failing"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("failing:/"))

    def _open(self, path, mode="rb", **options):
        opened, failed = super()._open(path, mode, **options), [0]

        class Failing:
            def read(self, size):
                failed[0] += 1
                if failed[0] > 2:
                    raise FailingError("connection\nlost")
                return opened.read(min(size, 1000))

            def close(self):
                pass

        return Failing()


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    adopt([build(tmp_path / "a", range(0, 60, 2))], tmp_path / "fleet")
    return tmp_path / "fleet"


def upload(fleet: Path, store: MemoryFileSystem) -> None:
    for file in sorted(fleet.rglob("*")):
        if file.is_file():
            store.pipe(f"/bucket/fleet/{file.relative_to(fleet).as_posix()}", file.read_bytes())


@pytest.fixture
def store(fleet: Path) -> Iterator[MemoryFileSystem]:
    files = MemoryFileSystem()
    upload(fleet, files)
    yield files
    files.rm("/bucket", recursive=True)


def test_a_part_is_fetched_and_only_changes_move(
    fleet: Path, tmp_path: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = tmp_path / "map"
    report = pull(URL, db, gps_of(20), RADIUS)
    assert report.pictures == len(content_at(db)) < 30
    assert content_at(db).items() <= content_at(tmp_path / "a").items()
    assert verify_map(db) == []
    opened: list[str] = []
    open_ = MemoryFileSystem._open

    def note(self: MemoryFileSystem, path: str, *arguments, **options):
        opened.append(path)
        return open_(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", note)
    again = pull(URL + "/", db, gps_of(20), RADIUS)
    assert (again.files, again.pictures) == (0, report.pictures)
    assert [path.split("/")[3] for path in opened] == ["fleet.json", "versions"]
    adopt([build(tmp_path / "b", range(20, 22), drive="b")], fleet)
    upload(fleet, store)
    later = pull(URL, db, gps_of(20), RADIUS)
    assert (later.version, later.pictures - report.pictures) == (2, 2)


def test_a_local_address_is_read(fleet: Path, tmp_path: Path) -> None:
    assert pull(f"file://{fleet}", tmp_path / "map").pictures == 30
    assert content_at(tmp_path / "map") == content_at(tmp_path / "a")


def test_cut_changed_and_missing_objects_leave_the_old_map(
    fleet: Path, tmp_path: Path, store: MemoryFileSystem
) -> None:
    db = tmp_path / "map"
    pull(URL, db, gps_of(20), RADIUS)
    before = content_at(db)
    name = sorted(each for each in store.find("/bucket/fleet/tiles") if each.endswith(".safetensors"))[0]
    whole = store.cat(name)
    for content, fault in (
        (whole[:-1], r"was cut short \(.*\): run the command again"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "is damaged"),
        (None, "is missing: restore the fleet from a copy, or run the command again later"),
    ):
        store.rm(name)
        if content is not None:
            store.pipe(name, content)
        with pytest.raises(MapError, match=rf"memory://bucket/fleet/tiles/.*\.safetensors {fault}"):
            pull(URL, db)
        assert content_at(db) == before
        store.pipe(name, whole)
    assert pull(URL, db).pictures == 30


def test_a_lost_connection_is_said_in_one_line(tmp_path: Path, store: MemoryFileSystem) -> None:
    fsspec.register_implementation("failing", FailingStore, clobber=True)
    result = run("failing://bucket/fleet", tmp_path / "map")
    assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
    assert "cannot be read (FailingError: connection lost): check the network" in result.output
    assert not (tmp_path / "map" / "map.sqlite").exists()


def run(fleet: str, db: Path):
    return CliRunner().invoke(main, ["fleet", "pull", "--fleet", fleet, "--db", str(db)])


@pytest.mark.parametrize(
    ("address", "missing", "fault"),
    [
        ("memory://empty", None, "memory://empty/ holds no fleet: check the address"),
        ("s3://bucket/fleet", "s3fs", r"s3://bucket/fleet needs a plug-in of fsspec (Install s3fs to access S3)"),
        ("s3://bucket/fleet", "fsspec", 'run pip install "pairvpr[objects]" and its plug-in for the address'),
        (
            "nothing://a/b",
            None,
            "nothing://a/b cannot be read (ValueError: Protocol not known: nothing): give a folder",
        ),
    ],
)
def test_an_address_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, missing: str | None, fault: str
) -> None:
    if missing is not None:
        for name in [each for each in sys.modules if each.partition(".")[0] == missing]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, missing, None)
        monkeypatch.delitem(sys.modules, "pairvpr.runtime.fleet.object_store", raising=False)
    result = run(address, tmp_path / "map")
    assert (result.exit_code, result.output.count("\n"), fault in result.output) == (2, 1, True), result.output
    assert not (tmp_path / "map").exists()
