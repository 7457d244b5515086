"""`pairvpr`: maps from pictures to answers, and what happens when something is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pairvpr.cli.errors import Terminated
from pairvpr.cli.main import main
from pairvpr.cli.run import main as run_main
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import FILE
from pairvpr.runtime.map import Map, MapWriter, verify_map
from pairvpr.runtime.model import default_bundle
from tests.scenes import draw_scene

COUNT, SIZE = 6, (96, 128)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for place in range(COUNT):
        Image.fromarray(draw_scene(place, 0, SIZE)).save(folder / f"p{place}.png")
    return folder


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that says it is of other weights."""
    path = tmp_path_factory.mktemp("bundles") / "other"
    bundle = Bundle.open(default_bundle())
    bundle.install(path)
    replace(path / FILE, dataclasses.replace(bundle.info, identity="0" * 64).to_json().encode())
    return path


@pytest.fixture
def db(pictures: Path, tmp_path: Path) -> Path:
    assert run("map", "build", pictures, "--db", tmp_path / "map").exit_code == 0
    return tmp_path / "map"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def start(*arguments: object, first: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, after the line `first` of Python."""
    script = f"import sys\n{first}\nfrom pairvpr.cli.main import main\nmain()"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def replace(file: Path, content: bytes) -> None:
    """Replace a file, not what is linked to it: the package's own bundle."""
    file.unlink()
    file.write_bytes(content)


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, (result.exit_code, result.output)
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for part in parts:
        assert part in result.stderr


def assert_ends_in_one_line(done: subprocess.CompletedProcess[str]) -> None:
    """As above, where work may have begun and been shown."""
    assert done.returncode == 2, done
    assert re.fullmatch(r"((engine|model|storing|tokens|pictures).*\n)*Error: .*\n", done.stderr)


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, ...]]:
    yield above
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)
        else:
            yield (*above, name)


def test_no_option_takes_what_is_no_number() -> None:
    checked = 0
    for names in commands(main):
        command: click.Command = main
        for name in names:
            assert isinstance(command, click.Group)
            command = command.commands[name]
        for option in (*command.params, *run_main.params):
            if isinstance(option.type, click.FloatRange | click.types.FloatParamType) and option.name != "budget_ms":
                checked += 1
                for text in ("nan", "inf", "-inf", "many"):
                    with pytest.raises(click.BadParameter, match=r"number|not in the range"):
                        option.type.convert(text, option, None)
    assert checked > 20


@pytest.mark.parametrize("command", list(commands(main)), ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    for option in ("--help", "-h"):
        result = run(*command, option)
        assert result.exit_code == 0
        assert result.stdout.startswith("Usage: ")
        assert re.search(r"\n\n  [A-Z]\w+", result.stdout), "does not say what it does"


@pytest.mark.parametrize("group", [(), ("map",), ("train",), ("engines",)], ids=" ".join)
def test_short_help_fits_its_line(group: tuple[str, ...]) -> None:
    assert "..." not in run(*group, "--help").stdout.partition("Commands:")[2]


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pairvpr", "map"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: pairvpr map [OPTIONS] COMMAND")


def test_no_command_shows_help() -> None:
    for result in (run(), run("map")):
        assert (result.exit_code, result.stdout) == (2, "")
        assert re.match(r"Usage: .*\n\n", result.stderr)


def test_a_map_from_its_building_to_its_check(pictures: Path, tmp_path: Path) -> None:
    db, more = tmp_path / "map", tmp_path / "more"
    (more / "tuesday").mkdir(parents=True)
    Image.fromarray(draw_scene(20, 0, SIZE)).save(more / "tuesday" / "@4000@5000@.png")
    (more / "bad.jpg").write_bytes(b"bad")
    poses = tmp_path / "poses.csv"
    poses.write_text("name,x,y,z,qx,qy,qz,qw\np1.png,1,2,3,0,0,0,1\n")

    built = run("map", "build", pictures, "--db", db, "--poses", poses)
    assert built.exit_code == 0, built.stderr
    assert f"{COUNT} pictures added, 1 with a place, 0 already there, 0 could not be read" in built.stdout
    assert re.search(rf"weights: pairvpr nano(.|\n)*pictures: {COUNT} of {COUNT}", built.stderr)
    again = run("map", "build", pictures, "--db", db)
    assert f"0 pictures added, 0 with a place, {COUNT} already there" in again.stdout
    added = run("map", "add", more, "--db", db)
    assert "1 pictures added, 1 with a place, 0 already there, 1 could not be read" in added.stdout
    assert re.search(r"^skipped: .*bad\.jpg", added.stderr, re.MULTILINE)

    listed = run("map", "list", "--db", db).stdout.splitlines()
    assert len(listed) == COUNT + 1
    assert "p2.png" in listed
    lines = [json.loads(line) for line in run("map", "list", "--db", db, "--format", "jsonl").stdout.splitlines()]
    assert {tuple(line) for line in lines} == {("name", "timestamp", "pose", "source")}
    found = {line["name"]: line["pose"] for line in lines}
    assert len(found) == COUNT + 1
    assert found["p1.png"] == {"x": 1, "y": 2, "z": 3, "q": [0, 0, 0, 1], "frame": "map"}
    assert found["p2.png"] is None
    assert (found["tuesday/@4000@5000@.png"]["x"], found["tuesday/@4000@5000@.png"]["y"]) == (4000, 5000)
    info = json.loads(run("map", "info", "--db", db, "--format", "jsonl").stdout)
    identity = Bundle.open(default_bundle()).identity
    assert (info["path"], info["identity"], info["preset"]) == (str(db), identity, "nano")
    assert (info["pictures"], info["with_pose"], info["with_gps"], info["deleted"]) == (COUNT + 1, 2, 0, 0)
    assert re.search(rf"^pictures +{COUNT + 1}$", run("map", "info", "--db", db).stdout, re.MULTILINE)
    verified = run("map", "verify", "--db", db)
    assert (verified.exit_code, verified.stdout) == (0, f"{db}: intact\n")

    assert_one_line(
        run("map", "remove", "p1.png", "p99.png", "--db", db), "no picture 'p99.png'", "nothing was removed"
    )
    assert run("map", "remove", "p1.png", "p2.png", "--db", db).stdout == f"{db}: 2 pictures removed\n"
    assert len(run("map", "list", "--db", db).stdout.splitlines()) == COUNT - 1


