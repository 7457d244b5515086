"""Hold the texts of the pages of maps and runs; the page modules fill in the $names."""

from __future__ import annotations

from string import Template

STYLE = """
.figure.wide { margin: 14px 0; }
.album { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 14px; margin: 14px 0; }
.album div:target img { border-color: var(--accent); }
svg circle.place { fill: var(--faint); opacity: 0.55; }
svg circle.shown { fill: var(--accent); }
svg text.number { fill: var(--card); font-size: 6px; pointer-events: none; }
svg circle.accepted { fill: var(--right); }
svg circle.rejected { fill: var(--wrong); }
svg circle.unjudged { fill: var(--accent); }
svg path { fill: none; stroke-width: 1; opacity: 0.5; }
svg path.accepted { stroke: var(--right); }
svg path.rejected { stroke: var(--wrong); }
svg path.unjudged { stroke: var(--accent); }
svg path.sequence, svg circle.sequence { stroke: var(--ink); }
svg circle.sequence { fill: none; }
svg .threshold { stroke: var(--ink); stroke-dasharray: 6 4; }
.filter { margin-top: 40px; }
main:has(#only-accepted:checked) .strip:not(.accepted), main:has(#only-rejected:checked) .strip:not(.rejected),
main:has(#only-unjudged:checked) .strip:not(.unjudged) { display: none; }
svg polygon { opacity: 0.85; }
svg polygon.point { opacity: 0; }
svg .longest { fill: none; stroke: var(--ink); stroke-width: 1; stroke-dasharray: 3 2; }
.key { display: inline-block; width: 0.75em; height: 0.75em; border-radius: 2px; margin-right: 0.4em; }
.s0 { fill: #94a3b8; background: #94a3b8; } .s1 { fill: #f59e0b; background: #f59e0b; }
.s2 { fill: #3b82f6; background: #3b82f6; } .s3 { fill: #a855f7; background: #a855f7; }
.s4 { fill: #14b8a6; background: #14b8a6; } .s5 { fill: #ef4444; background: #ef4444; }
.s6 { fill: #84cc16; background: #84cc16; } .s7 { fill: #ec4899; background: #ec4899; }
"""

PLOT = Template("""<div class="figure wide"><h2>Frame $frame</h2>
$chart
<p class="faint">$note.</p></div>""")

TABLE = Template("""<div class="figure"><h2>$title</h2>
<table class="numbers text">$rows</table></div>""")

MAP = Template("""<h1>$name</h1>
<p class="faint">A map of $pictures pictures, $with_place of them with a place.</p>
<div class="figures two">
$tables
</div>
<h2>Places of the pictures</h2>
<p class="faint">$plotted</p>
$plots
$gaps
$look_alikes
<h2>Pictures</h2>
<p class="faint">$shown</p>
<div class="album">
$album
</div>""")

SHOWN_PICTURE = Template('<div id="p$number">$figure</div>')

RUN = Template("""<h1>$query</h1>
<p class="faint">Queries to the map $db, from $began, for $duration. Model $preset $identity ($origin), $engine,
$candidates.
The run $ending.</p>
$warning
<div class="figures">
$figures
</div>
<h2>Places of the answers</h2>
<p class="faint">$plotted</p>
$plots
<h2>Scores and decisions</h2>
$scores
<h2>Time for an answer</h2>
$latency
$strips
$errors""")

SCORES = Template("""<div class="figure wide">
$chart
<p class="faint">$note</p></div>""")

FILTER = """<p class="filter">Show <label><input type="radio" name="only" id="only-all" checked> all</label>
<label><input type="radio" name="only" id="only-accepted"> accepted</label>
<label><input type="radio" name="only" id="only-rejected"> rejected</label>
<label><input type="radio" name="only" id="only-unjudged"> not judged</label></p>
"""

LATENCY = Template("""<div class="figure wide">
$chart
<table class="numbers">$rows</table>
<p class="faint">$note</p></div>""")

MISSING = Template("""<figure class="$state"><figcaption><b>$heading</b>$caption</figcaption></figure>""")

ERRORS = Template("""<h2>Pictures that could not be read <span class="faint">$count</span></h2>
<ul>
$lines
</ul>""")
