"""Report an evaluation: a few lines of text, a JSON file, predictions, and a page."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pairvpr import __version__
from pairvpr.errors import PairVPRError
from pairvpr.evaluation.hog import hog_recall
from pairvpr.evaluation.page import render
from pairvpr.evaluation.predictions import write_predictions
from pairvpr.evaluation.recall import PRECISIONS, PrecisionRecall, interval_of
from pairvpr.evaluation.records import write_records
from pairvpr.evaluation.results import Evaluation, Figures
from pairvpr.html.document import write_page
from pairvpr.printing import json_document

FORMAT = 1
PAGE, RESULTS, RECORDS = "index.html", "results.json", "queries.jsonl"
MARKER = ".pairvpr-report"  # in a folder that the next report may replace


def check_report_folder(folder: str | Path) -> None:
    """Check that the folder is new, empty, or holds an earlier report, and can be written. Raises PairVPRError."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise PairVPRError(f"{folder}: a file, not a folder; choose another folder for the report")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise PairVPRError(f"{folder}: not empty and holds no report; choose an empty or new folder for the report")
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise PairVPRError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error


def write_report(evaluation: Evaluation, folder: str | Path) -> Path:
    """Write results.json, queries.jsonl, preds/*.txt and index.html into `folder`; return the path of the page.

    Raises PairVPRError if the folder cannot be written or holds other things, SourceError if a picture was removed
    since.
    """
    folder = Path(folder)
    check_report_folder(folder)
    figures = evaluation.figures()
    hog = hog_recall(evaluation.benchmark)
    page = render(evaluation, figures, hog)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text("made by pairvpr eval; the next report here replaces it\n", encoding="utf-8")
        (folder / RESULTS).write_text(json_document(results(evaluation, figures, hog)), encoding="utf-8")
        write_predictions(evaluation, folder)
        write_records(evaluation, folder / RECORDS)
        write_page(folder / PAGE, page)
    except OSError as error:
        where, reason = error.filename or folder, error.strerror or error
        raise PairVPRError(f"{where}: cannot be written ({reason}); choose another folder for the report") from error
    return folder / PAGE


def results(evaluation: Evaluation, figures: Figures, hog: Mapping[int, float]) -> dict[str, Any]:
    """Return the content of results.json: shares from 0 to 1, times in milliseconds, sizes in bytes."""
    benchmark, model = evaluation.benchmark, evaluation.model
    return {
        "format": FORMAT,
        "pairvpr": __version__,
        "benchmark": {
            "name": benchmark.name,
            "protocol": benchmark.protocol,
            "database": len(benchmark.database),
            "queries": len(benchmark.queries),
            "queries_without_answer": figures.without_answer,
            "folders": benchmark.folders,
        },
        "model": dataclasses.asdict(model),
        "ranked_by": evaluation.measure.value,
        "top_k": evaluation.top_k,
        "cascade": None if evaluation.cascade is None else evaluation.cascade.figures(),
        "recall": {"descriptor": _by_n(figures.recall_before), "re_ranked": _by_n(figures.recall_after)},
        "recall_hog": _by_n(hog),
        "recognised": [dataclasses.asdict(each) for each in figures.recognised],
        "errors": None if figures.errors is None else dataclasses.asdict(figures.errors),
        "hubs": [
            {"picture": benchmark.database[hub.index][0], "queries": [benchmark.queries[i][0] for i in hub.queries]}
            for hub in figures.hubs
        ],
        "recall_interval": {
            title: {str(n): interval_of(share, len(benchmark.queries)) for n, share in recall.items()}
            for title, recall in (("descriptor", figures.recall_before), ("re_ranked", figures.recall_after))
        },
        "operating_points": [
            dataclasses.asdict(point) for each in PRECISIONS if (point := figures.decisive.at(each)) is not None
        ],
        "precision_recall": {
            "similarity": _curve(figures.by_similarity),
            "score": None if figures.by_score is None else _curve(figures.by_score),
        },
        "decisions": None if figures.decisions is None else dataclasses.asdict(figures.decisions),
        "sequence": None if figures.sequence is None else dataclasses.asdict(figures.sequence),
        "milliseconds": {each.step: {"median": each.median, "p95": each.p95} for each in figures.latency},
        "map": {
            "bytes_per_picture": evaluation.bytes_per_picture,
            "built": evaluation.built,
            "build_seconds": evaluation.build_seconds,
        },
    }


