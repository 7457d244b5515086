"""Build the page of a demo: one HTML file that needs no other file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from pairvpr.demo.album import Album
from pairvpr.demo.outcome import DemoResult, Outcome
from pairvpr.demo.template import ARROW, METHODS, NOTE, PAGE, SLASH, STEP, TIME
from pairvpr.html.album import match_figure, query_figure, re_ranking_groups, strip
from pairvpr.html.document import FIGURE, document, percent, warnings
from pairvpr.runtime.answer import Match
from pairvpr.runtime.measure import Measure

PER_GROUP = 12  # queries shown of each kind
RECALL = "Recall@1: the first match is right"


def render(result: DemoResult, album: Album, outcomes: Sequence[Outcome]) -> str:
    """Return the page as HTML. Its pictures are read from the album's files. Raises SourceError."""
    body = PAGE.substitute(
        queries=result.queries,
        places=result.places,
        method=METHODS[result.measure].substitute(top_k=result.top_k),
        preset=escape(result.preset),
        engine=escape(result.engine),
        warning=warnings(result.trained),
        figures="\n".join(_figures(result, outcomes)),
        notes="\n".join(NOTE.substitute(note=escape(note)) for note in result.notes),
        groups=re_ranking_groups(
            [(each.right_before, each.right_after) for each in outcomes],
            lambda number: _strip(outcomes[number], album, result.measure),
            PER_GROUP,
            result.measure,
        ),
    )
    return document("Pair-VPR demo", body)


def _figures(result: DemoResult, outcomes: Sequence[Outcome]) -> Iterator[str]:
    title, before, after = RECALL, percent(result.recall_before), percent(result.recall_after)
    chance = f"guessing would give {percent(1 / result.places)}"
    if result.measure is Measure.SIMILARITY:
        yield FIGURE.substitute(title=title, value=before, note=f"by descriptor alone; {chance}")
    else:
        note = f"by descriptor alone &rarr; after re-ranking; {chance}"
        yield FIGURE.substitute(title=title, value=f"{before} {ARROW} {after}", note=note)
        changes = [outcome.right_after - outcome.right_before for outcome in outcomes]
        value = f"+{changes.count(1)} {SLASH} &minus;{changes.count(-1)}"
        note = f"queries put right / put wrong, of {len(outcomes)}"
        yield FIGURE.substitute(title="What re-ranking changed", value=value, note=note)
    yield _time(result)


def _time(result: DemoResult) -> str:
    steps = [(step, spent) for step, spent in result.timings.items() if step != "total"]
    longest = max((spent for _, spent in steps), default=0.0) or 1.0
    rows = [
        STEP.substitute(step=escape(step), share=f"{100 * spent / longest:.0f}", milliseconds=_milliseconds(spent))
        for step, spent in steps
    ]
    return TIME.substitute(total=_milliseconds(result.milliseconds), steps="\n".join(rows))


def _strip(outcome: Outcome, album: Album, measure: Measure) -> str:
    """Return a query, its first match by descriptor, and its first match after re-ranking if there is any."""
    ranked = outcome.by_descriptor
    first, best = ranked[0], outcome.answer.best
    figures = [
        query_figure(outcome.file, outcome.title),
        _match(first, "By descriptor", f"similarity {first.similarity:.3f}", outcome, album),
    ]
    if measure is Measure.SIMILARITY:
        return strip(figures, f"The right place was {_rank(ranked, outcome.truth)}.")
    score = "not compared" if best.score is None else f"score {best.score:.3f}"
    figures.append(_match(best, "Re-ranked", score, outcome, album))
    note = (
        f"The right place was {_rank(ranked, outcome.truth)} by descriptor, "
        f"{_rank(outcome.answer.matches, outcome.truth)} after re-ranking."
    )
    return strip(figures, note)


def _match(match: Match, heading: str, measured: str, outcome: Outcome, album: Album) -> str:
    caption = f"{album.places[match.name]}, {measured}"
    return match_figure(album.map_folder / match.name, match.name == outcome.truth, heading, caption)


def _rank(matches: Sequence[Match], name: str) -> str:
    for rank, match in enumerate(matches, 1):
        if match.name == name:
            return f"number {rank}"
    return "not among the candidates"


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
