"""Measure how often accepted answers are right, by repeated calibrations on some places and tests on others.

    pairvpr town --streets 168 --seed 2 --evaluation --out town
    python -m benchmarks.acceptance town/database town/queries --cache answers --json acceptance.json
    python -m benchmarks.acceptance day_left day_right night_right --tolerance 2 --levels 0.8 0.9

Every query is answered once, with all candidates compared in full. Decisions are then calibrated as by
`pairvpr calibrate threshold` on the answers of one half of the blocks of places, and tested on the other half. A
condition is a folder of queries. `below` counts splits in which the accepted answers were right less often than
promised. The test half is a sample too, so this happens in more splits than delta even if the promise is kept.
`below_for_sure` counts splits whose wrong answers would come by chance in one case of 20 at most.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.answers import AnswerTable, answer
from benchmarks.splits import decisions, halves, summary, tested
from pairvpr.calibration.acceptance import DELTA, RADIUS, PrecisionTarget
from pairvpr.calibration.known_places import AnsweredPicture, is_apart
from pairvpr.evaluation.recall import precision_recall
from pairvpr.runtime import load_model
from pairvpr.runtime.calibrated.score_monitor import Reading
from pairvpr.runtime.geometry.poses import Pose


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database", type=Path)
    parser.add_argument("queries", type=Path, nargs="+", help="Folders of conditions, or conditions themselves.")
    parser.add_argument("--model", type=Path, help="Bundle; the default model's without one.")
    parser.add_argument("--tolerance", type=int, help="Frames: match by numbers in names, not @UTM@ positions.")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="Take every N-th query.")
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.95, 0.99])
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, help="Folder that keeps the answers for the next time.")
    parser.add_argument("--json", type=Path, help="Also write the figures there.")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    model = load_model(args.model, "cpu", threads=args.threads)
    radius = RADIUS if args.tolerance is None else float(args.tolerance)
    answers = spaced(
        answer(model, args.database, args.queries, args.tolerance, args.every, args.top_k, args.cache), radius
    )
    results = {
        "preset": model.bundle.info.preset,
        "identity": model.bundle.identity,
        "engine": model.engines.description,
        "one_query_in": args.every,
        "candidates": args.top_k,
        "radius": radius,
        "queries": len(answers),
        "conditions": {str(name): int(np.sum(answers.conditions == name)) for name in np.unique(answers.conditions)},
        "splits": args.splits,
        "delta": DELTA,
        "as_confidence": as_confidence(answers.known(args.top_k), radius),
        "levels": {
            f"{level:g}": measure(answers, args.top_k, PrecisionTarget(level, DELTA, radius), args.splits)
            for level in args.levels
        },
    }
    text = json.dumps(results, indent=1, allow_nan=False)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def spaced(answers: AnswerTable, radius: float) -> AnswerTable:
    """Return the queries that count: each at least a radius from the others of its condition."""
    taken: dict[str, list[Pose]] = defaultdict(list)
    chosen = []
    for number, (condition, position) in enumerate(zip(answers.conditions, answers.where, strict=True)):
        where = Pose(*position, 0)
        if is_apart(where, taken[condition], radius):
            taken[condition].append(where)
            chosen.append(number)
    return AnswerTable(**{name: value[chosen] for name, value in vars(answers).items()})


def asked(answers: AnswerTable) -> list[AnsweredPicture]:
    """Return the answers in the form that calibration takes."""
    best, rows = answers.best(), np.arange(len(answers))
    columns = answers.where, answers.conditions, readings(answers), answers.right[rows, best]
    return [
        AnsweredPicture(Pose(*where, 0), str(condition), reading, bool(right), outside=False, own=False)
        for where, condition, reading, right in zip(*columns, strict=True)
    ]


def readings(answers: AnswerTable) -> list[Reading]:
    """Return the numbers of each answer that the warning compares."""
    falling = np.sort(answers.scores.astype(np.float64), axis=1)[:, ::-1]
    similarities = answers.similarities[np.arange(len(answers)), answers.best()]
    columns = falling[:, 0].tolist(), (falling[:, 0] - falling[:, 1]).tolist(), similarities.tolist()
    return [Reading(*each) for each in zip(*columns, strict=True)]


def measure(answers: AnswerTable, top_k: int, promise: PrecisionTarget, splits: int) -> dict[str, Any]:
    """Measure one promise: as it is made, under each condition, and with queries from outside the map."""
    known, unknown = asked(answers.known(top_k)), asked(answers.unknown(top_k))
    outside = np.random.default_rng(1).random(len(known)) < 0.5
    mixed = [other if out else one for one, other, out in zip(known, unknown, outside, strict=True)]
    teach = halves([each.where for each in known], splits)
    decided, test = decisions(known, teach, promise), ~teach
    conditions = {}
    for name in np.unique(answers.conditions):
        of_it = answers.conditions == name
        conditions[str(name)] = {
            "calibrated_for": summary(tested(decided, known, test & of_it), promise),
            "left_out": summary(tested(decisions(known, teach & ~of_it, promise), known, test & of_it), promise),
        }
    return {
        "all": summary(tested(decided, known, test), promise),
        "conditions": conditions,
        "outside_the_map": {
            "all_calibrated_inside": summary(tested(decided, unknown, test), promise),
            "half_calibrated_inside": summary(tested(decided, mixed, test), promise),
            "half_calibrated_so": summary(tested(decisions(mixed, teach, promise), mixed, test), promise),
        },
    }


def as_confidence(answers: AnswerTable, radius: float) -> dict[str, Any]:
    """Measure how well values tell right answers from wrong ones, for the first match before and after re-ranking.

    `confidence` rises with the pair score alone, so it has the areas of the pair score.
    """
    rows, best = np.arange(len(answers)), answers.best()
    first, winner = answers.right[:, 0], answers.right[rows, best]
    distances = np.sqrt(2 - 2 * np.minimum(answers.similarities.astype(np.float64), 1))
    second_distance = -elsewhere(answers, np.zeros_like(best), -distances, radius)
    scores, second_score = answers.scores[rows, best], elsewhere(answers, best, answers.scores, radius)
    signals = {
        "descriptor: similarity": (first, answers.similarities[:, 0]),
        "descriptor: distance to that of the second place": (first, -distances[:, 0] / second_distance),
        "re-ranked: pair score": (winner, scores),
        "re-ranked: pair score less that of the second place": (winner, scores - second_score),
        "re-ranked: similarity": (winner, answers.similarities[rows, best]),
        "re-ranked: spread of poses": (winner, -spread(answers)),
    }
    found = {}
    for name, (right, confidence) in signals.items():
        curve = precision_recall(confidence, right, int(np.sum(answers.answerable)))
        found[name] = {
            "right": round(float(np.mean(right)), 4),
            "area": round(curve.average_precision, 4),
            "recall_at_full_precision": round(curve.recall_at_full_precision, 4),
        }
    return found


def elsewhere(
    answers: AnswerTable, best: npt.NDArray[np.int64], values: npt.NDArray[np.floating], radius: float
) -> npt.NDArray[np.float64]:
    """Return the highest value (m,) of candidates (m, k) at another place than the best one's; NaN without any."""
    chosen = answers.places[np.arange(len(answers)), best]
    far = np.linalg.norm(answers.places - chosen[:, None], axis=2) > radius
    return np.where(far.any(axis=1), np.where(far, values, -np.inf).max(axis=1), np.nan)


def spread(answers: AnswerTable) -> npt.NDArray[np.float64]:
    """Return the spread of the candidates (m,), in metres or frames, each weighted by its odds."""
    odds = np.exp(answers.scores.astype(np.float64) - answers.scores.max(axis=1, keepdims=True))
    weights = (odds / odds.sum(axis=1, keepdims=True))[..., None]
    centre = np.sum(weights * answers.places, axis=1, keepdims=True)
    return np.sqrt(np.sum(weights * np.square(answers.places - centre), axis=(1, 2)))


if __name__ == "__main__":
    main()
