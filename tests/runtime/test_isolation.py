"""The runtime lives without what made the model: nothing of it is imported, and nothing is missed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.scenes import draw_scene

BLOCKED = ("torch", "timm", "onnx", "torchvision", "onnxscript", "av", "rosbags", "h11", "fsspec")

BLOCK = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""


def python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for place in range(3):
        Image.fromarray(draw_scene(place, 0, (96, 128))).save(folder / f"p{place}.png")
    return folder


@pytest.mark.parametrize("name", BLOCKED)
def test_the_block_holds(name: str) -> None:
    done = python(f"{BLOCK}\nimport {name}")
    assert done.returncode == 1
    assert f"ModuleNotFoundError: {name} is blocked" in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "pairvpr",
        "pairvpr.bench.page",
        "pairvpr.calibration.acceptance",
        "pairvpr.calibration.cascade",
        "pairvpr.calibration.tune",
        "pairvpr.viewing.tuning_page",
        "pairvpr.cli.main",
        "pairvpr.demo.run",
        "pairvpr.doctor",
        "pairvpr.export",
        "pairvpr.export.tensorrt",
        "pairvpr.runtime",
        "pairvpr.cli.run",
        "pairvpr.runtime.mapping.loop_closing",
        "pairvpr.runtime.map",
        "pairvpr.runtime.mapping.builder",
        "pairvpr.runtime.engines.onnxruntime",
        "pairvpr.runtime.engines.openvino",
        "pairvpr.runtime.outputs.writers",
        "pairvpr.runtime.reference",
        "pairvpr.runtime.sequence.filter",
        "pairvpr.runtime.sources",
        "pairvpr.runtime.engines.tensorrt.engine",
        "pairvpr.runtime.mapping.token_storage",
        "pairvpr.viewing.map_page",
        "pairvpr.viewing.run_page",
        "pairvpr.viewing.viewers",
    ],
)
def test_imports(name: str) -> None:
    done = python(f"{BLOCK}\nimport {name}")
    assert done.returncode == 0, done.stderr


def test_a_map_is_built_and_asked(pictures: Path, tmp_path: Path) -> None:
    script = f"""{BLOCK}
pictures, db = sys.argv[1:]
from pairvpr.cli.main import main as pairvpr
from pairvpr.cli.run import main as pairvpr_run

def run(command, *arguments):
    try:
        command(arguments)
    except SystemExit as left:
        assert not left.code, left.code

run(pairvpr, "map", "build", pictures, "--db", db)
run(pairvpr, "map", "verify", "--db", db)
run(pairvpr_run, "--db", db, "--query", pictures, "--no-rerank")
run(pairvpr_run, "--db", db, "--query", pictures + "/p1.png")
from pairvpr.runtime import PlaceRecognizer, load_model
from pairvpr.runtime.reference import check_reference
with PlaceRecognizer.open(db) as vpr:
    assert vpr.recognize(pictures + "/p2.png").compared == 3
assert check_reference(load_model()).ok
assert not {{name.partition(".")[0] for name in sys.modules}} & set({BLOCKED})
"""
    done = python(script, pictures, tmp_path / "map")
    assert done.returncode == 0, done.stderr
    assert "3 pictures added" in done.stdout
    for place in range(3):
        assert f"p{place}.png -> p{place}.png" in done.stdout


def test_what_does_need_them_says_so(pictures: Path, tmp_path: Path) -> None:
    run = "\nfrom pairvpr.cli.main import main\nmain()"
    done = python(BLOCK + run, "export", "--out", tmp_path / "out")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert 'pip install "pairvpr[export]"' in done.stderr
    (tmp_path / "clip.mp4").write_bytes(b"\0" * 1000)
    query = "\nfrom pairvpr.cli.run import main\nmain()"
    done = python(BLOCK + query, "--db", tmp_path, "--query", tmp_path / "clip.mp4")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "pairvpr[video]" in done.stderr
    (tmp_path / "drive.bag").write_bytes(b"#ROSBAG V2.0\n")
    done = python(BLOCK + query, "--db", tmp_path, "--query", tmp_path / "drive.bag")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "pairvpr[bags]" in done.stderr
    pairvpr_map = tmp_path / "map"
    python(BLOCK + "\nfrom pairvpr.cli.main import main\nmain()", "map", "build", pictures, "--db", pairvpr_map)
    done = python(BLOCK + query, "--db", pairvpr_map, "--query", pictures, "--out", tmp_path / "out.mcap")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "pairvpr[bags]" in done.stderr
    done = python(BLOCK + query, "--db", tmp_path, "--serve", f"unix:{tmp_path}/x.sock")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "pairvpr[serve]" in done.stderr


def test_help_needs_only_click() -> None:
    for module in ("pairvpr.cli.main", "pairvpr.cli.run"):
        done = python(f"{BLOCK}\nfrom {module} import main\nmain(['--help'])")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Usage: ")


def test_the_package_itself_imports_nothing() -> None:
    heavy = ("numpy", "PIL", "faiss", "onnxruntime", "openvino", "safetensors", "click", *BLOCKED)
    done = python(f"import pairvpr, pairvpr.errors, pairvpr.export, sys\nprint(*set({heavy}) & set(sys.modules))")
    assert (done.returncode, done.stdout.strip()) == (0, ""), done


def test_engines_load_only_where_they_are_used() -> None:
    modules = ("onnxruntime", "openvino", "av")
    done = python(f"import pairvpr.runtime, sys\nprint([name in sys.modules for name in {modules}])")
    assert done.stdout.strip() == str([False] * 3), done


def test_nobody_is_told_what_runs_here(pictures: Path, tmp_path: Path) -> None:
    """ONNX Runtime's official builds make an identifier for telemetry as they start, unless told not to before."""
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    script = "import sys\nfrom pairvpr.runtime import load_model\nload_model().encode([sys.argv[1]])"
    command = [sys.executable, "-c", script, str(pictures / "p0.png")]
    subprocess.run(command, env=home, check=True)
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]
