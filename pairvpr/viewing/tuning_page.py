"""What `pairvpr tune` shows: a table of text, and a page with the settings' agreement over their time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from string import Template

from pairvpr.calibration.trials import Trial, Tuned
from pairvpr.html.document import NUMBERS_STYLE, STYLE, document
from pairvpr.runtime.mapping.token_storage import describe

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
<div class="figure"><h2>Agreement with the exact answer over time</h2>
$chart
<p class="faint">A point is a setting, the bar its 95 % interval; the line is the Pareto front: no faster setting agrees
as well. Point at a setting for its name. Grey ones left early: fewer pictures, wider bars. Dashed are the share of
other first matches that is allowed (green) and the budget, if there is one (red).</p></div>
<div class="figure"><h2>Settings</h2>
<table class="numbers">$rows</table>
$notes</div>""")

# The chart's frame in its own units.
LEFT, RIGHT, TOP, BOTTOM = 66.0, 610.0, 12.0, 262.0


def table(tuned: Tuned) -> str:
    """What was measured, as aligned text."""
    rows = [HEADINGS, *(_cells(tuned, trial) for trial in tuned.trials)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [about(tuned), ""]
    for row in rows:
        first, *middle, last = row
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True))]
        lines.append("  ".join([*cells, last]).rstrip())
    return "\n".join([*lines, "", *_notes(tuned)])


def about(tuned: Tuned) -> str:
    """Where, on what and with how much it was measured."""
    return (
        f"{tuned.computer}; {tuned.exact.pictures} pictures asked of a map of {tuned.map.pictures}, {tuned.candidates} "
        f"candidates each; tokens as the map has them: {describe(tuned.map.tokens)}"
    )


def verdict(tuned: Tuned) -> str:
    """What was chosen, or that nothing was."""
    allowed = f"another first match in at most {tuned.max_loss:.2%} of pictures"
    if tuned.chosen is None:
        passed = [trial for trial in tuned.trials if trial.told != "too many other matches"]
        nearest = min(passed, key=lambda trial: trial.p99_ms)
        return (
            f"none of these settings keeps {tuned.budget_ms:g} ms in 99 of 100 answers with {allowed}: nothing was "
            f"written; nearest comes {nearest.setting}, p99 {nearest.p99_ms:.0f} ms. `pairvpr-run --budget-ms` keeps a "
            "budget by comparing fewer candidates"
        )
    return f"chosen, the fastest with {allowed}: {tuned.tuning(tuned.chosen)}"


def render(tuned: Tuned) -> str:
    """The page as HTML text; it needs no other file."""
    rows = "".join(
        "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for row, tag in [(HEADINGS, "th"), *((_cells(tuned, trial), "td") for trial in tuned.trials)]
    )
    chosen = verdict(tuned)
    body = BODY.substitute(
        about=escape(about(tuned)),
        verdict=escape(chosen[0].upper() + chosen[1:]),
        chart=chart(tuned),
        rows=rows,
        notes="\n".join(f'<p class="faint">{escape(note)}</p>' for note in _notes(tuned)),
    )
    return document("Pair-VPR: settings tuned", STYLE + NUMBERS_STYLE + CHART_STYLE, body)


def chart(tuned: Tuned) -> str:
    """Inline SVG: median milliseconds to the right, share of changed first matches upwards."""
    slowest = max(trial.median_ms for trial in tuned.trials)
    step = _round_step(slowest / 5)
    widest = step * math.ceil(slowest / step)
    most = max([tuned.max_loss, *(trial.loss for trial in tuned.trials)]) * 1.25
    rise = _round_step(most / 4)

    def x(milliseconds: float) -> float:
        return round(LEFT + milliseconds / widest * (RIGHT - LEFT), 1)

    def y(loss: float) -> float:
        return round(max(TOP, BOTTOM - loss / most * (BOTTOM - TOP)), 1)

    parts = [f'<svg viewBox="0 0 640 300" role="img" aria-label="{escape("Loss of agreement over milliseconds")}">']
    for i in range(round(widest / step) + 1):
        parts.append(f'<line class="grid" x1="{x(i * step)}" y1="{TOP}" x2="{x(i * step)}" y2="{BOTTOM}"/>')
        parts.append(f'<text x="{x(i * step)}" y="{BOTTOM + 17}" text-anchor="middle">{i * step:g}</text>')
    for i in range(int(most / rise) + 1):
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y(i * rise)}" x2="{RIGHT}" y2="{y(i * rise)}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(i * rise) + 4}" text-anchor="end">{100 * i * rise:g} %</text>')
    allowed = y(tuned.max_loss)
    parts.append(f'<line class="allowed" x1="{LEFT}" y1="{allowed}" x2="{RIGHT}" y2="{allowed}"/>')
    if tuned.budget_ms is not None and tuned.budget_ms <= widest:
        budget = x(tuned.budget_ms)
        parts.append(f'<line class="budget" x1="{budget}" y1="{TOP}" x2="{budget}" y2="{BOTTOM}"/>')
    front = tuned.front()
    corners = " ".join(_corners([(x(trial.median_ms), y(trial.loss)) for trial in front]))
    parts.append(f'<polyline class="front" points="{corners}"/>')
    for trial in tuned.trials:
        kind = "trial" + (" on" if trial in front else "") + (" chosen" if trial is tuned.chosen else "")
        low, high = (y(bound) for bound in trial.interval)
        at = x(trial.median_ms)
        parts.append(
            f'<g class="{kind}"><title>{escape(" | ".join(_cells(tuned, trial)))}</title>'
            f'<line x1="{at}" y1="{low}" x2="{at}" y2="{high}"/><circle cx="{at}" cy="{y(trial.loss)}" r="5"/></g>'
        )
    parts.append('<text x="338" y="296" text-anchor="middle">median milliseconds of an answer</text>')
    parts.append(
        '<text x="14" y="137" text-anchor="middle" transform="rotate(-90 14 137)">another first match</text></svg>'
    )
    return "\n".join(parts)


HEADINGS = ("setting", "median ms", "p99 ms", "x exact", "changed", "loss", "95 % interval", "")


def _cells(tuned: Tuned, trial: Trial) -> tuple[str, ...]:
    low, high = trial.interval
    told = "the exact answer" if trial is tuned.exact and not trial.told else trial.told
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


def _notes(tuned: Tuned) -> Iterator[str]:
    yield (
        "* on the Pareto front. Medians are of pictures asked of all settings in turn; x exact: times as fast as that; "
        "changed: another first match than the exact answer's, among the pictures asked before a setting left."
    )
    if not tuned.cascade:
        yield "No cascade was calibrated for this map: `pairvpr calibrate`, then tune again, may be faster."
    if tuned.same or tuned.unread:
        yield f"Not asked: {tuned.same} pictures that are the map's own, {tuned.unread} that could not be read."
    for line in tuned.left_out:
        yield f"Not tried: {line}"


def _corners(points: Sequence[tuple[float, float]]) -> Iterator[str]:
    """The front as steps: what it takes to agree so well."""
    for i, (across, up) in enumerate(points):
        if i:
            yield f"{across},{points[i - 1][1]}"
        yield f"{across},{up}"


def _round_step(size: float) -> float:
    """The next larger of 1, 2, 5 and 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= size * (1 - 1e-9))