def test_strict_stops_at_a_picture_that_cannot_be_read(pictures: Path, db: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jpg").write_bytes(b"bad")
    for command, target in (("build", tmp_path / "new"), ("add", db)):
        assert_one_line(run("map", command, tmp_path / "in", "--db", target, "--strict"), "bad.jpg is not a picture")
    assert not (tmp_path / "new").exists()


def test_mistakes_are_told_in_one_line(pictures: Path, db: Path, tmp_path: Path, other_model: Path) -> None:
    new, file = tmp_path / "new", tmp_path / "file"
    file.write_text("x")
    build = ["map", "build", pictures, "--db"]
    assert_one_line(run(*build, new, "--model", tmp_path), "no model bundle there")
    assert_one_line(run(*build, db, "--model", other_model), "made with model", "not with 000000000000")
    assert_one_line(run(*build, new, "--poses", file), str(file))
    assert_one_line(run(*build, file), f"{file} is a file, not a folder")
    assert_one_line(run("map", "build", new, "--db", new), f"'{new}' is not a file, folder, camera or stream")
    assert_one_line(run("map", "add", pictures, "--db", new), "holds no map: build it")
    for command in ("list", "info", "verify"):
        assert_one_line(run("map", command, "--db", new), "holds no map")
    assert_one_line(run("map", "build", pictures), "Missing option '--db'")
    assert_one_line(run("map", "list", "--db", db, "--format", "xml"), "'xml' is not one of")
    assert_one_line(run("export", "--checkpoint", "a.pth", "--preset", "nano"), "exclude each other")
    assert not new.exists()


@pytest.mark.parametrize("where", ["tokens", "descriptor", "segment header", "catalog", "weights", "graph", "bundle"])
def test_verify_finds_a_flipped_byte(db: Path, where: str) -> None:
    segment = next((db / "segments").glob("*.safetensors"))
    header = 8 + int.from_bytes(segment.read_bytes()[:8], "little")
    file, place = {
        "tokens": (segment, -1000),
        "descriptor": (segment, header + 8),  # the first tensor
        "segment header": (segment, 20),
        "catalog": (db / "map.sqlite", (db / "map.sqlite").read_bytes().index(b"p3.png")),
        "weights": (db / "model" / "encoder.fp16.weights", 1_000_000),
        "graph": (db / "model" / "pair_suffix.fp16.onnx", 5000),
        "bundle": (db / "model" / FILE, 40),
    }[where]
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    replace(file, bytes(content))
    result = run("map", "verify", "--db", db)
    assert result.exit_code == 2
    assert re.fullmatch(r"(pictures checked: .*\n)?Error: .*\n", result.stderr)
    assert file.name in result.output
    assert "intact" not in result.stdout


def test_verify_knows_a_model_of_another_identity(db: Path, other_model: Path) -> None:
    replace(db / "model" / FILE, (other_model / FILE).read_bytes())
    assert "not the model that the map was made with" in run("map", "verify", "--db", db).stdout


def test_export_without_torch_says_how_to_get_it(tmp_path: Path) -> None:
    done = start("export", "--out", tmp_path / "out", first="sys.modules['torch'] = None")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r'Error: export needs torch, .*; run pip install "pairvpr\[export\]"\n', done.stderr)
    assert not (tmp_path / "out").exists()


def test_two_writers(db: Path, pictures: Path) -> None:
    Image.fromarray(draw_scene(30, 0, SIZE)).save(pictures / "late.png")
    info = Bundle.open(default_bundle()).info
    shapes = {"descriptor_dim": info.dims.descriptor, "token_shape": (info.dims.tokens, info.dims.token_dim)}
    try:
        with MapWriter.open(db, identity=info.identity, **shapes):
            assert_ends_in_one_line(done := start("map", "build", pictures, "--db", db))
            assert f"is being written by process {os.getpid()}" in done.stderr
            assert run("map", "list", "--db", db).exit_code == 0  # a reader may look on
        assert start("map", "build", pictures, "--db", db).returncode == 0
    finally:
        (pictures / "late.png").unlink()


