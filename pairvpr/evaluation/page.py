"""The report's page: one HTML file with all it shows inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from pairvpr.evaluation.recall import PrecisionRecall
from pairvpr.evaluation.results import Evaluation, Figures
from pairvpr.evaluation.template import CHART, CURVES, PAGE, STRIP, STYLE, TABLE
from pairvpr.html.document import GROUP, UNTRAINED, document, figure, thumbnail
from pairvpr.runtime.image import load_picture

PER_GROUP = 8  # queries shown of each kind
THUMBNAIL = (240, 180)  # pixels, at most

# Title, what it means, and whether a rank before and a rank after re-ranking belong to it (0 is right at once).
GROUPS: tuple[tuple[str, str, Callable[[int, int], bool]], ...] = (
    (
        "Put right by re-ranking",
        "The descriptor's first match is wrong, the re-ranked right.",
        lambda before, after: before > 0 and after == 0,
    ),
    (
        "Put wrong by re-ranking",
        "The descriptor's first match is right, the re-ranked wrong.",
        lambda before, after: before == 0 and after > 0,
    ),
    (
        "Wrong throughout",
        "Neither the descriptor nor re-ranking put a right answer first.",
        lambda before, after: before > 0 and after > 0,
    ),
    (
        "Right throughout",
        "The descriptor's first match is right and so is the re-ranked.",
        lambda before, after: before == 0 and after == 0,
    ),
)

# The chart's frame in its own units.
LEFT, RIGHT, TOP, BOTTOM = 66.0, 610.0, 12.0, 262.0


def render(evaluation: Evaluation, figures: Figures) -> str:
    """The page as HTML text; its pictures are read from the benchmark's files."""
    benchmark, model = evaluation.benchmark, evaluation.model
    ranks = evaluation.ranks()
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
        groups="\n".join(_group(evaluation, ranks, *group) for group in GROUPS),
    )
    return document(f"Pair-VPR: {benchmark.name}", STYLE, body)


def _table(title: str, rows: Sequence[Sequence[str]], note: str) -> str:
    return TABLE.substitute(title=title, rows=_rows(rows), note=note)


def _rows(rows: Sequence[Sequence[str]]) -> str:
    """Table rows of plain text, the first one headings."""
    cells = [
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
        for row, tag in zip(rows, ["th"] + ["td"] * (len(rows) - 1), strict=True)
    ]
    return "".join(f"<tr>{row}</tr>" for row in cells)


def _recall(figures: Figures) -> str:
    rows = [("Recall", "by descriptor", "re-ranked", "change")]
    for n, before in figures.recall_before.items():
        after = figures.recall_after[n]
        rows.append((f"@{n}", _percent(before), _percent(after), f"{100 * (after - before):+.1f}"))
    return _table("A right answer among the first", rows, "Percent of all queries.")


def _latency(evaluation: Evaluation, figures: Figures) -> str:
    rows = [("Milliseconds", "median", "95th percentile")]
    rows += [(each.step, f"{each.median:.1f}", f"{each.p95:.1f}") for each in figures.latency]
    rate = evaluation.built / evaluation.build_seconds
    encoded = f"{evaluation.built} encoded, {rate:.1f} a second" if evaluation.built else "encoded in an earlier run"
    note = f"The map takes {evaluation.bytes_per_picture / 1e3:.0f} kB a picture; {encoded}."
    return _table("Time for a query", rows, note)


def _curves(evaluation: Evaluation, figures: Figures) -> str:
    rows = [("Confidence", "average precision", "recall at 100 % precision")]
    for title, curve in (
        ("similarity, by descriptor (dashed)", figures.by_similarity),
        ("pair score, re-ranked", figures.by_score),
    ):
        rows.append((title, _percent(curve.average_precision), _percent(curve.recall_at_full_precision)))
    return CURVES.substitute(
        chart=chart(figures.by_similarity, figures.by_score),
        rows=_rows(rows),
        answerable=len(evaluation.benchmark.queries) - figures.without_answer,
        without=figures.without_answer or "no",
    )


