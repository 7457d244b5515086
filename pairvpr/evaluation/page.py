"""Build the page of a report: one HTML file that needs no other file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

import numpy as np

from pairvpr.evaluation.benchmark import Benchmark
from pairvpr.evaluation.recall import PRECISIONS, PrecisionRecall, first_right, interval_of
from pairvpr.evaluation.results import Evaluation, Figures
from pairvpr.evaluation.template import CHART, CURVES, FOLDERS, PAGE, STYLE
from pairvpr.html.album import group, match_figure, query_figure, re_ranking_groups, strip
from pairvpr.html.charts import Axis, Chart, nice_step
from pairvpr.html.document import document, percent, table, table_rows, warnings
from pairvpr.runtime.measure import Measure
from pairvpr.spread import spread

PER_GROUP = 8  # queries shown of each kind
PLOTTED = 1000
"""Most dots of a kind on a chart."""
BINS = 30
POINTS = 40
"""Points of a curve that show their values."""


def render(evaluation: Evaluation, figures: Figures, hog: Mapping[int, float]) -> str:
    """Return the page as HTML. Its pictures are read from the benchmark's files. Raises SourceError.

    hog: Recall@N of a hand-made descriptor, see `hog_recall`.
    """
    benchmark, model = evaluation.benchmark, evaluation.model
    ranks = [(int(before), int(after)) for before, after in zip(*evaluation.ranks(), strict=True)]
    body = PAGE.substitute(
        name=escape(benchmark.name),
        queries=len(benchmark.queries),
        database=len(benchmark.database),
        ranking=evaluation.ranking,
        preset=escape(model.preset),
        identity=escape(model.identity[:12]),
        origin=escape(model.weights.origin),
        engine=escape(model.engine + ("" if evaluation.cascade is None else f"; cascade: {evaluation.cascade}")),
        protocol=escape(benchmark.protocol),
        warning=warnings(model.weights.trained, None if figures.decisions is None else figures.decisions.warning),
        figures="\n".join(
            (
                _recall(evaluation, figures, hog),
                _recognised(evaluation, figures),
                _latency(evaluation, figures),
                _operating_points(evaluation, figures),
                *_matches(evaluation),
                _scores(evaluation),
                _curves(evaluation, figures),
            )
        ),
        folders=""
        if benchmark.folders is None
        else FOLDERS.substitute(database=escape(benchmark.folders[0]), queries=escape(benchmark.folders[1])),
        hubs=_hubs(evaluation, figures),
        groups=re_ranking_groups(
            [(before == 0, after == 0) for before, after in ranks],
            lambda query: _strip(evaluation, query, *ranks[query]),
            PER_GROUP,
            evaluation.measure,
        ),
    )
    return document(f"Pair-VPR: {benchmark.name}", body, STYLE)


def _recall(evaluation: Evaluation, figures: Figures, hog: Mapping[int, float]) -> str:
    benchmark = evaluation.benchmark
    queries, database = len(benchmark.queries), len(benchmark.database)
    rows: list[tuple[str, ...]] = [("Recall", "by descriptor", "re-ranked", "HOG", "chance")]
    for n, before in figures.recall_before.items():
        after = figures.recall_after[n]
        chance = float(np.mean([_chance(len(right), database, n) for right in benchmark.positives]))
        shares = _with_interval(before, queries), _with_interval(after, queries)
        rows.append((f"@{n}", *shares, percent(hog[n]), percent(chance)))
    if (found := figures.sequence) is not None:
        rows.append(("@1, sequence", "", _with_interval(found.recall, queries), "", ""))
    if evaluation.measure is Measure.SIMILARITY:
        rows = [("Recall", "", "HOG", "chance"), *((row[0], row[2], row[3], row[4]) for row in rows[1:])]
    note = (
        "Percent of all queries, with the 95 % interval for independent queries, which neighbouring frames are not. "
        "HOG is a hand-made descriptor, histograms of oriented gradients at 64 x 32 pixels."
    )
    return table("A right answer among the first", rows, note, wide=True)


def _recognised(evaluation: Evaluation, figures: Figures) -> str:
    queries = len(evaluation.benchmark.queries)
    rows = [("Answers", "recognised", "wrong", "rejected", f"from {evaluation.measure}")]
    for each in figures.recognised:
        title = "all" if each.limit == 1 else f"at most {100 * each.limit:g} % wrong"
        shares = (each.right, each.wrong, queries - each.right - each.wrong)
        score = "none" if each.threshold is None else f"{each.threshold:.3f}"
        right, wrong, rejected = (percent(count / queries) for count in shares)
        rows.append((title, right, wrong, rejected, "" if each.limit == 1 else score))
    note = f"Percent of all queries, by the lowest {evaluation.measure} that keeps to the limit in these queries."
    if (errors := figures.errors) is not None:
        note += f" First matches are {errors.median:,.1f} {errors.unit} off (median), 95 % within {errors.p95:,.1f}"
        note += "." if errors.right_median is None else f"; right ones {errors.right_median:,.1f}."
    return table("Recognised and wrong places", rows, note, wide=True)


def _hubs(evaluation: Evaluation, figures: Figures) -> str:
    """Return a section of the map pictures that are wrongly answered most, each with some of its queries."""
    if not figures.hubs:
        return ""
    strips, benchmark = [], evaluation.benchmark
    for hub in figures.hubs:
        name, file = benchmark.database[hub.index]
        shown = [benchmark.queries[query] for query in spread(list(hub.queries), 3)]
        pictures = [
            match_figure(file, False, "Map picture", name),
            *(query_figure(path, title) for title, path in shown),
        ]
        strips.append(strip(pictures, f"The first match of {len(hub.queries)} queries of other places."))
    explanation = "Map pictures that are the first match of two or more queries of other places."
    return group("Pictures that are wrongly answered most", f"{len(strips)} shown", explanation, strips)


def _with_interval(share: float, queries: int) -> str:
    low, high = interval_of(share, queries)
    return f"{percent(share)} ({100 * low:.1f} to {100 * high:.1f})"


def _chance(right: int, database: int, n: int) -> float:
    """Return the chance that n pictures drawn from the database hold a right one."""
    missed = 1.0
    for drawn in range(n):
        missed *= max(0.0, (database - right - drawn) / (database - drawn))
    return 1 - missed


def _operating_points(evaluation: Evaluation, figures: Figures) -> str:
    queries = len(evaluation.benchmark.queries)
    rows = [("Precision", f"from {evaluation.measure}", "accepted, of all", "right")]
    if (decided := figures.decisions) is not None:
        share = f"{percent(decided.accepted / queries)} ({decided.accepted})"
        title = f"calibrated for {100 * decided.precision:g}%"
        rows.append((title, f"{decided.threshold:.3f}", share, str(decided.right)))
    for precision in PRECISIONS:
        point = figures.decisive.at(precision)
        if point is None:
            rows.append((f"{precision:.0%}", "not reached", "", ""))
        else:
            share = f"{percent(point.accepted / queries)} ({point.accepted})"
            rows.append((f"{precision:.0%}", f"{point.threshold:.3f}", share, str(point.right)))
    note = (
        "The lowest threshold whose accepted answers are right this often in these queries. It promises nothing for "
        "others: <code>pairvpr calibrate threshold</code> does."
    )
    return table(f"Accepting by {evaluation.measure}", rows, note)


def _matches(evaluation: Evaluation) -> Iterator[str]:
    """Yield a chart of the matched database index of each query, and of the filtered one with a sequence filter."""
    benchmark = evaluation.benchmark
    title = "Matches, re-ranked" if evaluation.measure is Measure.SCORE else "Matches"
    answers = [(title, evaluation.re_ranked[:, 0])]
    if evaluation.filtered is not None:
        answers.append(("Matches of the sequence filter", evaluation.filtered))
    across, up = (
        Axis.from_zero(title, max(1.0, float(len(side) - 1)), 8)
        for title, side in (("query", benchmark.queries), ("database picture", benchmark.database))
    )
    for title, matched in answers:
        right = first_right(matched[:, None], benchmark.positives) == 0
        drawn = Chart(title, across, up)
        dots = [
            drawn.dot(kind, i, matched[i], f"{benchmark.queries[i][0]} -> {benchmark.database[matched[i]][0]}, {kind}")
            for kind, chosen in (("right", right), ("wrong", ~right))
            for i in spread(np.flatnonzero(chosen).tolist(), PLOTTED)
        ]
        yield CHART.substitute(
            title=title,
            chart=drawn.svg(dots),
            note=f"{int(right.sum())} right (green) and {int((~right).sum())} wrong (red), in the order of both sides. "
            "Two traverses of one way show a line."
            + (f" At most {PLOTTED} of each are shown, evenly chosen." if len(matched) > PLOTTED else ""),
        )


def _scores(evaluation: Evaluation) -> str:
    """Return histograms of the first match's pair score or similarity, right against wrong."""
    by_score = evaluation.measure is Measure.SCORE
    scores, right = (evaluation.scores if by_score else evaluation.similarities)[:, 0], evaluation.ranks()[1] == 0
    compared = ~np.isnan(scores)
    title = f"{'Pair scores' if by_score else 'Similarities'} of right and wrong first matches"
    if not compared.any():
        return CHART.substitute(title=title, chart="", note="No first match was compared in full.")
    edges = np.histogram_bin_edges(scores[compared].astype(np.float64), BINS)
    counts = {
        kind: np.histogram(scores[compared & chosen], edges)[0]
        for kind, chosen in (("right", right), ("wrong", ~right))
    }
    highest = float(max(count.max() for count in counts.values()))
    low, high = float(edges[0]), float(edges[-1])
    drawn = Chart(
        title,
        Axis(str(evaluation.measure), low, high, nice_step(high - low, 10)),
        Axis.from_zero("queries", highest, 5),
    )
    bars = [
        drawn.bar(
            f"bar {kind}",
            float(edges[i]),
            float(edges[i + 1]),
            0.0,
            float(count),
            f"{evaluation.measure.value} {edges[i]:.2f} to {edges[i + 1]:.2f}: {count} {kind}",
        )
        for kind, found in counts.items()
        for i, count in enumerate(found)
        if count
    ]
    note = "Right in green, wrong in red. Where they overlap, no threshold separates them."
    return CHART.substitute(title=title, chart=drawn.svg(bars), note=note)


