"""Write predictions as text files, one for each query, as github.com/gmberton/VPR-methods-evaluation does."""

from __future__ import annotations

import re
from pathlib import Path

from pairvpr.evaluation.results import Evaluation

FOLDER = "preds"


def write_predictions(evaluation: Evaluation, folder: Path) -> None:
    """Write `preds/000.txt` and so on: the paths of the query, of its ranked matches and of its right answers.

    Files of an earlier evaluation are removed. Raises OSError.
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
    """Return the content of a file: three headings with paths below, and empty lines between."""
    sections = (("Query path:", [query]), ("Predictions paths:", predictions), ("Positives paths:", positives))
    return "\n".join(heading + "\n" + "\n".join(paths) + "\n" for heading, paths in sections)
