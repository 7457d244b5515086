"""Measure the warning of scores that are unlike those of the calibration.

    python -m benchmarks.score_warning DATA --cache answers --json score_warning.json

DATA: the folder of Gardens Point, the corridor and Nordland. On each pair of traverses a threshold is calibrated as by
`pairvpr calibrate threshold --tolerance`, and used on every pair. A pair is also split in halves: calibrated on
the first, used on the second. `transfer` moves the run's scores to the calibration's quantiles before the threshold
decides. `weighted` chooses the threshold anew by conformal risk control with weights for the moved conditions: see
`reweigh`. False alarms are counted on drawn series, whose neighbours are correlated.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from benchmarks.acceptance import asked, readings, spaced
from benchmarks.answers import AnswerTable, answer
from pairvpr.calibration.acceptance import PrecisionTarget, ThresholdFit, fit_threshold
from pairvpr.calibration.known_places import AnsweredPicture
from pairvpr.errors import SourceError
from pairvpr.runtime import load_model
from pairvpr.runtime.calibrated.acceptance import FRAMES, Acceptance, ScoreSetup
from pairvpr.runtime.calibrated.score_monitor import Reading, summarize, warn_of_scores
from pairvpr.runtime.measure import Measure

PAIRS = {
    "day": ("gardens_point/day_left", "gardens_point/day_right", 2),
    "night, same side": ("gardens_point/day_right", "gardens_point/night_right", 2),
    "night, other side": ("gardens_point/day_left", "gardens_point/night_right", 2),
    "corridor": ("corridor/database", "corridor/queries", 2),
    "Nordland": ("nordland_colour/database", "nordland_colour/queries", 1),
}
"""Database, queries, and the tolerance in frames."""
CORRELATIONS = (0.0, 0.5, 0.9, 0.97, 0.99)
DRAWN = 400
"""Drawn runs of each kind."""
RIDGE = 0.001
"""Weight of the squared coefficients in the logistic regression of `reweigh`."""


@dataclass(frozen=True)
class Calibrated:
    """A calibration of a pair. acceptance: its threshold. readings: the answers' numbers. right: whether they are."""

    acceptance: Acceptance
    readings: list[Reading]
    right: npt.NDArray[np.bool_]

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """The answers' scores, (n,)."""
        return np.array([each.value for each in self.readings])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--level", type=float, default=0.9, help="The precision to promise.")
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--cache", type=Path, help="Folder that keeps the answers for the next time.")
    parser.add_argument("--json", type=Path, help="Also write the figures there.")
    args = parser.parse_args()
    model = load_model(None, "cpu", threads=1)
    runs = {
        name: answer(model, args.data / database, [args.data / queries], tolerance, 1, args.top_k, args.cache).known(
            args.top_k
        )
        for name, (database, queries, tolerance) in PAIRS.items()
    }
    results = {
        "identity": model.bundle.identity,
        "engine": model.engines.description,
        "candidates": args.top_k,
        "level": args.level,
        "pairs": across(runs, args.level),
        "halves": [row for name, run in runs.items() for row in halves(name, run, args.level)],
        "false_alarms": false_alarms(),
    }
    text = json.dumps(results, indent=1, allow_nan=False)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def across(runs: dict[str, AnswerTable], level: float) -> list[dict[str, Any]]:
    """Use the threshold of each pair on every pair."""
    rows = []
    for name, run in runs.items():
        calibrated = calibrate(run, level, PAIRS[name][2])
        if calibrated is None:
            rows.append({"calibrated_on": name, "refused": True})
            continue
        rows += [{"calibrated_on": name, "used_on": other, **use(calibrated, runs[other])} for other in runs]
    return rows


def halves(name: str, run: AnswerTable, level: float) -> list[dict[str, Any]]:
    """Calibrate on one half of the way, and use the threshold on the other."""
    middle, rows = len(run) // 2, []
    for title, learn, test in (
        ("first half", slice(None, middle), slice(middle, None)),
        ("second half", slice(middle, None), slice(None, middle)),
    ):
        parts = [AnswerTable(**{key: value[part] for key, value in vars(run).items()}) for part in (learn, test)]
        calibrated = calibrate(parts[0], level, PAIRS[name][2])
        found = {"refused": True} if calibrated is None else use(calibrated, parts[1])
        rows.append({"calibrated_on": f"{name}, {title}", "used_on": "the other half", **found})
    return rows


def calibrate(run: AnswerTable, level: float, tolerance: int) -> Calibrated | None:
    """Calibrate as the command does, on pictures a tolerance apart; None if it refuses."""
    answers, target = asked(spaced(run, tolerance)), PrecisionTarget(level, radius=tolerance, unit=FRAMES)
    try:
        fit = fit_threshold(answers, target, "pair")
    except SourceError:
        return None
    right = np.array([each.right for each in answers])
    return Calibrated(acceptance_of(fit, answers, target), [each.reading for each in answers], right)


