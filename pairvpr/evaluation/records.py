"""Write a record of each query as a JSON line, so that an analysis needs no second run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pairvpr.evaluation.results import Evaluation
from pairvpr.printing import json_line


def write_records(evaluation: Evaluation, path: Path) -> None:
    """Write the records to a file. Raises OSError."""
    lines = "".join(f"{json_line(record)}\n" for record in records(evaluation))
    path.write_text(lines, encoding="utf-8", errors="backslashreplace")


def records(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """Yield a record of each query.

    query, positives: names. rank_descriptor, rank_re_ranked: ranks of the first right answer, from 1, or null if it is
    not among the ranks. descriptor_order, similarities: all ranks by descriptor. matches, scores: the re-ranked ones; a
    score is null for a pair that was not compared in full. sequence, off_map: only with a sequence filter.
    """
    names = [name for name, _ in evaluation.benchmark.database]
    depth, k = evaluation.by_descriptor.shape[1], evaluation.top_k
    before, after = evaluation.ranks()
    for i, (query, _) in enumerate(evaluation.benchmark.queries):
        record: dict[str, Any] = {
            "format": 1,
            "query": query,
            "positives": [names[row] for row in evaluation.benchmark.positives[i]],
            "rank_descriptor": int(before[i]) + 1 if before[i] < depth else None,
            "rank_re_ranked": int(after[i]) + 1 if after[i] < depth else None,
            "descriptor_order": [names[row] for row in evaluation.by_descriptor[i]],
            "similarities": [round(float(value), 6) for value in evaluation.similarities[i]],
            "matches": [names[row] for row in evaluation.re_ranked[i, :k]],
            "scores": [None if math.isnan(value) else round(float(value), 6) for value in evaluation.scores[i, :k]],
        }
        if evaluation.filtered is not None and evaluation.off_map is not None:
            record["sequence"] = names[evaluation.filtered[i]]
            record["off_map"] = round(float(evaluation.off_map[i]), 6)
        yield record
