"""Show a run on one page: the places and times of its answers, some answers in pictures, and the errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path

import numpy as np

from pairvpr.errors import PairVPRError
from pairvpr.html.album import breakable, figure, group, strip
from pairvpr.html.charts import Axis, Chart, nice_step
from pairvpr.html.document import FIGURE, check_page, document, warnings, write_page
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.sources import Source
from pairvpr.spread import spread
from pairvpr.viewing.latency import COLOURS
from pairvpr.viewing.plot import Mark, plots
from pairvpr.viewing.run_record import Answered, RunRecord
from pairvpr.viewing.template import ERRORS, FILTER, LATENCY, MISSING, RUN, SCORES, STYLE
from pairvpr.viewing.thumbnails import recorded_thumbnail

PLACES = 2000  # of the map, on the plots
PERCENTILES = (50, 95, 99)
DOTS = 1000  # on the chart of scores

log = logging.getLogger(__name__)


@contextmanager
def reporting(path: Path, query: str, source: Source, recognizer: PlaceRecognizer) -> Iterator[RunRecord]:
    """Yield a record to add answers to, and write its page to `path` on leaving, also after an error.

    Nothing is written if a run fails before its first answer. Raises PairVPRError if the page cannot be written, at
    once if that is already known. After a failure of the run itself, this error is only logged.
    """
    check_page(path)
    record = RunRecord()
    try:
        yield record
    except BaseException as error:
        if record.total:
            ending = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {error}"
            try:
                _write(path, render(record, query, source, recognizer, ending))
            except PairVPRError as fault:  # the run's own failure is reported instead
                log.warning("%s", fault)
        raise
    ending = "went on until it was stopped or the stream ended" if source.live else "came to its end"
    _write(path, render(record, query, source, recognizer, ending))


def _write(path: Path, page: str) -> None:
    write_page(path, page)
    log.info("page: %s", path)


def render(record: RunRecord, query: str, source: Source, recognizer: PlaceRecognizer, ending: str) -> str:
    """Return the page as HTML. Pictures of matches are read from the files that the map was built from."""
    info = recognizer.model.bundle.info
    candidates = f"the best {recognizer.top_k} candidates of {len(recognizer.map)} pictures"
    body = RUN.substitute(
        query=escape(query),
        db=escape(str(recognizer.map.path)),
        began=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.began)),
        duration=_duration(record.last - record.first),
        preset=escape(info.preset),
        identity=recognizer.map.identity[:12],
        origin=escape(info.weights.origin),
        engine=escape(recognizer.model.engines.description),
        candidates=candidates,
        ending=escape(ending),
        warning=warnings(info.weights.trained, recognizer.finish_run()),
        figures="\n".join(_figures(record, source)),
        plotted=_say_plotted(record),
        plots=plots(_marks(record, recognizer)),
        scores=_scores(record),
        latency=_latency(record),
        strips=_strips(record, recognizer),
        errors=_errors(record),
    )
    return document(f"Pair-VPR run: {query}", body, STYLE)


def _figures(record: RunRecord, source: Source) -> Iterator[str]:
    seconds = record.last - record.first
    rate = f"{(record.total - 1) / seconds:.2f} a second" if seconds > 0 else "a single answer"
    short = f"; {record.incomplete} compared fewer candidates than asked for" if record.incomplete else ""
    yield FIGURE.substitute(title="Answers", value=record.total - record.unread, note=rate + short)
    judged = record.verdicts["accepted"] + record.verdicts["rejected"]
    if judged:
        value = f"{record.verdicts['accepted']} / {record.verdicts['rejected']}"
        without = record.verdicts["unjudged"]
        yield FIGURE.substitute(title="Accepted / rejected", value=value, note=f"{without} not judged")
    else:
        note = "this map is not calibrated, so no answer is accepted or rejected"
        yield FIGURE.substitute(title="Accepted / rejected", value="&ndash;", note=note)
    if offs := [each.off for each in record.answers.items if each.off is not None]:
        right = [each.off for each in record.answers.items if each.off is not None and each.verdict == "accepted"]
        note = f"median of {len(offs)} answers whose query has a place; 95 % are within {np.percentile(offs, 95):,.1f}"
        note += f"; the accepted ones within {np.percentile(right, 95):,.1f}" if right else ""
        yield FIGURE.substitute(title="Metres off", value=f"{np.median(offs):,.1f}", note=note)
    if source.live:
        note = "arrived during an answer; the newest frame always comes next"
        yield FIGURE.substitute(title="Frames dropped", value=source.dropped, note=note)
    yield FIGURE.substitute(title="Not read", value=record.unread, note="pictures that could not be read")


def _marks(record: RunRecord, recognizer: PlaceRecognizer) -> list[Mark]:
    """Return the map's places, and above them the answers, with lines from the queries' places if known."""
    placed = [each for each in recognizer.map.records if each.pose is not None or each.gps is not None]
    marks = []
    for stored in spread(placed, PLACES):
        if (place := stored.pose or stored.gps) is not None:
            marks.append(Mark(place, "place", f"map: {stored.name}, {place}"))
    for each in record.answers.items:
        if each.at is not None:
            label = f"{each.query} -> {each.best}, {each.said}, at {each.at}"
            marks.append(Mark(each.at, each.verdict, label, origin=each.own))
    before: Pose | Gps | None = None
    for each in record.answers.items:
        if each.filtered is not None:
            place, name = each.filtered
            marks.append(
                Mark(place, "sequence", f"{each.query}: the sequence filter says {name}, {place}", origin=before)
            )
            before = place
    return marks


def _scores(record: RunRecord) -> str:
    """Return a chart of the best matches' scores over the run, in the colours of the decisions."""
    kept = [(each, each.score) for each in record.answers.items if each.score is not None]
    if not kept:
        return '<p class="faint">No best match was compared.</p>'
    values = [score for _, score in kept] + ([] if record.threshold is None else [record.threshold])
    low, high = min(values), max(values)
    border = 0.05 * (high - low) or 1.0
    drawn = Chart(
        "Scores of the best matches over the run",
        Axis.from_zero("number of the picture", float(max(record.total, 2)), 10),
        Axis("pair score", low - border, high + border, nice_step(high - low + 2 * border, 6)),
    )
    dots = [
        drawn.dot(each.verdict, each.number, score, f"{each.number}: {each.query} -> {each.best}, {each.said}")
        for each, score in spread(kept, DOTS)
    ]
    note = "Green is accepted, red rejected, blue not judged."
    if record.threshold is not None:
        dots.append(drawn.level("threshold", record.threshold))
        note += f" The dashed line is the threshold, {record.threshold:.3f}."
    if len(kept) > DOTS:
        note += f" {DOTS} of {len(kept)} answers are shown, evenly chosen."
    return SCORES.substitute(chart=drawn.svg(dots), note=note)