def chart(before: PrecisionRecall, after: PrecisionRecall) -> str:
    """Both precision-recall curves as inline SVG."""
    grid = []
    for step in range(6):
        x, y = _point(step / 5, step / 5)
        grid.append(f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{RIGHT}" y2="{y}"/>')
        grid.append(f'<line class="grid" x1="{x}" y1="{TOP}" x2="{x}" y2="{BOTTOM}"/>')
        grid.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{20 * step} %</text>')
        grid.append(f'<text x="{x}" y="{BOTTOM + 17}" text-anchor="middle">{20 * step} %</text>')
    curves = [
        f'<polyline class="curve {kind}" points="{_polyline(curve)}"/>'
        for kind, curve in (("before", before), ("after", after))
    ]
    return CHART.substitute(grid="\n".join(grid), curves="\n".join(curves))


def _polyline(curve: PrecisionRecall) -> str:
    """The curve's points, from recall 0 on, those left out that fall on the one before."""
    shares = zip(np.append(0.0, curve.recall), np.append(curve.precision[:1], curve.precision), strict=True)
    points = [_point(recall, precision) for recall, precision in shares]
    return " ".join(f"{x},{y}" for i, (x, y) in enumerate(points) if i == 0 or (x, y) != points[i - 1])


def _point(recall: float, precision: float) -> tuple[float, float]:
    return round(LEFT + recall * (RIGHT - LEFT), 1), round(BOTTOM - precision * (BOTTOM - TOP), 1)


def _group(
    evaluation: Evaluation,
    ranks: tuple[np.ndarray, np.ndarray],
    title: str,
    explanation: str,
    belongs: Callable[[int, int], bool],
) -> str:
    """A heading and strips of queries that went this way, evenly chosen; nothing if none did."""
    found = [i for i, (before, after) in enumerate(zip(*ranks, strict=True)) if belongs(before, after)]
    if not found:
        return ""
    shown = [found[i * len(found) // PER_GROUP] for i in range(PER_GROUP)] if len(found) > PER_GROUP else found
    count = f"{len(found)}" if len(shown) == len(found) else f"{len(found)}, {len(shown)} shown"
    strips = "\n".join(_strip(evaluation, i, int(ranks[0][i]), int(ranks[1][i])) for i in shown)
    return GROUP.substitute(title=title, explanation=explanation, count=count, strips=strips)


def _strip(evaluation: Evaluation, query: int, before: int, after: int) -> str:
    """Query, first match before and after, and where that is wrong, a right one."""
    benchmark = evaluation.benchmark
    name, file = benchmark.queries[query]
    right = benchmark.positives[query]
    depth = evaluation.by_descriptor.shape[1]
    score = float(evaluation.scores[query, 0])
    pictures = [
        _picture(file, "query", "Query", name),
        _match(
            evaluation,
            int(evaluation.by_descriptor[query, 0]),
            before == 0,
            "By descriptor",
            f"similarity {evaluation.similarities[query, 0]:.3f}",
        ),
        _match(
            evaluation,
            int(evaluation.re_ranked[query, 0]),
            after == 0,
            "Re-ranked",
            "not compared" if np.isnan(score) else f"score {score:.3f}",
        ),
    ]
    if after > 0 and len(right):
        best = int(evaluation.re_ranked[query, after]) if after < depth else int(right[len(right) // 2])
        pictures.append(_picture(benchmark.database[best][1], "query", "A right answer", benchmark.database[best][0]))
    places = f"{_rank(before, depth)} by descriptor, {_rank(after, depth)} after re-ranking"
    return STRIP.substitute(
        four=" four" if len(pictures) == 4 else "",
        pictures="\n".join(pictures),
        ranks=f"The first right answer is {places}." if len(right) else "The database holds no right answer.",
    )


def _match(evaluation: Evaluation, index: int, right: bool, heading: str, figure: str) -> str:
    name, file = evaluation.benchmark.database[index]
    mark = '<span class="mark">&#10003; right</span>' if right else '<span class="mark">&#10007; wrong</span>'
    return _picture(file, "right" if right else "wrong", heading, f"{name}, {figure} ", mark)


def _picture(file: Path, state: str, heading: str, caption: str, mark: str = "") -> str:
    """A thumbnail with its caption, which may hold anything; `mark` is HTML."""
    return figure(thumbnail(load_picture(file), THUMBNAIL), state, heading, caption, mark)


def _rank(rank: int, depth: int) -> str:
    return f"number {rank + 1}" if rank < depth else f"not among the first {depth}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
