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

RECALL_ALONE = Template("""<div class="figure"><span class="faint">Recall@1: the first match is right</span>
<strong>$recall</strong>
<span class="faint">by descriptor alone; guessing would give $chance</span></div>""")

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
