"""Build the page of `pairvpr bench`: one HTML file that needs no other file."""

from __future__ import annotations

from html import escape

from pairvpr.bench.boards import ASSUMPTIONS, SHARES
from pairvpr.bench.run import PERCENTILES, Bench
from pairvpr.html.document import document, table
from pairvpr.runtime.mapping.token_storage import describe


def render(bench: Bench) -> str:
    """Return the figures and the projection to boards as HTML."""
    held = bench.map
    facts = [
        ("Part", "here"),
        ("processor", f"{bench.processor}, {bench.cores} cores, {bench.system}"),
        ("model", f"{bench.preset} {bench.identity[:12]}{'' if bench.trained else ' (seeded weights)'}"),
        ("engine", bench.engine),
        ("answers", f"{bench.queries}, {bench.compared:.0f} candidates each, {bench.kept:.0f} compared in full"),
        ("peak memory", f"{bench.peak_memory / 1e6:.0f} MB resident, building the map included"),
        ("map", f"{held.pictures} pictures, {held.bytes_per_picture / 1e3:.1f} kB each"),
        ("tokens", describe(held.tokens)),
    ]
    columns = ["median" if p == 50 else f"p{p}" for p in PERCENTILES]
    steps = [("Step", *columns, "GFLOP", "GFLOP/s")]
    for name, step in bench.steps.items():
        flop = "" if step.work is None else f"{step.work.flop / 1e9:.2f}"
        rate = "" if step.gflops is None else f"{step.gflops:.1f}"
        steps.append((name, *(f"{ms:.2f}" for ms in step.milliseconds), flop, rate))
    boards = [("Board", *(f"at {share:.0%}" for share in SHARES))]
    for each in bench.projection:
        mark = " *" if each.launching_dominates else ""
        boards.append((each.board + mark, *(f"{1000 * seconds:.1f}" for seconds in each.seconds)))
    note = escape(ASSUMPTIONS)
    if any(each.launching_dominates for each in bench.projection):
        note += " * Starting the kernels one by one takes longer. A CUDA graph avoids it."
    rate = f"A large float32 product in numpy reaches {bench.matrix_gflops:.0f} GFLOP/s here."
    body = "\n".join(
        (
            "<h1>Speed of an answer</h1>",
            f'<p class="faint">pairvpr {escape(bench.version)}</p>',
            table("What was measured", facts, "", wide=True, text=True),
            table("Milliseconds by step", steps, rate, wide=True),
            table("Projection: milliseconds of an answer", boards, note, wide=True),
        )
    )
    return document("Pair-VPR bench", body, STYLE)


STYLE = ".figure { margin: 14px 0; }"
