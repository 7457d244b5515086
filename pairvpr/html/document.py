"""Write self-contained HTML pages: their style, their tables, and the file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from pairvpr.errors import PairVPRError
from pairvpr.files import write_atomically

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --ink: #1b2026; --faint: #5f6b78; --line: #dde2e8;
  --right: #15803d; --wrong: #b91c1c; --accent: #2563eb; --warn: #92400e; --warn-page: #fef3c7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161b; --card: #1b2128; --ink: #e8ecf0; --faint: #98a4b1; --line: #2d3640;
    --right: #4ade80; --wrong: #f87171; --accent: #60a5fa; --warn: #fde68a; --warn-page: #3a2f10;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 16px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.2rem; margin: 40px 0 4px; }
p { margin: 6px 0; max-width: 78ch; }
h1, h2, p, li { overflow-wrap: anywhere; }
.faint { color: var(--faint); }
.warning {
  background: var(--warn-page); color: var(--warn); border-radius: 10px; padding: 12px 16px; margin: 18px 0;
}
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 14px; }
.figures { margin: 20px 0; }
.figure, .strip { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.figure { padding: 16px; min-width: 0; overflow-x: auto; }
.figure strong { display: block; font-size: 1.85rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.figure .arrow { color: var(--faint); font-weight: 400; }
table { border-collapse: collapse; width: 100%; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
td { padding: 2px 0; }
td:first-child { width: 6.5em; }
td:last-child { width: 5.5em; text-align: right; }
.bar { height: 9px; border-radius: 3px; background: var(--accent); min-width: 1px; }
.strips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 14px; }
.strip { padding: 10px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(100px, 1fr)); gap: 8px; }
figure { margin: 0; min-width: 0; font-size: 0.78rem; line-height: 1.35; }
figure img {
  width: 100%; aspect-ratio: 4 / 3; object-fit: contain; border-radius: 6px; display: block;
  background: var(--line);
  border: 3px solid var(--line);
}
figure.right img { border-color: var(--right); }
figure.wrong img { border-color: var(--wrong); }
figcaption { margin-top: 4px; overflow-wrap: anywhere; }
figcaption b { display: block; }
.right .mark { color: var(--right); font-weight: 600; }
.wrong .mark { color: var(--wrong); font-weight: 600; }
.ranks { font-size: 0.78rem; margin: 6px 0 0; }
.figures.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.wide { grid-column: 1 / -1; }
.figure h2 { font-size: 1rem; margin: 0 0 8px; }
table.numbers td, table.numbers th { width: auto; text-align: right; padding: 3px 0 3px 14px; font-weight: 400; }
table.numbers td:first-child, table.numbers th:first-child { text-align: left; padding-left: 0; width: auto; }
table.numbers tr + tr > * { border-top: 1px solid var(--line); }
table.numbers th, table.numbers td + td { white-space: nowrap; }
table.numbers.text td, table.numbers.text td + td { white-space: normal; overflow-wrap: anywhere; }
table.numbers.text td, table.numbers.text th { text-align: left; }
table.numbers.text td:first-child { overflow-wrap: normal; }
svg { display: block; width: 100%; max-width: 760px; height: auto; font: 12px system-ui, sans-serif; }
svg { overflow: visible; }
svg + table { margin-top: 14px; }
svg .grid { stroke: var(--line); }
svg text { fill: var(--faint); }
svg circle.right { fill: var(--right); }
svg circle.wrong { fill: var(--wrong); }
svg .mark { outline: none; }
svg .mark foreignObject { display: none; pointer-events: none; }
svg .mark:is(:hover, :focus) foreignObject { display: block; }
svg .mark:is(:hover, :focus) :is(circle, polygon) { stroke: var(--ink); stroke-width: 2; }
svg .mark p {
  display: table; margin: 0; padding: 2px 6px; border: 1px solid var(--line); border-radius: 6px;
  background: var(--card); color: var(--ink); overflow-wrap: anywhere;
}
svg .point { fill: transparent; }
.figure.wide svg { max-width: none; font-size: 9px; }
svg .bar.right { fill: var(--right); fill-opacity: 0.6; }
svg .bar.wrong { fill: var(--wrong); fill-opacity: 0.6; }
@media (max-width: 600px) {
  table.numbers { font-size: 0.78rem; }
  table.numbers th, table.numbers td + td { white-space: normal; padding-left: 6px; }
  .figure { padding: 12px; }
  svg, .figure.wide svg { font-size: 20px; }
  svg text.odd { display: none; }
  svg circle { r: 5px; }
}
"""
UNTRAINED = """<p class="warning"><strong>These weights were never trained.</strong> They are seeded random
numbers. The figures show that everything from picture to answer works, not how well places are recognised.</p>"""

WARNING = Template('<p class="warning"><strong>Warning:</strong> $text.</p>')

FIGURE = Template("""<div class="figure"><span class="faint">$title</span>
<strong>$value</strong>
<span class="faint">$note</span></div>""")

TABLE = Template("""<div class="$kind"><h2>$title</h2>
<table class="$cells">$rows</table>
<p class="faint">$note</p></div>""")

DOCUMENT = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")


def document(title: str, body: str, style: str = "") -> str:
    """Return a whole page, which a browser lets load nothing and run nothing.

    title: plain text. body: HTML. style: CSS for this page beside the common style.
    """
    return DOCUMENT.substitute(title=escape(title), style=STYLE + style, body=body)


def warnings(trained: bool, text: str | None = None) -> str:
    """Return the warnings of a page: that the weights were never trained, and a text that is not escaped yet."""
    warning = "" if text is None else WARNING.substitute(text=escape(text))
    return ("" if trained else UNTRAINED) + warning


def table(title: str, rows: Sequence[Sequence[str]], note: str, wide: bool = False, text: bool = False) -> str:
    """Return a titled table with a note below; see `table_rows`.

    title, note: HTML. wide: as wide as the page. text: the cells hold sentences, whose lines break.
    """
    kinds = {"kind": "figure wide" if wide else "figure", "cells": "numbers text" if text else "numbers"}
    return TABLE.substitute(kinds, title=title, rows=table_rows(rows), note=note)


def table_rows(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows of a table from plain text; the first row holds the headings."""
    tags = ["th"] + ["td"] * (len(rows) - 1)
    return "".join(
        "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for row, tag in zip(rows, tags, strict=True)
    )


def percent(share: float) -> str:
    """Return a share as percent with one decimal, as 12.5 %."""
    return f"{100 * share:.1f} %"


def check_page(path: Path, example: str = "page.html") -> None:
    """Check that a page can be written at `path`, before there is anything to write.

    example: a file name for the message if `path` is a folder. Raises PairVPRError.
    """
    if path.is_dir():
        raise PairVPRError(f"{path}: a folder; name the file to write, as {path / example}")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise PairVPRError(f"{path}: cannot be written ({error.strerror}); choose another file") from error


def write_page(path: Path, page: str) -> None:
    """Write `page` to the file `path`, whole or not at all. Raises PairVPRError."""
    check_page(path)
    try:
        with write_atomically(path) as partial:
            partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise PairVPRError(f"{path}: cannot be written ({error.strerror}); choose another file") from error
