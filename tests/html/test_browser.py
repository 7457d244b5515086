"""Every page in a real browser, at the widths of a phone and of a desk, light and dark.

PAIRVPR_SCREENSHOTS names a folder that keeps the pictures.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr.calibration.trials import Trial, Tuned
from pairvpr.cli.main import main
from pairvpr.cli.run import main as run_main
from pairvpr.demo.run import run_demo
from pairvpr.html.document import write_page
from pairvpr.runtime import Map
from pairvpr.runtime.calibrated.tuning import RuntimeSetting
from pairvpr.viewing import tuning_page
from tests.runtime.outputs.ros_contract import write_accepting_map

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]
PLACES = 8
WIDTHS = (390, 1280)
HEIGHT = 3000
FIGURES = {
    "demo": ("img", 3),
    "map": ("svg", 1),
    "run": ("svg", 3),
    "eval": ("svg", 4),
    "bench": ("tables", 3),
    "doctor": ("tables", 1),
    "tune": ("svg", 1),
}
"""The least number of figures of a kind on a page."""

# The frame has the width of the screen: the browser itself is never narrower than 500 pixels.
WRAPPER = """<!DOCTYPE html><body style="margin: 0"><iframe id="page" srcdoc="{page}"
  style="border: 0; width: {width}px; height: {height}px"></iframe><pre id="found"></pre><script>
window.onload = () => setTimeout(() => {{
  const page = document.getElementById("page").contentDocument, root = page.documentElement;
  const told = element => element.tagName + "." + element.className + " " + element.textContent.trim().slice(0, 40);
  const marks = [...page.querySelectorAll("svg .mark")];
  if (marks.length) marks[marks.length - 1].focus();
  document.getElementById("found").textContent = JSON.stringify({{
    width: root.scrollWidth,
    wide: [...page.querySelectorAll("main *")].filter(each => !each.closest("svg") &&
      each.getBoundingClientRect().right > root.clientWidth + 1).map(told),
    scrolled: [...page.querySelectorAll(".figure")].filter(each => each.scrollWidth > each.clientWidth + 1).map(told),
    small: [...page.querySelectorAll("svg text:not(.number)")].filter(each => each.getBoundingClientRect().height > 0 &&
      each.getBoundingClientRect().height < 9 && each.getAttribute("transform") === null).map(told),
    tables: page.querySelectorAll("table").length,
    img: [...page.images].filter(each => each.complete && each.naturalWidth).length,
    broken: [...page.images].filter(each => !each.naturalWidth).length,
    svg: [...page.querySelectorAll("svg")].filter(each => each.getBoundingClientRect().height > 50).length,
    background: page.defaultView.getComputedStyle(page.body).backgroundColor,
    shown: page.querySelectorAll("svg .mark:focus foreignObject p").length &&
      getComputedStyle(page.querySelector("svg .mark:focus foreignObject")).display,
  }});
}}, 200);
</script></body>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each kind of page, of drawn places. The times and losses of the tuning page are made up."""
    home = tmp_path_factory.mktemp("pages")
    run_demo(home / "demo", places=6, visits=2)
    map_ = write_accepting_map(home, PLACES)
    poses = ["--poses", home / "poses.csv", "--radius", 1]
    for program, arguments in (
        (main, ["bench", "--images", home / "db", "--queries", 2, "--device", "cpu", "--html", home / "bench.html"]),
        (main, ["doctor", "--html", home / "doctor.html"]),
        (main, ["map", "view", "--db", map_, "--out", home / "map.html"]),
        (run_main, ["--db", map_, "--query", home / "db", "--report", home / "run.html"]),
        (
            main,
            ["eval", "--robot", home / "db", home / "db", *poses, "--report", home / "report", "--sequence"],
        ),
    ):
        done = CliRunner().invoke(program, [str(each) for each in arguments])
        assert done.exit_code == 0, done.output
    write_page(home / "tune.html", tuning_page.render(tuned(Map.open(map_))))
    return {
        "tune": home / "tune.html",
        "demo": home / "demo" / "index.html",
        "map": home / "map.html",
        "run": home / "run.html",
        "eval": home / "report" / "index.html",
        "bench": home / "bench.html",
        "doctor": home / "doctor.html",
    }


def tuned(map_: Map) -> Tuned:
    """Trials of two settings beside exact answers, one of which is chosen."""
    trials = [
        Trial(RuntimeSetting(device, precision, exact=exact), f"{device} {precision}", ms, 1.3 * ms, 150, changed, why)
        for device, precision, exact, ms, changed, why in (
            ("openvino", "int8", False, 10.0, 9, "too many other matches"),
            ("openvino", "bf16", False, 16.0, 1, "chosen"),
            ("cpu", "fp32", True, 100.0, 0, "slower than the chosen one"),
        )
    ]
    return Tuned(
        trials,
        exact=trials[2],
        chosen=trials[1],
        left_out=["cuda: no NVIDIA GPU is here"],
        map=map_.info(),
        candidates=20,
        cascade=True,
        computer="a computer with a name that is about as long as those of most processors, 2 cores",
        max_loss=0.02,
        budget_ms=90.0,
        same=0,
        unread=0,
    )


def browse(page: Path, width: int, dark: bool, folder: Path) -> dict[str, object]:
    """Open a page in a frame of this width. Return what was found in it, and keep a picture of it."""
    wrapper = folder / f"{page.stem}-{width}.html"
    content = html.escape(page.read_text(encoding="utf-8"))
    wrapper.write_text(WRAPPER.format(page=content, width=width, height=HEIGHT), encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--window-size={max(width, 500)},{HEIGHT}", "--virtual-time-budget=2000", "--dump-dom",
        f"--screenshot={folder / 'page.png'}", wrapper.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-2000:]
    return {**json.loads(html.unescape(found[1])), "console": told}


@pytest.mark.parametrize("name", FIGURES)
def test_a_page_fits_phones_and_desks(pages: dict[str, Path], name: str, tmp_path: Path) -> None:
    kind, least = FIGURES[name]
    for width in WIDTHS:
        for dark in (False, True):
            found = browse(pages[name], width, dark, tmp_path)
            kept = os.environ.get("PAIRVPR_SCREENSHOTS")
            if kept:
                Path(kept).mkdir(parents=True, exist_ok=True)
                picture = Image.open(tmp_path / "page.png").convert("RGB")
                picture.crop((0, 0, width, HEIGHT)).save(
                    Path(kept) / f"{name}-{width}-{'dark' if dark else 'light'}.png"
                )
            assert found["width"] == width
            assert found["wide"] == found["scrolled"] == found["small"] == found["console"] == []
            assert found["broken"] == 0
            assert int(str(found[kind])) >= least
            if kind == "svg":
                assert found["shown"] == "block"  # a mark with the focus, as after a tap
            assert (sum(map(int, re.findall(r"\d+", str(found["background"])))) < 3 * 128) == dark
