"""Measure recall on two folders of pictures whose names give their places.

python examples/evaluate_folders.py DATABASE QUERIES           # names like @UTM_east@UTM_north@.jpg, 25 m
python examples/evaluate_folders.py DATABASE QUERIES 2         # frame numbers in the names, within 2 frames
"""

import sys

import pairvpr
from pairvpr.evaluation import evaluate, load_folders


def main(database: str, queries: str, tolerance: str | None = None) -> None:
    """Print Recall@N by descriptor and after re-ranking, and the queries whose first match is wrong."""
    benchmark = load_folders(database, queries, None if tolerance is None else int(tolerance))
    evaluation = evaluate(benchmark, pairvpr.load_model(), top_k=min(20, len(benchmark.database)))

    figures = evaluation.figures()
    for n, before in figures.recall_before.items():
        print(f"Recall@{n}: {before:.1%} by descriptor, {figures.recall_after[n]:.1%} after re-ranking")

    for query, ranking, right in zip(benchmark.queries, evaluation.re_ranked, benchmark.positives, strict=True):
        if ranking[0] not in right:
            print(f"wrong: {query[0]} -> {benchmark.database[ranking[0]][0]}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except pairvpr.PairVPRError as error:
        sys.exit(str(error))
