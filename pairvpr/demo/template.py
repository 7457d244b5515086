"""The demo's page, as `string.Template` texts: $names are filled in by `pairvpr.demo.page`."""

from __future__ import annotations

from string import Template

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
.faint { color: var(--faint); }
.warning {
  background: var(--warn-page); color: var(--warn); border-radius: 10px; padding: 12px 16px; margin: 18px 0;
}
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 14px; }
.figures { margin: 20px 0; }
.figure, .strip { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.figure { padding: 16px; }
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

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>Pair-VPR demo</title>
<style>$style</style>
</head>
<body>
<main>
<h1>Where was this picture taken?</h1>
<p class="faint">Pair-VPR demo: $queries queries in a map of $places pictures. Model $preset, $engine.</p>
$warning
<div class="figures">
$figures
</div>
$notes
<p class="faint">Each query is first compared with the whole map by one descriptor per picture; then a pair
classifier looks at the query and each of the best $top_k candidates together and ranks them again.</p>
$groups
</main>
</body>
</html>
""")

UNTRAINED = """<p class="warning"><strong>These weights were never trained.</strong> They are seeded random
numbers, so the figures are those of chance features and say nothing about how well places are recognised;
they only show that everything from picture to answer works.</p>"""

RECALL = Template("""<div class="figure"><span class="faint">Recall@1: the first match is right</span>
<strong>$before <span class="arrow">&rarr;</span> $after</strong>
<span class="faint">by descriptor alone &rarr; after re-ranking; guessing would give $chance</span></div>""")

CHANGES = Template("""<div class="figure"><span class="faint">What re-ranking changed</span>
<strong>+$wins <span class="arrow">/</span> &minus;$losses</strong>
<span class="faint">queries put right / put wrong, of $queries</span></div>""")

TIME = Template("""<div class="figure"><span class="faint">Time for a query, median</span>
<strong>$total ms</strong>
<table>$steps</table></div>""")

STEP = Template(
    '<tr><td>$step</td><td><div class="bar" style="width:$share%"></div></td><td>$milliseconds ms</td></tr>'
)

NOTE = Template('<p class="faint">$note</p>')

GROUP = Template("""<section>
<h2>$title <span class="faint">$count</span></h2>
<p class="faint">$explanation</p>
<div class="strips">
$strips
</div>
</section>""")

STRIP = Template("""<div class="strip"><div class="pictures">
$pictures
</div>
<p class="ranks faint">$ranks</p></div>""")

PICTURE = Template("""<figure class="$state"><img src="data:image/jpeg;base64,$data" alt="$alt">
<figcaption><b>$heading</b>$caption</figcaption></figure>""")
