"""Calibration results as labelled rows."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from pairvpr.runtime.calibrated.acceptance import Acceptance, ScoreSetup, Traverse
from pairvpr.runtime.calibrated.cascade import Cascade, Look
from pairvpr.runtime.calibrated.judge import Judge
from pairvpr.runtime.calibrated.tuning import RuntimeSetting, Tuning
from pairvpr.viewing.calibration_results import (
    SHOWN,
    acceptance_rows,
    align,
    block,
    cascade_rows,
    judge_rows,
    tuning_rows,
)

ACCEPTANCE = Acceptance(
    identity="0" * 64,
    engine="ONNX Runtime",
    setup=ScoreSetup("", 20, None),
    threshold=5.5843,
    slope=1.0,
    bias=0.0,
    radius=2.0,
    precision=0.8,
    delta=0.1,
    fitted=33,
    checked=67,
    right=59,
    outside=0,
    expected=54.2,
    accepted=63,
    accepted_right=56,
    traverses=(Traverse("drive2.mcap/camera", 67, 63, 56),),
    own=0,
)


def test_a_threshold_in_rows() -> None:
    assert block("map/model: acceptance threshold", acceptance_rows(ACCEPTANCE)).splitlines() == [
        "map/model: acceptance threshold",
        "  threshold    score >= 5.584 (precision 0.8 at 90% confidence, within 2 m)",
        "  evidence     67 queries, 63 accepted, 56 of them right",
        "  all queries  59 right (54 expected), 0 outside the map",
        "  answers      20 candidates, all compared in full",
        "  engine       ONNX Runtime",
        "  conditions   drive2.mcap/camera: 67 queries, 63 accepted, 56 of them right",
        "  conditions   recalibrate for other light, weather or camera",
        "  warning      no query was outside the map: valid only for a robot that does not leave the map",
    ]


def test_warnings_follow_the_evidence() -> None:
    outside = acceptance_rows(dataclasses.replace(ACCEPTANCE, outside=3, own=12))
    warnings = [text for label, text in outside if label == "warning"]
    assert warnings == ["OPTIMISTIC: 12 pictures come from the map's own traverse"]


@pytest.mark.parametrize(
    ("chance", "told"),
    [
        (34 / 35, "confidence is 0.971 for every answer: all answers that it learns from were right"),
        (0.75, "confidence is 0.750 for every answer: higher scores were not right more often"),
    ],
)
def test_a_confidence_that_is_always_the_same_is_warned_of(chance: float, told: str) -> None:
    level = dataclasses.replace(ACCEPTANCE, outside=3, slope=0.0, bias=math.log(chance / (1 - chance)))
    assert [text for label, text in acceptance_rows(level) if label == "warning"] == [told]


def test_many_traverses_are_cut_short() -> None:
    traverses = tuple(Traverse(f"drive{n}", 1, 1, 1) for n in range(SHOWN + 5))
    texts = [text for _, text in acceptance_rows(dataclasses.replace(ACCEPTANCE, traverses=traverses))]
    assert sum(text.startswith("drive") for text in texts) == SHOWN
    assert "and 5 more traverses" in texts


def test_a_judge_without_a_threshold_gives_its_reason() -> None:
    reason = "not calibrated for this map as it is now"
    assert judge_rows(Judge(ACCEPTANCE), ACCEPTANCE) == acceptance_rows(ACCEPTANCE)
    assert judge_rows(Judge(None, reason), None) == [("threshold", reason)]
    assert judge_rows(Judge(None, reason), ACCEPTANCE) == [("void", reason), *acceptance_rows(ACCEPTANCE)]


def test_pictures_added_after_the_calibration_are_counted() -> None:
    (label, text), *rest = judge_rows(Judge(ACCEPTANCE, calibrated=5, added=2), ACCEPTANCE)
    assert (label, text.startswith("2 pictures were added after the calibration;")) == ("added", True)
    assert rest == acceptance_rows(ACCEPTANCE)


def test_a_cascade_in_rows() -> None:
    head = np.zeros(4, np.float32)
    looks = [Look("pair_look", head, 0.0, 1.0, 0.2), Look("pair_prefix", head, 0.0, 1.0, 0.04)]
    cascade = Cascade("", "ONNX Runtime", 0.1, looks, 0.998, 100, 500, 200, 199, (0.972, 0.999), 0.8)
    assert align(cascade_rows(cascade)) == [
        "kept      of up to 100 candidates 80.0% get a first look, 20.0% get a second look, 4.0% are compared in full",
        "evidence  best candidate kept in 199 of 200 queries (99.5%, 95 % interval 97.2% to 99.9%)",
        "engine    ONNX Runtime",
    ]


def test_a_tuned_setting_in_rows() -> None:
    setting = RuntimeSetting("openvino", "bf16", 2, 8, exact=False)
    tuning = Tuning(setting, "a robot", "OpenVINO", 500, 100, 700, 1, (0.0003, 0.008), 0.003, 50, 41.2, 60.0, 320.0)
    assert align(tuning_rows(tuning)) == [
        "setting     openvino bf16, 2 threads, batches of 8, cascade",
        "time        median 41 ms an answer (p99 60, budget 50; exact answers 320)",
        "agreement   first match changed in 1 of 700 pictures (95 % interval 0.0% to 0.8%; allowed 0.30%)",
        "candidates  100 of the map's 500 pictures",
        "device      a robot; OpenVINO",
    ]