# Kills itself when it uses for the n-th time a file whose name ends so; a commit a picture.
KILLER = """
import os, signal
import pairvpr.runtime.map.writer as writer
writer.COMMIT_PICTURES = 1
def watch(event, arguments):
    if event == {event!r} and {name!r} in str(arguments[{index}]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""


@pytest.mark.parametrize(
    ("event", "index", "name", "kept"),
    [
        ("os.rename", 0, "/.model.", None),
        ("os.rename", 0, "/.map.sqlite.", None),
        ("os.rename", 0, "/.000003.safetensors.", 2),
        ("open", 0, "/.000005.safetensors.", 4),
    ],
)
def test_a_killed_build_goes_on(
    pictures: Path, tmp_path: Path, event: str, index: int, name: str, kept: int | None
) -> None:
    db = tmp_path / "map"
    killed = start("map", "build", pictures, "--db", db, first=KILLER.format(event=event, index=index, name=name))
    assert killed.returncode == -signal.SIGKILL, killed
    if kept is not None:
        with Map.open(db) as places:
            assert [record.name for record in places.records] == [f"p{place}.png" for place in range(kept)]
        assert verify_map(db) == []
    again = run("map", "build", pictures, "--db", db)
    assert f"{COUNT - (kept or 0)} pictures added, 0 with a place, {kept or 0} already there" in again.stdout
    assert run("map", "verify", "--db", db).exit_code == 0
    assert sorted(entry.name for entry in db.iterdir()) == ["lock", "map.sqlite", "model", "segments"]


TERMINATED = """
import os, signal
import pairvpr.runtime.mapping.builder as builder
builder.ENCODE_BATCH = 2
add = builder.Adder.add
def add_one_batch(self, batch):
    add(self, batch)
    os.kill(os.getpid(), signal.SIGTERM)
builder.Adder.add = add_one_batch
"""


def test_a_build_that_is_told_to_end_keeps_its_work(pictures: Path, tmp_path: Path) -> None:
    db = tmp_path / "map"
    ended = start("map", "build", pictures, "--db", db, first=TERMINATED)
    assert (ended.returncode, "Traceback" in ended.stderr) == (143, False), ended.stderr
    assert "interrupted; nothing that was committed is lost" in ended.stderr
    assert run("map", "list", "--db", db).stdout.splitlines() == ["p0.png", "p1.png"]
    again = run("map", "build", pictures, "--db", db)
    assert f"{COUNT - 2} pictures added, 0 with a place, 2 already there" in again.stdout


def test_a_demo_cut_short_says_what_it_leaves(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert run("demo", "--images", pictures, "--out", out).exit_code == 0
    assert (out / "index.html").exists()

    def cut(*_: object) -> None:
        raise Terminated

    monkeypatch.setattr("pairvpr.demo.run._recognize", cut)
    ended = run("demo", "--images", pictures, "--out", out)
    assert ended.exit_code == 143
    assert ended.stderr.endswith(f"\ninterrupted; no page was written; the next demo replaces the content of {out}\n")
    assert not (out / "index.html").exists()


# No file may grow beyond a size: what a full disk does, without filling one.
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


@pytest.mark.parametrize("size", [0, 30_000])
def test_a_disk_that_is_full(pictures: Path, tmp_path: Path, size: int) -> None:
    db = tmp_path / "map"
    assert_ends_in_one_line(start("map", "build", pictures, "--db", db, first=FULL.format(size)))
    assert f"{COUNT} pictures added" in run("map", "build", pictures, "--db", db).stdout
    assert run("map", "verify", "--db", db).exit_code == 0


def test_a_full_disk_leaves_the_map_as_it_was(db: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "more" / "again")
    assert_ends_in_one_line(start("map", "add", tmp_path / "more", "--db", db, first=FULL.format(30_000)))
    assert verify_map(db) == []
    assert len(run("map", "list", "--db", db).stdout.splitlines()) == COUNT


def test_a_folder_that_cannot_be_written(pictures: Path, tmp_path: Path) -> None:
    locked = Path("/sys/kernel") if os.geteuid() == 0 else tmp_path / "locked"  # root may write nearly everywhere
    if os.geteuid() != 0:
        locked.mkdir(mode=0o500)
    assert_one_line(run("map", "build", pictures, "--db", locked / "map"), f"{locked / 'map'} cannot be written")


def test_demo_from_pictures(tmp_path: Path) -> None:
    for place in range(2):
        Image.fromarray(draw_scene(place, 0, SIZE)).save(tmp_path / f"p{place}.png")
    result = run("demo", "--images", tmp_path, "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "demo" / "index.html").read_text()
    note, recall, _ = result.stdout.splitlines()
    assert "easier than a real second visit" in note
    assert note in page
    assert recall.startswith("Recall@1")
