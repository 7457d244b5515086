"""Pictures and drives leave a fleet, and with the next pull the maps of robots."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pairvpr.cli.main import main
from pairvpr.errors import MapError
from pairvpr.runtime.fleet import removal
from pairvpr.runtime.fleet.collection import collect
from pairvpr.runtime.fleet.publishing import adopt
from pairvpr.runtime.fleet.pulling import pull
from pairvpr.runtime.fleet.removal import remove_pictures
from pairvpr.runtime.fleet.storage import FolderStorage
from pairvpr.runtime.fleet.tiles import open_tiles
from pairvpr.runtime.fleet.version import read_current
from pairvpr.runtime.map import verify_map
from tests.runtime.fleet.fleets import build, content_at, content_of, files_of


def content(fleet: Path) -> dict[str, tuple]:
    with open_tiles(fleet, read_current(FolderStorage(fleet))) as opened:
        return content_of(opened)


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A fleet of drive a in tiles of its own, and of drives b and c, published together in common tiles."""
    path = tmp_path / "fleet"
    adopt([build(tmp_path / "a", range(12))], path)
    mixed = build(tmp_path / "bc", range(8), drive="b")
    build(mixed, range(4, 12), drive="c")
    adopt([mixed], path)
    return path


@pytest.mark.parametrize(("names", "left"), [(["a"], "bc"), (["b/"], "ac"), (["a", "c"], "b"), (["a", "b", "c"], "")])
def test_drives_leave_and_the_others_stay(fleet: Path, tmp_path: Path, names: list[str], left: str) -> None:
    before = content(fleet)
    pull(fleet, tmp_path / "map")
    report = remove_pictures(fleet, names)
    expected = {name: held for name, held in before.items() if name[0] in left}
    assert (report.version, report.pictures) == (3, len(before) - len(expected))
    version = read_current(FolderStorage(fleet))
    assert version.pictures == len(expected)
    if expected:
        assert content(fleet) == expected
        moved = pull(fleet, tmp_path / "map")
        assert content_at(tmp_path / "map") == expected
        assert verify_map(tmp_path / "map") == []
        assert moved.files == report.replaced  # catalogs
        collect(fleet)
        assert content(fleet) == expected
    adopt([tmp_path / "a", tmp_path / "bc"], fleet)
    assert content(fleet) == before


def test_tiles_without_a_picture_are_dropped(fleet: Path) -> None:
    before = read_current(FolderStorage(fleet)).tiles
    report = remove_pictures(fleet, ["a/"])
    assert (report.pictures, report.replaced) == (12, 0)
    assert read_current(FolderStorage(fleet)).tiles == before[report.dropped :]


def test_pictures_leave_by_name(fleet: Path) -> None:
    before = content(fleet)
    report = remove_pictures(fleet, ["a/003.jpg", "c/004.jpg"])
    assert (report.pictures, report.dropped, report.replaced > 0) == (2, 0, True)
    assert content(fleet) == {name: each for name, each in before.items() if name not in ("a/003.jpg", "c/004.jpg")}


@pytest.mark.parametrize("name", ["d", "", "a/00", "003.jpg"])
def test_a_name_of_no_picture_changes_nothing(fleet: Path, name: str) -> None:
    before = files_of(fleet)
    with pytest.raises(MapError, match="no picture or drive is named"):
        remove_pictures(fleet, ["b", name])
    assert files_of(fleet) == before


def test_a_failure_changes_nothing(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, listed = content(fleet), read_current(FolderStorage(fleet))

    def fail(*_: object) -> None:
        raise MapError("cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(removal, "commit", fail)
        with pytest.raises(MapError):
            remove_pictures(fleet, ["b"])
    assert (content(fleet), read_current(FolderStorage(fleet))) == (before, listed)
    assert not (fleet / "staging").exists()


def test_the_command(fleet: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["fleet", "remove", "b", "--fleet", str(fleet)])
    assert (result.exit_code, "version 3, 8 pictures removed" in result.output) == (0, True), result.output
    for arguments, fault in (
        (["b", "--fleet", str(fleet)], "no picture or drive is named 'b'"),
        (["a", "--fleet", str(tmp_path / "none")], "holds no fleet"),
    ):
        result = CliRunner().invoke(main, ["fleet", "remove", *arguments])
        assert (result.exit_code, result.output.count("\n"), fault in result.output) == (2, 1, True), result.output
