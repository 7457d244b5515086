"""Hold the texts of the demo's page; `pairvpr.demo.page` fills in the $names."""

from __future__ import annotations

from string import Template

from pairvpr.runtime.measure import Measure

PAGE = Template("""<h1>Where was this picture taken?</h1>
<p class="faint">Pair-VPR demo: $queries queries in a map of $places pictures. Model $preset, $engine.</p>
$warning
<div class="figures">
$figures
</div>
$notes
<p class="faint">$method</p>
$groups""")

METHODS = {
    Measure.SCORE: Template("""Each query is first compared with the whole map by one descriptor for each picture. Then
a pair classifier compares the query with each of the best $top_k candidates and ranks them again."""),
    Measure.SIMILARITY: Template("Each query is compared with the whole map by one descriptor for each picture."),
}

ARROW, SLASH = '<span class="arrow">&rarr;</span>', '<span class="arrow">/</span>'

TIME = Template("""<div class="figure"><span class="faint">Time for a query, median</span>
<strong>$total ms</strong>
<table>$steps</table></div>""")

STEP = Template(
    '<tr><td>$step</td><td><div class="bar" style="width:$share%"></div></td><td>$milliseconds ms</td></tr>'
)

NOTE = Template('<p class="faint">$note</p>')
