"""Test the command `pairvpr train`: progress, results, a teacher, and errors of one line."""

from __future__ import annotations

import re
import sys

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

from pairvpr.cli.main import main  # noqa: E402
from pairvpr.model import Checkpoint, WeightsInfo, save_checkpoint  # noqa: E402
from pairvpr.training.initial import seeded_network  # noqa: E402
from tests.training.support import lines, write_config  # noqa: E402
from tests.training.test_schedules import CONFIG  # noqa: E402

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python reads TOML from 3.11 on")


def typed(*arguments):
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


@pytest.mark.parametrize("stage", ["one", "two"])
def test_a_run_reports_progress_and_its_checkpoint(stage, tmp_path):
    done = typed(f"stage-{stage}", "--config", write_config(tmp_path, stage), "--set", "train.steps=4")
    assert done.exit_code == 0, done.output
    told = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in told] == [f"step {step} of 4" for step in (1, 2, 3, 4)]
    each = r"step \d of 4: loss \d+\.\d{4}, \d+\.\d pictures a second \(\d+% of the time waiting for data\), .* left"
    assert all(re.fullmatch(each, line) for line in told), told
    assert done.stdout == f"{tmp_path}/run/last/network.safetensors: step 4, finished\n"


def test_a_teacher_is_an_option(tmp_path):
    teacher = tmp_path / "a teacher é.safetensors"
    save_checkpoint(Checkpoint(seeded_network(CONFIG, 3), WeightsInfo("a test", "a licence")), teacher)
    file = write_config(tmp_path, "two")
    done = typed("stage-two", "--config", file, "--teacher", teacher, "--set", "train.steps=2")
    assert done.exit_code == 0, done.output
    assert all("score_distillation" in line for line in lines(tmp_path / "run"))
    assert str(teacher) in (tmp_path / "run" / "config.toml").read_text()
    gone = typed(
        "stage-two", "--config", file, "--teacher", tmp_path / "gone.pth", "--set", f"out={tmp_path / 'other'}"
    )
    assert (gone.exit_code, gone.stderr.count("\n")) == (2, 1)
    assert "gone.pth: no such file" in gone.stderr


def test_errors_are_one_line_and_exit_2(tmp_path):
    file = write_config(tmp_path, "one")
    for setting, said in (
        ("train.bach=3", "setting train.bach: unknown; did you mean batch?"),
        ("data.0.places=folders", "data set 'folders': does not take these arguments"),
        ('data=[{places="folders", arguments={root="absent"}}]', "absent is not a folder"),
    ):
        done = typed("stage-one", "--config", file, "--set", setting)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
        assert said in done.stderr
