"""Hold the texts of the report's page; `pairvpr.evaluation.page` fills in the $names."""

from __future__ import annotations

from string import Template

STYLE = """
svg .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .before { stroke: var(--faint); stroke-dasharray: 6 4; }
svg .after { stroke: var(--accent); }
"""

PAGE = Template("""<h1>$name</h1>
<p class="faint">$queries queries in $database database pictures, $ranking. Model $preset
$identity ($origin), $engine.</p>
<p class="faint">$protocol</p>
$folders
$warning
<div class="figures two">
$figures
</div>
$hubs
$groups""")

FOLDERS = Template('<p class="faint">Database: <code>$database</code>. Queries: <code>$queries</code>.</p>')

CHART = Template("""<div class="figure wide"><h2>$title</h2>
$chart
<p class="faint">$note</p></div>""")

CURVES = Template("""<div class="figure wide"><h2>Precision and recall of the first match</h2>
$chart
<table class="numbers">$rows</table>
<p class="faint">An answer is accepted if its confidence reaches a threshold; every threshold is a point. Recall
counts the $answerable queries that have a right answer in the database; $without queries have none.</p></div>""")
