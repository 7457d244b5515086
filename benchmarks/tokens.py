"""What storing tokens as int8 or merged changes: scores, winners and recall, on the same pairs, and bytes a picture.

python -m benchmarks.tokens --database day_left/ --queries night_right/ --tolerance 2 --every 10
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.evaluation import load_folders
from pairvpr.runtime import Features, load_model
from pairvpr.runtime.map.tokens import TokenFormat

FORMATS = tuple(TokenFormat(kind, keep) for keep in (1.0, 0.75, 0.5, 0.25) for kind in ("float16", "int8"))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="Bundle; the default model's without one.")
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--tolerance", type=int, help="Frames: match by numbers in names, not @UTM@ positions.")
    parser.add_argument("--every", type=int, default=1, help="Take one query in so many.")
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    model = load_model(args.model, "cpu", threads=args.threads)
    benchmark = load_folders(args.database, args.queries, args.tolerance)
    asked = range(0, len(benchmark.queries), args.every)
    database = model.encode([path for _, path in benchmark.database])
    queries = model.encode([benchmark.queries[i][1] for i in asked])
    similarity = queries.descriptors @ database.descriptors.T
    candidates = np.argsort(-similarity, axis=1, kind="stable")[:, : args.top_k]
    right = np.array([np.isin(row, benchmark.positives[i]) for i, row in zip(asked, candidates, strict=True)])

    def scores(how: TokenFormat | None) -> npt.NDArray[np.float32]:
        tokens = database.tokens if how is None else np.stack([how.store(each).load() for each in database.tokens])
        return np.stack(
            [
                model.score(queries[i], Features(database.descriptors[row], tokens[row]))
                for i, row in enumerate(candidates)
            ]
        )

    exact = scores(None)
    results: dict[str, Any] = {
        "preset": model.bundle.info.preset,
        "trained": model.bundle.info.weights.trained,
        "engine": model.engines.description,
        "queries": len(exact),
        "candidates": exact.shape[1],
        "score_spread": round(float(np.median(np.ptp(exact, axis=1))), 4),
        "recall_at_1": {"descriptor": _percent(right[:, 0]), "float32": _recall(exact, right)},
    }
    for how in FORMATS:
        found, stored = scores(how), how.store(database.tokens[0])
        results[f"{how.type}, {how.keep:.0%}"] = {
            "bytes_a_picture": stored.nbytes + database.descriptors[0].nbytes,
            "score_change": {
                "mean": float(f"{np.abs(found - exact).mean():.3g}"),
                "max": float(f"{np.abs(found - exact).max():.3g}"),
            },
            "rank_correlation": round(
                float(np.mean([_ranks(a) @ _ranks(b) for a, b in zip(found, exact, strict=True)])), 4
            ),
            "winner_changed": int(np.sum(found.argmax(axis=1) != exact.argmax(axis=1))),
            "recall_at_1": _recall(found, right),
        }
    print(json.dumps(results, indent=1))


def _recall(scores: npt.NDArray[np.float32], right: npt.NDArray[np.bool_]) -> float:
    return _percent(right[np.arange(len(scores)), scores.argmax(axis=1)])


def _percent(hits: npt.NDArray[np.bool_]) -> float:
    return round(100 * float(np.mean(hits)), 1)


def _ranks(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Ranks of one query's candidates, standardised: the product of two is Spearman's correlation."""
    ranks = np.argsort(np.argsort(scores)).astype(np.float64)
    ranks -= ranks.mean()
    return ranks / np.linalg.norm(ranks)


if __name__ == "__main__":
    main()
