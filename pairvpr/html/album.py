"""Show queries beside their matches: strips of pictures, in groups by the effect of re-ranking."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from pairvpr.runtime.image import load_picture, make_thumbnail
from pairvpr.runtime.measure import Measure
from pairvpr.spread import spread

THUMBNAIL = (240, 180)
"""Largest width and height of a picture on a page, in pixels."""

# Title, explanation, and whether the first match is right before and after re-ranking.
GROUPS = (
    ("Put right by re-ranking", "The descriptor's first match is wrong, the re-ranked one is right.", False, True),
    ("Put wrong by re-ranking", "The descriptor's first match is right, the re-ranked one is wrong.", True, False),
    ("Wrong throughout", "Neither the descriptor nor re-ranking puts a right picture first.", False, False),
    ("Right throughout", "The descriptor's first match and the re-ranked one are right.", True, True),
)
# The same for a model without a pair classifier.
GROUPS_BY_DESCRIPTOR = (
    ("Wrong", "The first match is wrong.", False, False),
    ("Right", "The first match is right.", True, True),
)

GROUP = Template("""<section>
<h2>$title <span class="faint">$count</span></h2>
<p class="faint">$explanation</p>
<div class="strips">
$strips
</div>
</section>""")

STRIP = Template("""<div class="$kind"><div class="pictures">
$pictures
</div>
<p class="ranks faint">$note</p></div>""")

PICTURE = Template("""<figure class="$state"><img src="data:image/jpeg;base64,$data" alt="$alt">
<figcaption><b>$heading</b>$caption</figcaption></figure>""")

RIGHT = '<span class="mark">&#10003; right</span>'
WRONG = '<span class="mark">&#10007; wrong</span>'


def thumbnail(picture: Image.Image, size: tuple[int, int] = THUMBNAIL) -> bytes:
    """Return an RGB picture as a JPEG of at most `size` (width, height) pixels; `picture` itself is not changed."""
    return make_thumbnail(picture, size)


def figure(jpeg: bytes, state: str, heading: str, caption: str, mark: str = "") -> str:
    """Return a picture with its caption. state: its CSS class. caption: plain text. heading, mark: HTML."""
    data = base64.b64encode(jpeg).decode("ascii")
    return PICTURE.substitute(
        state=state, data=data, alt=escape(caption), heading=heading, caption=breakable(caption) + mark
    )


def breakable(text: str) -> str:
    """Return plain text as HTML whose lines may break between the parts of a file name, not within a part."""
    return re.sub(r"([/_@#]+)(?=\w)", r"\1<wbr>", escape(text))


def query_figure(file: Path, caption: str, heading: str = "Query") -> str:
    """Return a picture that is not judged, as a query or a right answer. Raises SourceError."""
    return figure(thumbnail(load_picture(file)), "query", heading, caption)


def match_figure(file: Path, right: bool, heading: str, caption: str) -> str:
    """Return a match with a mark that says whether it is right. Raises SourceError."""
    state, mark = ("right", RIGHT) if right else ("wrong", WRONG)
    return figure(thumbnail(load_picture(file)), state, heading, f"{caption} ", mark)


def strip(figures: Sequence[str], note: str, kind: str = "") -> str:
    """Return figures side by side with a note below, which is plain text. kind: a CSS class."""
    return STRIP.substitute(kind=f"strip {kind}".strip(), pictures="\n".join(figures), note=escape(note))


def group(title: str, count: str, explanation: str, strips: Sequence[str]) -> str:
    """Return a headed section of strips."""
    return GROUP.substitute(title=title, count=count, explanation=explanation, strips="\n".join(strips))


def re_ranking_groups(
    firsts: Sequence[tuple[bool, bool]], make_strip: Callable[[int], str], limit: int, measure: Measure
) -> str:
    """Return a section for each effect of re-ranking that occurs, with strips of evenly chosen queries.

    firsts: for each query, whether the first match is right before and after re-ranking.
    make_strip: returns the strip of a query by its index. limit: strips in a section, at most.
    measure: the number that ranks the matches.
    """
    sections = []
    for title, explanation, *effect in GROUPS if measure is Measure.SCORE else GROUPS_BY_DESCRIPTOR:
        found = [i for i, first in enumerate(firsts) if list(first) == effect]
        shown = spread(found, limit)
        count = f"{len(found)}" if len(shown) == len(found) else f"{len(found)}, {len(shown)} shown"
        if found:
            sections.append(group(title, count, explanation, [make_strip(i) for i in shown]))
    return "\n".join(sections)
