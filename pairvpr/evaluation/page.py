"""Build the page of a report: one HTML file that needs no other file."""

from __future__ import annotations

from html import escape

import numpy as np

from pairvpr.evaluation.benchmark import Benchmark
from pairvpr.evaluation.recall import PrecisionRecall
from pairvpr.evaluation.results import Evaluation, Figures
from pairvpr.evaluation.template import CURVES, PAGE, STYLE
from pairvpr.html.album import match_figure, query_figure, re_ranking_groups, strip
from pairvpr.html.charts import Axis, Chart
from pairvpr.html.document import UNTRAINED, document, percent, table, table_rows

PER_GROUP = 8  # queries shown of each kind


def render(evaluation: Evaluation, figures: Figures) -> str:
    """Return the page as HTML. Its pictures are read from the benchmark's files. Raises SourceError."""
    benchmark, model = evaluation.benchmark, evaluation.model
    ranks = [(int(before), int(after)) for before, after in zip(*evaluation.ranks(), strict=True)]
    body = PAGE.substitute(
        name=escape(benchmark.name),
        queries=len(benchmark.queries),
        database=len(benchmark.database),
        top_k=evaluation.top_k,
        preset=escape(model.preset),
        identity=escape(model.identity[:12]),
        origin=escape(model.weights.origin),
        engine=escape(model.engine + ("" if evaluation.cascade is None else f"; cascade: {evaluation.cascade}")),
        protocol=escape(benchmark.protocol),
        warning="" if model.weights.trained else UNTRAINED,
        figures="\n".join((_recall(figures), _latency(evaluation, figures), _curves(evaluation, figures))),
        groups=re_ranking_groups(
            [(before == 0, after == 0) for before, after in ranks],
            lambda query: _strip(evaluation, query, *ranks[query]),
            PER_GROUP,
        ),
    )
    return document(f"Pair-VPR: {benchmark.name}", body, STYLE)


def _recall(figures: Figures) -> str:
    rows = [("Recall", "by descriptor", "re-ranked", "change")]
    for n, before in figures.recall_before.items():
        after = figures.recall_after[n]
        rows.append((f"@{n}", percent(before), percent(after), f"{100 * (after - before):+.1f}"))
    return table("A right answer among the first", rows, "Percent of all queries.")


def _latency(evaluation: Evaluation, figures: Figures) -> str:
    rows = [("Milliseconds", "median", "95th percentile")]
    rows += [(each.step, f"{each.median:.1f}", f"{each.p95:.1f}") for each in figures.latency]
    rate = evaluation.built / evaluation.build_seconds
    encoded = f"{evaluation.built} encoded, {rate:.1f} a second" if evaluation.built else "encoded in an earlier run"
    note = f"The map takes {evaluation.bytes_per_picture / 1e3:.0f} kB a picture; {encoded}."
    return table("Time for a query", rows, note)


def _curves(evaluation: Evaluation, figures: Figures) -> str:
    rows = [("Confidence", "average precision", "recall at 100 % precision")]
    for title, curve in (
        ("similarity, by descriptor (dashed)", figures.by_similarity),
        ("pair score, re-ranked", figures.by_score),
    ):
        rows.append((title, percent(curve.average_precision), percent(curve.recall_at_full_precision)))
    return CURVES.substitute(
        chart=chart(figures.by_similarity, figures.by_score),
        rows=table_rows(rows),
        answerable=len(evaluation.benchmark.queries) - figures.without_answer,
        without=figures.without_answer or "no",
    )


def chart(before: PrecisionRecall, after: PrecisionRecall) -> str:
    """Return both precision-recall curves as inline SVG, from recall 0 on."""
    recall, precision = (Axis(title, 0.0, 1.0, 0.2, percent=True) for title in ("recall", "precision"))
    drawn = Chart("Precision over recall", recall, precision)
    curves = []
    for kind, curve in (("before", before), ("after", after)):
        across, up = np.append(0.0, curve.recall), np.append(curve.precision[:1], curve.precision)
        curves.append(drawn.line(f"curve {kind}", zip(across.tolist(), up.tolist(), strict=True)))
    return drawn.svg(curves)


def _strip(evaluation: Evaluation, query: int, before: int, after: int) -> str:
    """Return a query, its first match before and after re-ranking, and a right answer if the latter is wrong."""
    benchmark = evaluation.benchmark
    name, file = benchmark.queries[query]
    right = benchmark.positives[query]
    depth = evaluation.by_descriptor.shape[1]
    score = float(evaluation.scores[query, 0])
    by_descriptor = f"similarity {evaluation.similarities[query, 0]:.3f}"
    re_ranked = "not compared" if np.isnan(score) else f"score {score:.3f}"
    figures = [
        query_figure(file, name),
        _match(benchmark, int(evaluation.by_descriptor[query, 0]), before == 0, "By descriptor", by_descriptor),
        _match(benchmark, int(evaluation.re_ranked[query, 0]), after == 0, "Re-ranked", re_ranked),
    ]
    if after > 0 and len(right):
        best = int(evaluation.re_ranked[query, after]) if after < depth else int(right[len(right) // 2])
        name, file = benchmark.database[best]
        figures.append(query_figure(file, name, "A right answer"))
    ranks = f"{_rank(before, depth)} by descriptor, {_rank(after, depth)} after re-ranking"
    note = f"The first right answer is {ranks}." if len(right) else "The database holds no right answer."
    return strip(figures, note)


def _match(benchmark: Benchmark, index: int, right: bool, heading: str, measured: str) -> str:
    name, file = benchmark.database[index]
    return match_figure(file, right, heading, f"{name}, {measured}")


def _rank(rank: int, depth: int) -> str:
    return f"number {rank + 1}" if rank < depth else f"not among the first {depth}"
