"""Test the log of a run and its TensorBoard events."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from pairvpr.errors import TrainingError
from pairvpr.training.log import RunLog


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLog(tmp_path, 0, tensorboard=True) as log:
        for step in (1, 2, 3):
            log.write("step", step, loss=step / 4, places=7)
    with RunLog(tmp_path, 2, tensorboard=True) as log:  # resumed from a checkpoint of step 2
        log.write("step", 3, loss=0.5)
        log.write("validation", 3, loss=0.25)
    told = events.EventAccumulator(str(tmp_path / "tensorboard"))
    told.Reload()
    assert sorted(told.Tags()["scalars"]) == ["step/loss", "validation/loss"]
    assert [(e.step, e.value) for e in told.Scalars("step/loss")] == [(1, 0.25), (2, 0.5), (3, 0.5)]
    assert [(e.step, e.value) for e in told.Scalars("validation/loss")] == [(3, 0.25)]


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, tensorboard=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # in place of a full disk
    try:
        with pytest.raises(TrainingError, match=r"log\.jsonl: cannot be written \(.*free space"), log:
            log.write("step", 1, loss=0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_tensorboard_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"run.tensorboard: tensorboard is missing .*; run pip install tensorboard"):
        RunLog(tmp_path, 0, tensorboard=True)
