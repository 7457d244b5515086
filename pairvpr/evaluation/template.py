"""The report's page, as `string.Template` texts: $names are filled in by `pairvpr.evaluation.page`."""

from __future__ import annotations

from string import Template

from pairvpr.html.document import NUMBERS_STYLE
from pairvpr.html.document import STYLE as COMMON_STYLE

STYLE = (
    COMMON_STYLE
    + NUMBERS_STYLE
    + """
.pictures.four { grid-template-columns: repeat(4, minmax(0, 1fr)); }
@media (max-width: 600px) { .pictures.four { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
.figures.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.wide { grid-column: 1 / -1; }
svg .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .before { stroke: var(--faint); stroke-dasharray: 6 4; }
svg .after { stroke: var(--accent); }
"""
)

PAGE = Template("""<h1>$name</h1>
<p class="faint">$queries queries in $database database pictures, the best $top_k re-ranked. Model $preset
$identity ($origin), $engine.</p>
<p class="faint">$protocol</p>
$warning
<div class="figures two">
$figures
</div>
$groups""")

TABLE = Template("""<div class="figure"><h2>$title</h2>
<table class="numbers">$rows</table>
<p class="faint">$note</p></div>""")

CURVES = Template("""<div class="figure wide"><h2>Precision and recall of the first match</h2>
$chart
<table class="numbers">$rows</table>
<p class="faint">An answer is accepted from a threshold on its confidence on; every threshold is a point. Recall
counts the $answerable queries that have a right answer in the database; $without queries have none.</p></div>""")

CHART = Template("""<svg viewBox="0 0 640 300" role="img" aria-label="Precision over recall">
$grid
$curves
<text x="338" y="296" text-anchor="middle">recall</text>
<text x="14" y="132" text-anchor="middle" transform="rotate(-90 14 132)">precision</text>
</svg>""")

STRIP = Template("""<div class="strip"><div class="pictures$four">
$pictures
</div>
<p class="ranks faint">$ranks</p></div>""")
