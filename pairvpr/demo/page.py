"""The demo's page: one HTML file with all it shows inside."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from pairvpr.demo.album import Album
from pairvpr.demo.outcome import DemoResult, Outcome
from pairvpr.demo.template import CHANGES, NOTE, PAGE, RECALL, STEP, STRIP, TIME
from pairvpr.html.document import GROUP, STYLE, UNTRAINED, document, figure, thumbnail
from pairvpr.runtime.answer import Match
from pairvpr.runtime.image import load_picture

PER_GROUP = 12  # queries shown of each kind
THUMBNAIL = (280, 210)  # pixels, at most

# Title, what it means, and whether the first match is right before and after re-ranking.
GROUPS = (
    ("Put right by re-ranking", "The descriptor's first match is wrong, the re-ranked right.", False, True),
    ("Put wrong by re-ranking", "The descriptor's first match is right, the re-ranked wrong.", True, False),
    ("Wrong throughout", "Neither the descriptor nor re-ranking put the right place first.", False, False),
    ("Right throughout", "The descriptor's first match is right and stays first.", True, True),
)


def render(result: DemoResult, album: Album, outcomes: Sequence[Outcome]) -> str:
    """The page as HTML text; its pictures are read from the album's files."""
    body = PAGE.substitute(
        queries=result.queries,
        places=result.places,
        top_k=result.top_k,
        preset=escape(result.preset),
        engine=escape(result.engine),
        warning="" if result.trained else UNTRAINED,
        figures="\n".join((_recall(result), _changes(outcomes), _time(result))),
        notes="\n".join(NOTE.substitute(note=escape(note)) for note in result.notes),
        groups="\n".join(_group(*group, album, outcomes) for group in GROUPS),
    )
    return document("Pair-VPR demo", STYLE, body)


def _recall(result: DemoResult) -> str:
    return RECALL.substitute(
        before=_percent(result.recall_before),
        after=_percent(result.recall_after),
        chance=_percent(1 / result.places),
    )


def _changes(outcomes: Sequence[Outcome]) -> str:
    changes = [outcome.right_after - outcome.right_before for outcome in outcomes]
    return CHANGES.substitute(wins=changes.count(1), losses=changes.count(-1), queries=len(outcomes))


def _time(result: DemoResult) -> str:
    steps = [(step, spent) for step, spent in result.timings.items() if step != "total"]
    longest = max((spent for _, spent in steps), default=0.0) or 1.0
    rows = [
        STEP.substitute(step=escape(step), share=f"{100 * spent / longest:.0f}", milliseconds=_milliseconds(spent))
        for step, spent in steps
    ]
    return TIME.substitute(total=_milliseconds(result.milliseconds), steps="\n".join(rows))


def _group(title: str, explanation: str, before: bool, after: bool, album: Album, outcomes: Sequence[Outcome]) -> str:
    """A heading and a strip for each query that went this way; nothing if none did."""
    found = [each for each in outcomes if (each.right_before, each.right_after) == (before, after)]
    if not found:
        return ""
    shown = found[:PER_GROUP]
    count = f"{len(found)}" if len(shown) == len(found) else f"{len(found)}, the first {len(shown)} shown"
    strips = "\n".join(_strip(outcome, album) for outcome in shown)
    return GROUP.substitute(title=title, explanation=explanation, count=count, strips=strips)


def _strip(outcome: Outcome, album: Album) -> str:
    ranked = outcome.by_descriptor
    first, best = ranked[0], outcome.answer.best
    score = "not compared" if best.score is None else f"score {best.score:.3f}"
    pictures = (
        _picture(outcome.file, "query", "Query", f"shows {album.places[outcome.truth]}"),
        _match(first, "By descriptor", f"similarity {first.similarity:.3f}", outcome, album),
        _match(best, "Re-ranked", score, outcome, album),
    )
    ranks = (
        f"The right place was {_rank(ranked, outcome.truth)} by descriptor, "
        f"{_rank(outcome.answer.matches, outcome.truth)} after re-ranking."
    )
    return STRIP.substitute(pictures="\n".join(pictures), ranks=ranks)


def _match(match: Match, heading: str, figure: str, outcome: Outcome, album: Album) -> str:
    right = match.name == outcome.truth
    mark = '<span class="mark">&#10003; right</span>' if right else '<span class="mark">&#10007; wrong</span>'
    return _picture(
        album.map_folder / match.name,
        "right" if right else "wrong",
        heading,
        f"{album.places[match.name]}, {figure} ",
        mark,
    )


def _picture(file: Path, state: str, heading: str, caption: str, mark: str = "") -> str:
    """A thumbnail with its caption, which may hold anything; `mark` is HTML."""
    return figure(thumbnail(load_picture(file), THUMBNAIL), state, heading, caption, mark)


def _rank(matches: Sequence[Match], name: str) -> str:
    for rank, match in enumerate(matches, 1):
        if match.name == name:
            return f"number {rank}"
    return "not among the candidates"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
