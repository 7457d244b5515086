"""What all pages share: style, the pieces they are built from as `string.Template` texts, pictures, and the file."""

from __future__ import annotations

import base64
import io
import tempfile
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

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
.pictures { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 8px; }
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
"""

NUMBERS_STYLE = """
.figure h2 { font-size: 1rem; margin: 0 0 8px; }
table.numbers td, table.numbers th { width: auto; text-align: right; padding: 3px 0 3px 14px; font-weight: 400; }
table.numbers td:first-child, table.numbers th:first-child { text-align: left; padding-left: 0; width: auto; }
table.numbers tr + tr > * { border-top: 1px solid var(--line); }
table.numbers th, table.numbers td + td { white-space: nowrap; }
svg { display: block; width: 100%; min-width: 520px; max-width: 760px; height: auto; font: 12px system-ui, sans-serif; }
svg + table { margin-top: 14px; }
svg .grid { stroke: var(--line); }
svg text { fill: var(--faint); }
@media (max-width: 600px) { table.numbers th { white-space: normal; } }
"""
"""Of pages with tables of numbers and charts."""

UNTRAINED = """<p class="warning"><strong>These weights were never trained.</strong> They are seeded random
numbers, so the figures are those of chance features and say nothing about how well places are recognised;
they only show that everything from picture to answer works.</p>"""

GROUP = Template("""<section>
<h2>$title <span class="faint">$count</span></h2>
<p class="faint">$explanation</p>
<div class="strips">
$strips
</div>
</section>""")

PICTURE = Template("""<figure class="$state"><img src="data:image/jpeg;base64,$data" alt="$alt">
<figcaption><b>$heading</b>$caption</figcaption></figure>""")


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


def document(title: str, style: str, body: str) -> str:
    """A whole page: `title` is text, `body` HTML. Browsers let it load nothing and run nothing."""
    return DOCUMENT.substitute(title=escape(title), style=style, body=body)


def thumbnail(picture: Image.Image, size: tuple[int, int]) -> bytes:
    """An RGB picture as a JPEG of at most `size` (width, height) pixels; the picture stays as it is."""
    small = picture.copy()
    small.thumbnail(size, Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def figure(jpeg: bytes, state: str, heading: str, caption: str, mark: str = "") -> str:
    """A picture with its caption, which may hold anything; `heading` and `mark` are HTML."""
    data, text = base64.b64encode(jpeg).decode("ascii"), escape(caption)
    return PICTURE.substitute(state=state, data=data, alt=text, heading=heading, caption=text + mark)


def check_page(path: Path, example: str = "page.html") -> None:
    """Raise PairVPRError unless a file like the example can be written at `path`; before there is anything to write."""
    if path.is_dir():
        raise PairVPRError(f"{path}: a folder; name the file to write, as {path / example}")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise PairVPRError(f"{path}: cannot be written ({error.strerror}); choose another file") from error


def write_page(path: Path, page: str) -> None:
    """Write `page` to the file `path`, whole or not at all; raises PairVPRError where it cannot be written."""
    check_page(path)
    try:
        with write_atomically(path) as partial:
            partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise PairVPRError(f"{path}: cannot be written ({error.strerror}); choose another file") from error
