"""Predictions as text files, one per query, in the format of github.com/gmberton/VPR-methods-evaluation (`preds/`)."""

from __future__ import annotations

import re
from pathlib import Path

from pairvpr.evaluation.results import Evaluation

FOLDER = "preds"


def write_predictions(evaluation: Evaluation, folder: Path) -> None:
    """Write `preds/000.txt` and on: the query's path, those of its ranked matches and of its right answers.

    Files of an earlier evaluation with more queries are removed.
    """
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        if re.fullmatch(r"\d{3,}\.txt", old.name):
            old.unlink()
    benchmark = evaluation.benchmark
    files = [str(path) for _, path in benchmark.database]
    answers = zip(benchmark.queries, evaluation.re_ranked, benchmark.positives, strict=True)
    for number, ((_, query), ranked, right) in enumerate(answers):
        text = predictions_text(str(query), [files[i] for i in ranked], [files[i] for i in right])
        (target / f"{number:03d}.txt").write_text(text, encoding="utf-8", errors="surrogateescape")


def predictions_text(query: str, predictions: list[str], positives: list[str]) -> str:
    """The content of one file: three headings, the paths below them, and an empty line between."""
    sections = (("Query path:", [query]), ("Predictions paths:", predictions), ("Positives paths:", positives))
    return "\n".join(heading + "\n" + "\n".join(paths) + "\n" for heading, paths in sections)