def _say_plotted(record: RunRecord) -> str:
    kept = record.answers.items
    shown = sum(each.at is not None for each in kept)
    if not shown:
        return "No matched picture has a pose or GPS position, so no answer can be plotted."
    own = sum(each.at is not None and each.own is not None and each.own.frame == each.at.frame for each in kept)
    chosen = f", of {record.answers.seen} evenly chosen" if len(kept) < record.answers.seen else ""
    lines = f" Lines lead from the places of {own} queries to their matches." if own else ""
    if any(each.filtered is not None for each in kept):
        lines += " The black line with rings is the way that the sequence filter gives."
    return (
        f"The places of {shown} best matches{chosen}: green if accepted, red if rejected, blue if not judged. "
        f"Grey marks are the map.{lines}"
    )


def _latency(record: RunRecord) -> str:
    latency, kept = record.latency, record.answers.items
    if not kept:
        return '<p class="faint">There was no answer.</p>'
    head = ["Milliseconds", *("median" if p == 50 else f"{p}th percentile" for p in PERCENTILES)]
    rows = ["".join(f"<th>{cell}</th>" for cell in head)]
    for colour, step in enumerate([*latency.steps, "total"]):
        spent = np.percentile([each.timings.get(step, 0.0) for each in kept], PERCENTILES)
        key = "" if step == "total" else f'<span class="key s{colour % COLOURS}"></span>'
        rows.append(f"<td>{key}{escape(step)}</td>" + "".join(f"<td>{value:.1f}</td>" for value in spent))
    of = "" if len(kept) == record.answers.seen else f" Percentiles are of {len(kept)} evenly chosen answers."
    each = max(some.count for some in latency.bins)
    many = "" if each == 1 else f", each point {each} answers"
    return LATENCY.substitute(
        chart=latency.chart() if len(latency.bins) > 1 else "",
        rows="".join(f"<tr>{row}</tr>" for row in rows),
        note=f"Areas are means by step, the dashed line is the longest answer{many}. The longest of all took "
        f"{latency.longest:.1f} ms.{of}",
    )


def _strips(record: RunRecord, recognizer: PlaceRecognizer) -> str:
    wanted = {each.best for each, _ in record.strips.items}
    matched = {
        each.name: recorded_thumbnail(recognizer.map, each) for each in recognizer.map.records if each.name in wanted
    }
    strips = [_strip(each, jpeg, matched[each.best]) for each, jpeg in record.strips.items]
    if not strips:
        return ""
    count = f"{len(strips)} of {record.strips.seen}"
    verdicts = {each.verdict for each, _ in record.strips.items}
    return (FILTER if len(verdicts) > 1 else "") + group(
        "Queries and their best matches", count, "Evenly chosen over the whole run.", strips
    )


def _strip(each: Answered, query: bytes, match: bytes | None) -> str:
    state = {"accepted": "right", "rejected": "wrong", "unjudged": "query"}[each.verdict]
    caption = f"{each.best}, {each.said}"
    if match is None:
        caption += "; the map stores no thumbnail of it, and there is no file to show"
        found = MISSING.substitute(state=state, heading="Best match", caption=breakable(caption))
    else:
        found = figure(match, state, "Best match", caption)
    return strip([figure(query, "query", "Query", each.query), found], "", each.verdict)


def _errors(record: RunRecord) -> str:
    if not record.errors:
        return ""
    shown = len(record.errors)
    return ERRORS.substitute(
        count=record.unread if shown == record.unread else f"{record.unread}, the last {shown}",
        lines="\n".join(f"<li>{escape(error)}</li>" for error in record.errors),
    )


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, whole = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole} s" if minutes else f"{seconds:.1f} s"
