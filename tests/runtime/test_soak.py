"""A run that goes on and on beside additions to its map: its memory stays, and no answer is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import soak

NOISE = 25.0  # MB that allocators take and give back beside a steady state; in two minutes it looks like a slope


@pytest.mark.parametrize(
    "seconds", [pytest.param(120.0, marks=pytest.mark.slow), pytest.param(1800.0, marks=pytest.mark.soak)]
)
def test_memory_stays_and_no_answer_is_missing(tmp_path: Path, seconds: float) -> None:
    pytest.importorskip("av")
    found = soak(tmp_path, seconds, pictures=5000, rate=10.0, every=10.0)
    assert found["exit_status"] == 0
    assert found["answers"] > 0
    assert found["answers_in_order"]
    assert found["errors"] == 0
    assert 0 < found["taken_in"] <= found["pictures_added"] // 8
    measured = (seconds - found["warm_up_s"]) / 60
    assert found["memory_mb_a_minute"] < max(1.0, NOISE / measured if seconds < 1800 else 0.0)
    assert (tmp_path / "run.html").stat().st_size > 0
