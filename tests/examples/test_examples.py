"""The examples run as they stand: programs as their users start them, the notebook cell by cell."""

from __future__ import annotations

import importlib.resources
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TOWN = Path(str(importlib.resources.files("pairvpr.demo"))) / "town"
NIGHT = TOWN / "queries" / "night" / "@2.90@17.06@86@night@4@.jpg"
ITS_PLACE = "@3.19@17.06@81@overcast@0@.jpg"
LINES = 40


def run(name: str, *arguments: object) -> list[str]:
    """The lines that an example prints; it must end well."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "map"
    lines = run("build_and_query.py", TOWN / "database", path, NIGHT)
    assert lines[0] == "30 pictures added, 0 skipped"
    assert lines[1].startswith(f"{ITS_PLACE}  score ")
    assert lines[-1] == "do not act on this: not calibrated"
    return path


def test_a_map_is_built_and_asked(db: Path) -> None:
    assert run("build_and_query.py", TOWN / "database", db, NIGHT)[0] == "0 pictures added, 0 skipped"


def test_a_source_is_answered_frame_by_frame(db: Path) -> None:
    lines = run("live_camera.py", db, NIGHT.parent)
    assert len(lines) == len(list(NIGHT.parent.iterdir()))
    assert all("compared; " in line for line in lines)


def test_two_folders_are_evaluated() -> None:
    lines = run("evaluate_folders.py", TOWN / "database", TOWN / "queries" / "day")
    assert lines[0].startswith("Recall@1: ")


def test_a_loop_is_closed(tmp_path: Path) -> None:
    """A drive that sees a place again a minute later, and another place in between."""
    drive = tmp_path / "cam0"
    (drive / "data").mkdir(parents=True)
    pictures = {0: ITS_PLACE, 30: "@1000.18@48.28@22@overcast@0@.jpg", 60: ITS_PLACE}
    rows = ["#timestamp [ns],filename"]
    for second, name in pictures.items():
        stamp = (1_000 + second) * 10**9
        Image.open(TOWN / "database" / name).save(drive / "data" / f"{stamp}.png")
        rows.append(f"{stamp},{stamp}.png")
    (drive / "data.csv").write_text("\n".join(rows) + "\n")
    *edges, last = run("close_loops.py", drive, tmp_path / "map", 5)
    assert last == "3 pictures added"
    (edge,) = edges
    assert edge.startswith("1060.0 s ")
    assert "-> 1000.0 s " in edge


def test_rtabmap_gets_the_descriptor_of_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    """RTAB-Map passes BGR as signed bytes, and takes one row of float32 numbers."""
    example = runpy.run_path(str(EXAMPLES / "rtabmap_descriptor.py"))
    expected = example["model"].encode([NIGHT]).descriptors
    rgb = np.asarray(Image.open(NIGHT).convert("RGB"))
    found = example["extract"](np.ascontiguousarray(rgb[..., ::-1]).view(np.int8))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    grey = np.asarray(Image.open(NIGHT).convert("L"))[..., None].view(np.int8)
    assert example["extract"](grey).shape == expected.shape
    example["init"](expected.shape[1])
    assert capsys.readouterr().out == ""
    example["init"](128)
    assert "PyDescriptor/Dim is 128" in capsys.readouterr().out


def test_a_mistake_ends_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "live_camera.py"), str(tmp_path / "nothing"), "cam0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    notebook = json.loads((EXAMPLES / "first_map.ipynb").read_text())
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "outputs are not committed"
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["answer"].best.name == ITS_PLACE
    assert names["sheet"].size == (3 * 192, 144)
    assert (255, 0, 0) in {colour for _, colour in names["plot"].getcolors()}


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.name)
def test_examples_are_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) < LINES
