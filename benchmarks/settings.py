"""Measure the effect of every setting on answers: Recall@1, winners and changes against exact float32.

    pairvpr town unseen/ --streets 168 --seed 2 --evaluation
    python -m benchmarks.settings unseen/database unseen/queries --model BUNDLE --work work/ --out settings.json

BUNDLE holds fp32 and INT8 graphs that were calibrated with pictures of other places. All settings compare the same
candidates. The cascade's heads and margins are learnt in turn from all places but those that they are checked on, as
`pairvpr calibrate cascade` does it. Pair scores are kept in the folder `--work`: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.paired import Flags, flips, share
from benchmarks.scoring import Scores, Way, Workload
from pairvpr.calibration.candidates import exact_setting, list_families
from pairvpr.calibration.cascade import PROBABILITY, Course, LookedAtQuery, learn_rule
from pairvpr.errors import EngineError
from pairvpr.evaluation import Benchmark, load_folders
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import LOOK
from pairvpr.runtime.calibrated.cascade import PREFIX, look_inputs
from pairvpr.runtime.calibrated.tuning import RuntimeSetting
from pairvpr.runtime.map.tokens import TokenFormat
from pairvpr.runtime.model import MAX_BATCH, default_bundle
from pairvpr.spread import spread

INT8, HALF = TokenFormat("int8"), TokenFormat("int8", 0.5)
WITH_CASCADE = (("cpu", "int8-dynamic"), ("openvino", "int8"), ("openvino", "int8-bf16"))
"""Devices and precisions that a cascade is tried with too."""
FOLDS = 5
"""Parts of the places: the cascade is checked on one after the other, learnt from the rest."""

Floats = npt.NDArray[np.float32]


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database", type=Path)
    parser.add_argument("pictures", metavar="queries", type=Path)
    parser.add_argument("--tolerance", type=int, help="Frames: match by numbers in names, not @UTM@ positions.")
    parser.add_argument("--model", type=Path, default=default_bundle(), help="Bundle; the default model's without one.")
    parser.add_argument("--work", type=Path, required=True, help="Folder for pair scores.")
    parser.add_argument("--queries", type=int, metavar="N", help="Use N queries, evenly spread. Default: all.")
    parser.add_argument(
        "--rest",
        type=int,
        default=336,
        metavar="N",
        help="Queries of all but exact, cascade, INT8 with cascade.",
    )
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, and write the figures."""
    args = arguments()
    benchmark = load_folders(args.database, args.pictures, args.tolerance)
    bundle = Bundle.open(args.model)
    count = len(benchmark.queries)
    asked = spread(range(count), min(args.queries or count, count))
    rest = spread(range(len(asked)), min(args.rest, len(asked)))
    results = measure(Workload(benchmark, bundle, args.top_k, args.work), asked, rest, args.threads)
    print(table(results))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


def ways(bundle: Bundle, threads: int) -> tuple[Way, list[Way], list[Way]]:
    """Return the exact way, those that are also tried with a cascade, and the others that the bundle allows."""
    exact = Way(RuntimeSetting(**{**vars(exact_setting(bundle)), "threads": threads}))
    settings = [
        RuntimeSetting(each.device, each.precision, threads, exact=True) for each in list_families(bundle, exact=True)
    ]
    if "int8-fp16" in bundle.info.precisions:
        settings.append(RuntimeSetting("cpu", "int8-fp16", threads, exact=True))  # TensorRT's, in float32 arithmetic
    fast = [each for each in settings if (each.device, each.precision) in WITH_CASCADE]
    reduced = [Way(each) for each in settings if each.precision not in ("fp32", "fp16")]
    return exact, [Way(each, INT8) for each in fast], [*reduced, Way(exact.setting, INT8), Way(exact.setting, HALF)]


def measure(work: Workload, asked: Sequence[int], rest: Sequence[int], threads: int) -> dict[str, Any]:
    """Measure all figures. rest: the `asked` queries on which ways without a cascade are tried."""
    exact, fast, others = ways(work.bundle, threads)
    candidates = work.candidates(exact, asked)
    right = np.array([np.isin(rows, work.benchmark.positives[i]) for i, rows in zip(asked, candidates, strict=True)])
    truth = SettingTruth(work.score(exact, asked), right)
    blocks = folds(work.benchmark, asked)
    found: dict[str, Any] = {"exact": {"queries": len(asked), **truth.judge(truth.scores)}}
    found["exact, cascade"] = judge_cascade(truth, truth.answers, blocks)
    left_out = []
    for way, which in [*((way, range(len(asked))) for way in fast), *((way, rest) for way in others)]:
        try:
            answers = work.score(way, [asked[i] for i in which])
        except EngineError as error:
            left_out.append(f"{way}: {error}")
            continue
        part = truth.take(which)
        found[str(way)] = {"queries": len(which), **part.judge(answers.scores), **part.changes(answers.scores)}
        if way in fast:
            found[f"{way}, cascade"] = judge_cascade(part, answers, blocks)
    return {
        "benchmark": work.benchmark.name,
        "preset": work.bundle.info.preset,
        "identity": work.bundle.identity[:12],
        "trained": work.bundle.info.weights.trained,
        "queries": len(asked),
        "candidates": work.top_k,
        "recall_at_1_by_descriptor": flips(right[:, 0], right[:, 0])["recall_at_1"],
        "score_spread": round(float(np.median(np.ptp(truth.scores, axis=1))), 4),
        "settings": found,
        "left_out": left_out,
    }


