"""Show the trials of `pairvpr tune`: a table of text, and a page with the settings' agreement over their time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from string import Template

from pairvpr.calibration.trials import Trial, Tuned
from pairvpr.html.charts import Axis, Chart, with_value
from pairvpr.html.document import document, table_rows
from pairvpr.html.document import table as titled_table
from pairvpr.runtime.mapping.token_storage import describe
from pairvpr.viewing.calibration_results import tuning_rows

CHART_STYLE = """
p + .figure, .figure + .figure { margin-top: 14px; }
svg .front { fill: none; stroke: var(--accent); stroke-width: 2; }
svg .allowed { stroke: var(--right); stroke-dasharray: 6 4; }
svg .budget { stroke: var(--wrong); stroke-dasharray: 6 4; }
svg .trial { fill: var(--faint); stroke: var(--faint); }
svg .on { fill: var(--accent); stroke: var(--accent); }
svg .chosen circle { fill: var(--right); }
"""

BODY = Template("""<h1>Settings on this device</h1>
<p class="faint">$about</p>
<p><b>$verdict</b></p>
$chosen
<div class="figure"><h2>Agreement with the exact answer over time</h2>
$chart
<p class="faint">Each point is a setting with its 95 % interval. Point at it for its name. The line is the Pareto
front: no faster setting agrees as well. Grey settings left early, with fewer pictures and wider intervals. The dashed
lines are the allowed share of other first matches (green) and the budget, if any (red).</p></div>
<div class="figure"><h2>Settings</h2>
<table class="numbers">$rows</table>
$notes</div>""")

HEADINGS = ("setting", "median ms", "p99 ms", "x exact", "changed", "loss", "95 % interval", "")


def table(tuned: Tuned) -> str:
    """Return the trials as aligned text."""
    rows = [HEADINGS, *(_cells(tuned, trial) for trial in tuned.trials)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [about(tuned), ""]
    for row in rows:
        first, *middle, last = row
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True))]
        lines.append("  ".join([*cells, last]).rstrip())
    return "\n".join([*lines, "", *_notes(tuned)])


def about(tuned: Tuned) -> str:
    """Return the conditions of the trials: computer, pictures, candidates, and token format."""
    return (
        f"{tuned.computer}; {tuned.exact.pictures} queries to a map of {tuned.map.pictures} pictures, "
        f"{tuned.candidates} candidates each; tokens of the map: {describe(tuned.map.tokens)}"
    )


def verdict(tuned: Tuned) -> str:
    """Return one line that says why a setting was chosen, or why none was."""
    allowed = f"a changed first match in at most {tuned.max_loss:.2%} of pictures"
    if tuned.chosen is None:
        passed = [trial for trial in tuned.trials if trial.outcome != "too many other matches"]
        nearest = min(passed, key=lambda trial: trial.p99_ms)
        return (
            f"No setting keeps {tuned.budget_ms:g} ms in 99 of 100 answers with {allowed}. Nothing was written. The "
            f"nearest is {nearest.setting}, p99 {nearest.p99_ms:.0f} ms. To keep a budget by comparing fewer "
            "candidates, run `pairvpr-run --budget-ms`."
        )
    return f"Chosen: the fastest setting with {allowed}"


def chosen_rows(tuned: Tuned) -> list[tuple[str, str]]:
    """Describe the chosen setting in labelled rows. Without one there are none."""
    return [] if tuned.chosen is None else tuning_rows(tuned.tuning(tuned.chosen))


def render(tuned: Tuned) -> str:
    """Return the page as HTML, which needs no other file."""
    body = BODY.substitute(
        about=escape(about(tuned)),
        verdict=escape(verdict(tuned)),
        chosen=titled_table("Chosen", chosen_rows(tuned), "", text=True) if tuned.chosen else "",
        chart=chart(tuned),
        rows=table_rows([_narrow(row) for row in [HEADINGS, *(_cells(tuned, trial) for trial in tuned.trials)]]),
        notes="\n".join(f'<p class="faint">{escape(note)}</p>' for note in _notes(tuned)),
    )
    return document("Pair-VPR: settings tuned", body, CHART_STYLE)


def chart(tuned: Tuned) -> str:
    """Return inline SVG: median milliseconds across, share of changed first matches up."""
    drawn = Chart(
        "Loss of agreement over milliseconds",
        Axis.from_zero("median milliseconds of an answer", 1.05 * max(trial.median_ms for trial in tuned.trials), 5),
        Axis.from_zero(
            "another first match", 1.25 * max([tuned.max_loss, *(t.loss for t in tuned.trials)]), 4, percent=True
        ),
    )
    shapes = [drawn.level("allowed", tuned.max_loss)]
    if tuned.budget_ms is not None and tuned.budget_ms <= drawn.across.high:
        shapes.append(drawn.upright("budget", tuned.budget_ms))
    shapes.append(drawn.line("front", _corners([(trial.median_ms, trial.loss) for trial in tuned.front()])))
    shapes += [_mark(tuned, trial, drawn) for trial in tuned.trials]
    return drawn.svg(shapes)


def _mark(tuned: Tuned, trial: Trial, chart: Chart) -> str:
    """Return a setting's point with its interval, cut at the top of the chart, and its figures."""
    kind = "trial" + (" on" if trial in tuned.front() else "") + (" chosen" if trial is tuned.chosen else "")
    low, high = (chart.y(min(bound, chart.up.high)) for bound in trial.interval)
    at = chart.x(trial.median_ms)
    shape = (
        f'<g class="{kind}"><line x1="{at}" y1="{low}" x2="{at}" y2="{high}"/>'
        f'<circle cx="{at}" cy="{chart.y(trial.loss)}" r="5"/></g>'
    )
    return with_value(shape, " | ".join(_cells(tuned, trial)), chart.width)


def _cells(tuned: Tuned, trial: Trial) -> tuple[str, ...]:
    low, high = trial.interval
    told = "the exact answer" if trial is tuned.exact and not trial.outcome else trial.outcome
    return (
        f"{'*' if trial in tuned.front() else ' '} {trial.setting}",
        f"{trial.median_ms:.1f}",
        f"{trial.p99_ms:.1f}",
        f"{tuned.exact.median_ms / trial.median_ms:.2f}",
        f"{trial.changed} of {trial.pictures}",
        f"{trial.loss:.2%}",
        f"{low:.2%} to {high:.2%}" if trial is not tuned.exact else "",
        told,
    )


def _narrow(cells: tuple[str, ...]) -> list[str]:
    """Return a row of the page's table, which has to fit a phone. The chart shows the cells that are left out."""
    setting, median, p99, _, changed, _, interval, outcome = cells
    return [f"{setting}: {outcome}" if outcome else setting, median, p99, changed, interval]


def _notes(tuned: Tuned) -> Iterator[str]:
    yield (
        "* on the Pareto front. Medians are of pictures that all settings answered in turn. x exact: speed relative to "
        "the exact answer. changed: pictures with another first match than the exact answer's, before a setting left."
    )
    if not tuned.cascade:
        yield "No cascade is calibrated. Run `pairvpr calibrate cascade` and tune again: answers may be faster."
    if tuned.same or tuned.unread:
        yield f"Left out: {tuned.same} pictures that are in the map, {tuned.unread} that cannot be read."
    for line in tuned.left_out:
        yield f"Left out: {line}"


def _corners(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Yield the Pareto front as steps, from (milliseconds, loss) of its settings."""
    for i, (across, up) in enumerate(points):
        if i:
            yield across, points[i - 1][1]
        yield across, up
