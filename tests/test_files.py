"""Files and folders replaced in one step, and locks between processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from pairvpr import files
from pairvpr.files import find_partials, lock_file, remove, sync, write_atomically

MULTIPROCESSING = multiprocessing.get_context("spawn")


def note_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return the list that each fsync and rename adds to: its kind and the inode that it was asked for."""
    calls: list[tuple[str, int]] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        calls.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def note_rename(source: Path, target: Path) -> Path:
        calls.append(("rename", source.stat().st_ino))
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    return calls


def test_a_file_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    calls = note_calls(monkeypatch)
    with write_atomically(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert calls == [("sync", file), ("rename", file), ("sync", folder)]
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    calls = note_calls(monkeypatch)
    with write_atomically(path) as partial:
        (partial / "b").mkdir(parents=True)
        (partial / "b" / "c").write_text("new")
    inside = {file.stat().st_ino for file in (path, path / "b", path / "b" / "c")}
    renamed = calls.index(("rename", path.stat().st_ino))
    assert {inode for _, inode in calls[:renamed]} == inside
    assert calls[renamed + 1 :] == [("sync", tmp_path.stat().st_ino)]


@pytest.mark.parametrize("failing", ["write", "fsync", "rename"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failure_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, kind: str
) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(partial: Path) -> None:
        if kind == "folder":
            partial.mkdir()
        (partial / "b" if kind == "folder" else partial).write_text("new")
        if failing == "write":
            fail()

    if failing != "write":
        monkeypatch.setattr(*{"fsync": (os, "fsync"), "rename": (Path, "rename")}[failing], fail)
    with pytest.raises(OSError, match="No space left"), write_atomically(path) as partial:
        write(partial)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_share_a_file(tmp_path: Path) -> None:
    with write_atomically(tmp_path / "a") as first, write_atomically(tmp_path / "a") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"  # the outer block ends last


def test_what_a_killed_writer_left_is_found(tmp_path: Path) -> None:
    (tmp_path / ".mine.partial").write_text("mine")
    killed = write_atomically(tmp_path / "a.sqlite")
    partial = killed.__enter__()
    partial.write_text("half")
    journal = partial.with_name(f"{partial.name}-journal")
    journal.write_text("half")
    assert find_partials(tmp_path) == find_partials(tmp_path, "a.*") == [partial, journal]
    assert find_partials(tmp_path, "b.sqlite") == []
    assert find_partials(tmp_path / "missing") == []


def test_remove(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    assert (tmp_path / "folder" / "file").exists()
    remove(tmp_path / "folder")
    remove(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_share_that_cannot_sync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(code)):
        sync(tmp_path / "file")
    if code == errno.EINVAL:
        sync(tmp_path)
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            sync(tmp_path)


def hold(path: Path, begun: multiprocessing.synchronize.Event, ended: multiprocessing.synchronize.Event) -> None:
    """Lock a file in another process until told to stop."""
    with files.lock_file(path, "a test"):
        begun.set()
        ended.wait(60)


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    begun, ended = MULTIPROCESSING.Event(), MULTIPROCESSING.Event()
    other = MULTIPROCESSING.Process(target=hold, args=(path, begun, ended))
    other.start()
    try:
        assert begun.wait(60)
        with pytest.raises(BlockingIOError) as refused:
            lock_file(path, "a test")
        assert (refused.value.strerror or "").startswith(f"process {other.pid} on ")
    finally:
        ended.set()
        other.join()
    with lock_file(path, "a test"):
        assert path.read_text().startswith(f"a test: process {os.getpid()} on ")
        assert path.read_text().count("\n") == 1
    lock_file(path, "a test").close()


def test_a_lock_without_a_name_is_held_by_another_process(tmp_path: Path) -> None:
    stream = lock_file(tmp_path / "lock", "a test")
    stream.truncate(0)
    with stream, pytest.raises(BlockingIOError) as refused:
        lock_file(tmp_path / "lock", "a test")
    assert refused.value.strerror == "another process"