@dataclass(frozen=True)
class SettingTruth:
    """The exact answers. right: (n, k) candidates that are right."""

    answers: Scores
    right: Flags

    @property
    def scores(self) -> Floats:
        """Exact scores (n, k)."""
        return self.answers.scores

    def take(self, which: Sequence[int]) -> SettingTruth:
        """Return the answers to some of the queries."""
        return SettingTruth(self.answers.take(which), self.right[np.asarray(which)])

    def judge(self, scores: Floats) -> dict[str, Any]:
        """Return Recall@1, its difference from exact, changes each way, and how often the winner is the same.

        scores: (n, k), -inf for a dropped candidate.
        """
        every, winners = np.arange(len(scores)), scores.argmax(axis=1)
        exact = self.scores.argmax(axis=1)
        return {
            **flips(self.right[every, exact], self.right[every, winners]),
            "same_winner": share(winners == exact),
        }

    def changes(self, scores: Floats) -> dict[str, Any]:
        """Return the distance of scores (n, k) from the exact ones."""
        change = np.abs(scores - self.scores)
        pairs = zip(scores, self.scores, strict=True)
        return {
            "score_change": {"mean": float(f"{change.mean():.3g}"), "max": float(f"{change.max():.3g}")},
            "rank_correlation": round(float(np.mean([_ranks(a) @ _ranks(b) for a, b in pairs])), 4),
        }


def folds(benchmark: Benchmark, asked: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return the part (n,) of the places that each query belongs to, by its first right picture in database order.

    A query without a right picture belongs to a part by its number.
    """
    places = [
        (right[0] / len(benchmark.database) if len(right) else i / len(benchmark.queries))
        for i, right in ((i, benchmark.positives[i]) for i in asked)
    ]
    return (np.array(places) * FOLDS).astype(np.int64)


def judge_cascade(truth: SettingTruth, answers: Scores, blocks: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Judge a way's answers by the cascade, each fold's with heads and margins from the other folds.

    `kept` has the shares of candidates after the similarity and after each look.
    """
    courses = follow(answers, blocks)
    stays = np.stack([course.going for course in courses])
    return {
        "queries": len(blocks),
        "kept": [round(float(share), 4) for share in np.mean([course.kept for course in courses], axis=0)],
        "winner_goes_on": share(stays[np.arange(len(blocks)), truth.scores.argmax(axis=1)]),
        **truth.judge(np.where(stays, answers.scores, -np.inf)),
    }


def follow(answers: Scores, blocks: npt.NDArray[np.int64]) -> list[Course]:
    """Return the course of each query in a cascade that saw no query of the same fold."""
    queries = [
        LookedAtQuery(
            similarities,
            {LOOK: look_inputs(looks, similarities), PREFIX: look_inputs(summaries.astype(np.float32), similarities)},
            scores,
        )
        for similarities, looks, summaries, scores in zip(*answers.arrays(), strict=True)
    ]
    present = np.unique(blocks)
    if len(present) < 3:
        raise SystemExit(
            f"the queries are of {len(present)} parts of {FOLDS} of the places: too few to learn from; ask more"
        )
    courses: dict[int, Course] = {}
    for fold in present:
        others = [[queries[i] for i in np.flatnonzero(blocks == other)] for other in present if other != fold]
        rule = learn_rule(others, PROBABILITY)
        courses |= {int(i): rule.follow(queries[i], MAX_BATCH) for i in np.flatnonzero(blocks == fold)}
    return [courses[i] for i in range(len(queries))]


HEADINGS = (
    "setting",
    "queries",
    "Recall@1",
    "difference",
    "95 % interval",
    "lost",
    "won",
    "same winner",
    "goes on",
    "kept",
)


def table(results: dict[str, Any]) -> str:
    """Format the figures as aligned text."""
    rows = [HEADINGS, *(_cells(name, figures) for name, figures in results["settings"].items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([*lines, *(f"not tried: {line}" for line in results["left_out"])])


def _cells(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    low, high = figures["interval"]
    return (
        name,
        str(figures["queries"]),
        f"{figures['recall_at_1']:.2f}",
        f"{figures['difference']:+.2f}",
        f"{low:+.2f} to {high:+.2f}",
        str(figures["right_to_wrong"]),
        str(figures["wrong_to_right"]),
        _told(figures["same_winner"]),
        _told(figures["winner_goes_on"]) if "winner_goes_on" in figures else "",
        " > ".join(f"{share:.1%}" for share in figures.get("kept", ())),
    )


def _told(part: dict[str, Any]) -> str:
    low, high = part["interval"]
    return f"{part['percent']:.2f} ({low:.2f} to {high:.2f})"


def _ranks(scores: Floats) -> npt.NDArray[np.float64]:
    """Return ranks of a query's candidates, standardised: the product of two is Spearman's correlation."""
    ranks = np.argsort(np.argsort(scores)).astype(np.float64)
    ranks -= ranks.mean()
    return ranks / np.linalg.norm(ranks)


if __name__ == "__main__":
    main()
