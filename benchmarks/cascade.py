"""The calibrated cascade against exact answers, in alternation: time, share of candidates kept, same winners.

    python -m benchmarks.cascade --db map/ --images others/

The map is calibrated before, with other pictures (`pairvpr calibrate --db map/ --images ...`).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from pairvpr.runtime import PlaceRecognizer, Recognition
from pairvpr.runtime.sources import list_pictures


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--db", type=Path, required=True, help="A calibrated map.")
    parser.add_argument("--images", type=Path, required=True, help="Pictures that it was not calibrated with.")
    parser.add_argument("--every", type=int, default=1, help="Take one picture in so many.")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    pairs: list[tuple[Recognition, Recognition]] = []
    with (
        PlaceRecognizer.open(args.db, device="cpu", threads=args.threads, exact=True) as exact,
        PlaceRecognizer.open(args.db, device="cpu", threads=args.threads) as cascade,
    ):
        description = exact.model.engines.description
        for _, path in list_pictures(args.images)[:: args.every]:
            pairs.append((exact.recognize(path), cascade.recognize(path)))
    kept = [sum(match.stage == "full" for match in fast.matches) / len(fast.matches) for _, fast in pairs]
    seconds = [[_reranking(answer) for answer in pair] for pair in pairs]
    ratios = [slow / fast for slow, fast in seconds[1:]]  # the first warms up
    winners = sum(full.best.name == fast.best.name for full, fast in pairs)
    results = {
        "engine": description,
        "threads": args.threads,
        "queries": len(pairs),
        "candidates": len(pairs[0][0].matches),
        "kept": {"mean": round(statistics.mean(kept), 4), "max": round(max(kept), 4)},
        "same_winner": winners,
        "re_ranking_ms": {
            name: round(statistics.median(each), 1)
            for name, each in zip(("exact", "cascade"), zip(*seconds, strict=True), strict=True)
        },
        "ratio": {"median": round(statistics.median(ratios), 3), "quartiles": _quartiles(ratios)},
    }
    print(json.dumps(results, indent=1))


def _reranking(answer: Recognition) -> float:
    return answer.timings["gather"] + answer.timings["rerank"]


def _quartiles(values: list[float]) -> list[float]:
    low, _, high = statistics.quantiles(values, n=4)
    return [round(low, 3), round(high, 3)]


if __name__ == "__main__":
    main()
