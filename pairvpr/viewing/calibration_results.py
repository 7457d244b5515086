"""Write calibration results as labelled rows of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.calibrated.acceptance import Acceptance, AnswerDefaults, Traverse
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.calibrated.judge import Judge
from pairvpr.runtime.calibrated.tuning import Tuning
from pairvpr.runtime.map import Map
from pairvpr.runtime.measure import Measure

Row = tuple[str, str]
"""Label and text. A label may repeat."""

SHOWN = 10
"""Most traverses that are shown. The bundle stores all of them."""


@dataclass(frozen=True)
class CalibrationResults:
    """Hold the results in a map's own bundle, None for each that is missing, and the judge of its default answers."""

    cascade: Cascade | None
    tuning: Tuning | None
    acceptance: Acceptance | None
    judge: Judge

    @staticmethod
    def from_map(map_: Map, bundle: Bundle) -> CalibrationResults:
        """Read the results. Raises BundleError."""
        cascade, defaults = Cascade.find_in(bundle), AnswerDefaults.from_bundle(bundle)
        judge = Judge.from_map(bundle, map_, min(defaults.top_k, len(map_)), None if defaults.exact else cascade)
        return CalibrationResults(cascade, Tuning.find_in(bundle), Acceptance.find_in(bundle), judge)


def cascade_rows(cascade: Cascade) -> list[Row]:
    """Describe a cascade: the shares of candidates that each look lets through, and how often the best one is kept."""
    low, high = cascade.interval
    counts = [cascade.compared, *(look.kept for look in cascade.looks[:-1])]
    looks = [f"{share:.1%} get a {name} look" for share, name in zip(counts, ("first", "second"), strict=False)]
    return [
        (
            "kept",
            f"of up to {cascade.candidates} candidates {', '.join(looks)}, {cascade.kept:.1%} are compared in full",
        ),
        (
            "evidence",
            f"best candidate kept in {cascade.survived} of {cascade.checked} queries "
            f"({cascade.survived / cascade.checked:.1%}, 95 % interval {low:.1%} to {high:.1%})",
        ),
        ("engine", cascade.engine),
        *(("warning", doubt) for doubt in cascade.doubts),
    ]


def acceptance_rows(acceptance: Acceptance) -> list[Row]:
    """Describe a threshold: its promise, the evidence, the conditions it is valid for, and warnings."""
    rows = [
        (
            "threshold",
            f"{acceptance.measure.value} >= {acceptance.threshold:.3f} (precision {acceptance.precision:g} at "
            f"{1 - acceptance.delta:.0%} confidence, within {acceptance.radius:g} {acceptance.unit})",
        ),
        (
            "evidence",
            f"{acceptance.checked} queries, {acceptance.accepted} accepted, {acceptance.accepted_right} of them right",
        ),
        (
            "all queries",
            f"{acceptance.right} right ({acceptance.expected:.0f} expected), {acceptance.outside} outside the map",
        ),
        ("answers", f"{acceptance.setup.top_k} candidates, {_describe_comparison(acceptance)}"),
        ("engine", acceptance.engine),
        *(("conditions", _describe_traverse(each)) for each in acceptance.traverses[:SHOWN]),
    ]
    if len(acceptance.traverses) > SHOWN:
        rows.append(("conditions", f"and {len(acceptance.traverses) - SHOWN} more traverses"))
    rows.append(("conditions", "recalibrate for other light, weather or camera"))
    if not acceptance.outside:
        rows.append(("warning", "no query was outside the map: valid only for a robot that does not leave the map"))
    if acceptance.slope == 0:
        confidence = acceptance.confidence(acceptance.threshold)
        all_right = math.isclose(confidence, (acceptance.fitted + 1) / (acceptance.fitted + 2))
        reason = (
            "all answers that it learns from were right" if all_right else "higher scores were not right more often"
        )
        rows.append(("warning", f"confidence is {confidence:.3f} for every answer: {reason}"))
    if acceptance.own:
        rows.append(("warning", f"OPTIMISTIC: {acceptance.own} pictures come from the map's own traverse"))
    return rows


def tuning_rows(tuning: Tuning) -> list[Row]:
    """Describe a tuned setting: its time, its agreement with exact answers, and the device it is valid for."""
    low, high = tuning.interval
    budget = "" if tuning.budget_ms is None else f", budget {tuning.budget_ms:g}"
    return [
        ("setting", str(tuning.setting)),
        (
            "time",
            f"median {tuning.median_ms:.0f} ms an answer (p99 {tuning.p99_ms:.0f}{budget}; exact answers "
            f"{tuning.exact_ms:.0f})",
        ),
        (
            "agreement",
            f"first match changed in {tuning.changed} of {tuning.pictures} pictures (95 % interval {low:.1%} to "
            f"{high:.1%}; allowed {tuning.max_loss:.2%})",
        ),
        ("candidates", f"{tuning.candidates} of the map's {tuning.map_pictures} pictures"),
        ("device", f"{tuning.computer}; {tuning.engine}"),
    ]


def judge_rows(judge: Judge, stored: Acceptance | None) -> list[Row]:
    """Describe the threshold that a map stores, after the reason why it does not decide all or some answers."""
    void = [("void" if stored else "threshold", judge.reason)] if judge.acceptance is None else []
    added = [("added", judge.describe_added())] if judge.added else []
    return [*void, *added, *(acceptance_rows(stored) if stored else [])]


def align(rows: Sequence[Row]) -> list[str]:
    """Return a line for each row, with the texts in one column."""
    width = max((len(label) for label, _ in rows), default=0)
    return [f"{label:{width}}  {text}" for label, text in rows]


def block(title: str, rows: Sequence[Row]) -> str:
    """Return a title and the indented rows below it."""
    return "\n".join([title, *(f"  {line}" for line in align(rows))])


def _describe_comparison(acceptance: Acceptance) -> str:
    if acceptance.measure is Measure.SIMILARITY:
        return "by descriptor alone"
    return "all compared in full" if acceptance.setup.cascade is None else "by the cascade"


def _describe_traverse(traverse: Traverse) -> str:
    return f"{traverse.name}: {traverse.checked} queries, {traverse.accepted} accepted, {traverse.right} of them right"