def _latency(evaluation: Evaluation, figures: Figures) -> str:
    rows = [("Milliseconds", "median", "95th percentile")]
    rows += [(each.step, f"{each.median:.1f}", f"{each.p95:.1f}") for each in figures.latency]
    rate = evaluation.built / evaluation.build_seconds
    encoded = f"{evaluation.built} encoded, {rate:.1f} a second" if evaluation.built else "encoded in an earlier run"
    note = f"The map takes {evaluation.bytes_per_picture / 1e3:.0f} kB a picture; {encoded}."
    return table("Time for a query", rows, note)


def _curves(evaluation: Evaluation, figures: Figures) -> str:
    rows = [("Confidence", "average precision", "recall at 100 % precision")]
    titles = ("similarity, by descriptor (dashed)", "pair score, re-ranked")
    for title, (_, curve) in zip(titles, figures.curves(), strict=False):
        rows.append((title, percent(curve.average_precision), percent(curve.recall_at_full_precision)))
    return CURVES.substitute(
        chart=chart(*(curve for _, curve in figures.curves())),
        rows=table_rows(rows),
        answerable=len(evaluation.benchmark.queries) - figures.without_answer,
        without=figures.without_answer or "no",
    )


def chart(*curves: PrecisionRecall) -> str:
    """Return the precision-recall curves before and after re-ranking as inline SVG, from recall 0 on."""
    recall, precision = (Axis(title, 0.0, 1.0, 0.2, percent=True) for title in ("recall", "precision"))
    drawn = Chart("Precision over recall", recall, precision)
    lines, points = [], []
    for kind, curve in zip(("before", "after"), curves, strict=False):
        across, up = np.append(0.0, curve.recall), np.append(curve.precision[:1], curve.precision)
        lines.append(drawn.line(f"curve {kind}", zip(across.tolist(), up.tolist(), strict=True)))
        for i in spread(list(range(len(curve.thresholds))), POINTS):
            told = f"from {curve.thresholds[i]:.3f}: precision {percent(up[i + 1])}, recall {percent(across[i + 1])}"
            points.append(drawn.dot("point", float(across[i + 1]), float(up[i + 1]), told))
    return drawn.svg([*lines, *points])


def _strip(evaluation: Evaluation, query: int, before: int, after: int) -> str:
    """Return a query, its first match, that after re-ranking if there is any, and a right answer if it is wrong."""
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
    ]
    if evaluation.measure is Measure.SCORE:
        figures.append(
            _match(benchmark, int(evaluation.re_ranked[query, 0]), after == 0, "Re-ranked", re_ranked),
        )
    if after > 0 and len(right):
        best = int(evaluation.re_ranked[query, after]) if after < depth else int(right[len(right) // 2])
        name, file = benchmark.database[best]
        figures.append(query_figure(file, name, "A right answer"))
    ranks = f"{_rank(before, depth)} by descriptor"
    if evaluation.measure is Measure.SCORE:
        ranks += f", {_rank(after, depth)} after re-ranking"
    note = f"The first right answer is {ranks}." if len(right) else "The database holds no right answer."
    return strip(figures, note)


def _match(benchmark: Benchmark, index: int, right: bool, heading: str, measured: str) -> str:
    name, file = benchmark.database[index]
    return match_figure(file, right, heading, f"{name}, {measured}")


def _rank(rank: int, depth: int) -> str:
    return f"number {rank + 1}" if rank < depth else f"not among the first {depth}"