def summary(evaluation: Evaluation, recognised: bool = False) -> str:
    """Return the figures in a few lines of text. recognised: with a table of recognised and wrong places."""
    figures, benchmark = evaluation.figures(), evaluation.benchmark
    total = next(each for each in figures.latency if each.step == "total")
    lines = [
        f"{benchmark.name}: {len(benchmark.queries)} queries, {len(benchmark.database)} database pictures, "
        f"{evaluation.ranking}",
        benchmark.protocol,
        *([] if evaluation.cascade is None else [f"cascade: {evaluation.cascade}"]),
        "  ".join([f"{'Recall, %':12}", *(f"{f'@{n}':>6}" for n in figures.recall_before)]),
    ]
    for title, recall in (("descriptor", figures.recall_before), ("re-ranked", figures.recall_after)):
        if title == "descriptor" or figures.by_score is not None:
            lines.append("  ".join([f"{title:12}", *(f"{100 * share:6.1f}" for share in recall.values())]))
    for title, curve in figures.curves():
        lines.append(
            f"{title} as confidence: average precision {curve.average_precision:.1%}, "
            f"recall at 100 % precision {curve.recall_at_full_precision:.1%}"
        )
    if (found := figures.sequence) is not None:
        step = next(each for each in figures.latency if each.step == "sequence")
        lines.append(
            f"sequence: Recall@1 {100 * found.recall:.1f} %, {found.gained} queries right only with the filter, "
            f"{found.lost} only without; mean probability off the map {found.off_map:.0%}; the filter takes "
            f"{step.median:.2f} ms a query"
        )
    if recognised:
        lines += _recognised(figures, len(benchmark.queries))
    if (decided := figures.decisions) is not None:
        lines.append(
            f"decisions: {decided.accepted} of {len(benchmark.queries)} answers accepted from score "
            f"{decided.threshold:.3f} (precision {decided.precision:g}), {decided.right} of them right"
        )
    lines.append(
        f"a query takes {total.median:.0f} ms, 95 % of them at most {total.p95:.0f} ms; "
        f"the map {evaluation.bytes_per_picture / 1e3:.0f} kB a picture"
    )
    return "\n".join(lines)


def _recognised(figures: Figures, queries: int) -> Iterator[str]:
    yield f"{'Of all queries, %':20}  recognised   wrong  rejected"
    for each in figures.recognised:
        title = "all answers accepted" if each.limit == 1 else f"wrong at most {100 * each.limit:g}"
        right, wrong = (100 * count / queries for count in (each.right, each.wrong))
        yield f"{title:20}  {right:10.1f}  {wrong:6.1f}  {100 - right - wrong:8.1f}"
    if (errors := figures.errors) is not None:
        yield f"first matches are {errors.median:,.1f} {errors.unit} off (median), 95 % within {errors.p95:,.1f}"


def sequence_warning(evaluation: Evaluation) -> str | None:
    """Return a warning if the sequence filter lowers Recall@1, else None."""
    figures = evaluation.figures()
    alone, found = figures.recall_after[1], figures.sequence
    if found is None or found.recall >= alone:
        return None
    return (
        f"the sequence filter lowers Recall@1: {100 * alone:.1f} % without it, "
        f"{100 * found.recall:.1f} % with it; leave out --sequence for pictures like these"
    )


def _by_n(recall: Mapping[int, float]) -> dict[str, float]:
    return {str(n): share for n, share in recall.items()}


def _curve(curve: PrecisionRecall) -> dict[str, Any]:
    return {
        "average_precision": curve.average_precision,
        "recall_at_full_precision": curve.recall_at_full_precision,
        "recall": [round(float(value), 6) for value in curve.recall],
        "precision": [round(float(value), 6) for value in curve.precision],
    }
