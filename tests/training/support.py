"""A small place data set, a tiny network, and both stages as commands, for the tests of training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

from PIL import Image

from pairvpr.data import TrainingPicture, TrainingPlace
from pairvpr.errors import PairVPRError, SourceError
from tests.scenes import draw_scene

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
out = "{out}"
[network]
encoder = "vit_tiny_patch16_224"
encoder_args = {{patch_size = 14, depth = 2}}
image_size = 56
position_grid = 4
descriptor_dim = 32
decoder_dim = 64
decoder_depth = 1
classifier_dim = 32
[[data]]
places = "tests.training.support:Scenes"
arguments = {{count = 12}}
[train]
trained_blocks = -1
steps = 8
{train}
[run]
workers = 0
log_every = 1
save_every = 3
device = "cpu"
"""

STAGE_ONE = "batch = 4\nwarmup_epochs = 1\nlr = 3e-3"
STAGE_TWO = "places = 4\npictures_per_place = 2\nlr = 1e-3"


class Scenes:
    """Drawn places in two groups; those pictures whose names are in `broken` cannot be read."""

    def __init__(self, count: int, visits: int = 4, first: int = 0, delay: float = 0.0, broken: tuple = ()) -> None:
        self.count, self.visits, self.first, self.delay, self.broken = count, visits, first, delay, tuple(broken)

    def __len__(self) -> int:
        return self.count

    @property
    def groups(self):
        return [self.count // 2, self.count - self.count // 2]

    def place(self, index, rng):
        time.sleep(self.delay)
        number = self.first + index
        return TrainingPlace(str(number), [self.picture(number, visit) for visit in range(self.visits)])

    def picture(self, number, visit):
        name = f"{number}/{visit}"
        return TrainingPicture(name, partial(damaged, name) if name in self.broken else partial(scene, number, visit))


class Deadly(Scenes):
    """Pictures of which each kills who reads it, as the kernel does where memory runs out."""

    def picture(self, number, visit):
        return TrainingPicture(f"{number}/{visit}", die)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@cache
def scene(number, visit):
    return Image.fromarray(draw_scene(number, visit, (60, 80)))


def damaged(name):
    raise SourceError(f"{name} is damaged")


def write_config(folder: Path, stage: str, name: str = "run", extra: str = "") -> Path:
    """A configuration file whose run goes to `folder`/`name`."""
    file = folder / f"{name}.toml"
    train = STAGE_ONE if stage == "one" else STAGE_TWO
    file.write_text(CONFIG.format(out=folder / name, train=train) + extra)
    return file


def train(stage: str, file: Path, *overrides: str, progress=lambda told: None):
    """Run a stage here."""
    from pairvpr import training

    if stage == "one":
        return training.train_stage_one(training.stage_one_config(file, overrides), progress)
    return training.train_stage_two(training.stage_two_config(file, overrides), progress)


def start(stage: str, file: Path, *overrides: str, **environment: str) -> subprocess.Popen:
    """Run a stage in a process, and process group, of its own."""
    command = [sys.executable, "-m", "tests.training.support", stage, str(file), *overrides]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen) -> str:
    """Wait for a process, and give its stderr."""
    with process:
        _, told = process.communicate(timeout=100)
    return told


def wait_for_steps(log: Path, steps: int, process: subprocess.Popen) -> None:
    """Wait until a run has logged this number of steps."""
    for _ in range(1000):
        if log.exists() and log.read_text().count('"event": "step"') >= steps:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("no step in 50 s")


def lines(folder: Path, event: str = "step") -> list[dict]:
    """A run's log lines of one kind."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == event]


def losses(folder: Path) -> list[tuple[int, float, float]]:
    """Step, loss and norm of the gradient of every step."""
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines(folder)]


def main() -> None:
    import torch

    torch.set_num_threads(1)
    stage, file, *overrides = sys.argv[1:]
    try:
        result = train(stage, Path(file), *overrides)
    except PairVPRError as error:
        sys.exit(f"Error: {error}")
    sys.stdout.write(f"{result}\n")


if __name__ == "__main__":
    main()
