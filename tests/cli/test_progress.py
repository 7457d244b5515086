"""Progress on stderr."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pairvpr.cli.progress import Meter, Meters


def test_the_time_left_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 30.0, 35.0, 120.0])
    monkeypatch.setattr("pairvpr.cli.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    meter = Meter("building encoder, percent")
    for percent in (25, 30, 100):
        meter.update(percent, 100)
    assert capsys.readouterr().err.splitlines() == [
        "building encoder, percent: 25 of 100, 0.8 a second, 90 s left",
        "building encoder, percent: 100 of 100, 0.8 a second",
    ]


def test_each_step_has_a_meter(capsys: pytest.CaptureFixture[str]) -> None:
    meters = Meters()
    meters.update("pictures", 2, 2)
    meters.update("pairs", 1, 5)
    meters.update("pairs", 5, 5)
    assert capsys.readouterr().err.splitlines() == ["pictures: 2 of 2", "pairs: 5 of 5"]