def acceptance_of(fit: ThresholdFit, answers: Sequence[AnsweredPicture], target: PrecisionTarget) -> Acceptance:
    """Return a calibration with the fields that the warning reads; the others are empty."""
    return Acceptance(
        "", "", ScoreSetup("", 1, None), fit.threshold, fit.slope, fit.bias, target.radius, target.precision,
        target.delta, fit.fitted, len(fit.checked), 0, 0, 0, 0, 0, (), 0, target.unit,
        samples=summarize([each.reading for each in answers], Measure.SCORE),
    )  # fmt: skip


def use(calibrated: Calibrated, run: AnswerTable) -> dict[str, Any]:
    """Return accepted and right answers of a run: by its scores, by transferred ones, and by a reweighed threshold."""
    numbers, right = readings(run), run.right[np.arange(len(run)), run.best()]
    scores, threshold = np.array([each.value for each in numbers]), calibrated.acceptance.threshold
    moved = transfer(scores, calibrated.scores)
    effective, weighted = reweigh(calibrated, numbers)
    return {
        "queries": len(run),
        "right_of_all": int(right.sum()),
        "threshold": round(threshold, 3),
        **_count(scores >= threshold, right, ""),
        **_count(moved >= threshold, right, "transfer_"),
        "weighted_effective": round(effective, 1),
        **_count(scores >= weighted, right, "weighted_"),
        "warning": warn_of_scores(calibrated.acceptance, numbers),
    }


def transfer(scores: npt.NDArray[np.float64], calibration: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the calibration's scores at the shares that the run's scores (n,) have in their own distribution."""
    shares = np.searchsorted(np.sort(scores), scores, "right") / len(scores)
    moved: npt.NDArray[np.float64] = np.quantile(calibration, shares)
    return moved


def reweigh(calibrated: Calibrated, run: Sequence[Reading]) -> tuple[float, float]:
    """Return the effective number of calibration answers for a run, and the threshold that they show.

    Weighted conformal risk control: Tibshirani et al., "Conformal Prediction Under Covariate Shift" (2019), with the
    risk of Angelopoulos et al., "Conformal Risk Control" (2024), as a ratio over accepted answers. The weights are the
    odds of a logistic regression that tells the run's readings from the calibration's. The threshold is infinite if
    none keeps the risk. The whole run must be known.
    """
    both = np.array([*calibrated.readings, *run], np.float64)
    both = (both - both.mean(axis=0)) / (both.std(axis=0) + 1e-9)
    inputs = np.column_stack([np.ones(len(both)), both])
    is_run = np.arange(len(both)) >= len(calibrated.readings)

    def loss(weights: npt.NDArray[np.float64]) -> float:
        logits = inputs @ weights
        return float(np.mean(np.logaddexp(0, logits) - is_run * logits) + RIDGE * np.sum(weights[1:] ** 2))

    weights = np.exp(inputs[~is_run] @ minimize(loss, np.zeros(inputs.shape[1])).x)
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    allowed = 1 - calibrated.acceptance.precision
    for threshold in np.unique(calibrated.scores):
        accepted = weights * (calibrated.scores >= threshold)
        if (accepted @ ~calibrated.right + weights.max()) / (accepted.sum() + weights.max()) <= allowed:
            return effective, float(threshold)
    return effective, math.inf


def _count(accepted: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_], prefix: str) -> dict[str, int]:
    return {f"{prefix}accepted": int(accepted.sum()), f"{prefix}right": int((accepted & right).sum())}


def false_alarms() -> list[dict[str, Any]]:
    """Count warnings of drawn runs whose scores have the calibration's distribution.

    The three numbers of an answer are normal and independent of each other. Neighbours of a run are correlated as in
    an autoregression of order one, those of a calibration, which are further apart, by the square of this correlation.
    """
    chance, found = np.random.default_rng(0), []
    for correlation in CORRELATIONS:
        for calibrated, length in ((100, 200), (100, 1000)):
            alarms = 0
            for _ in range(DRAWN):
                known = drawn(chance, calibrated, correlation**2)
                fit = ThresholdFit(0.0, 1.0, 0.0, 1, ())
                answers = [AnsweredPicture(None, "", each, True, False, False) for each in known]  # type: ignore[arg-type]
                acceptance = acceptance_of(fit, answers, PrecisionTarget())
                alarms += warn_of_scores(acceptance, drawn(chance, length, correlation)) is not None
            found.append(
                {"correlation": correlation, "calibrated": calibrated, "run": length, "warned": alarms / DRAWN}
            )
    return found


def drawn(chance: np.random.Generator, length: int, correlation: float) -> list[Reading]:
    """Return readings of three independent series."""
    series = (autoregression(chance, length, correlation) for _ in Reading._fields)
    return [Reading(*each) for each in zip(*series, strict=True)]


def autoregression(chance: np.random.Generator, length: int, correlation: float) -> list[float]:
    """Return a stationary normal series whose neighbours have this correlation."""
    noise = chance.normal(size=length) * np.sqrt(1 - correlation**2)
    series = [float(chance.normal())]
    for step in noise[1:]:
        series.append(correlation * series[-1] + float(step))
    return series


if __name__ == "__main__":
    main()
