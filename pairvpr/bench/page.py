"""Format the figures of `pairvpr bench` as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from pairvpr.bench.boards import ASSUMPTIONS, SHARES
from pairvpr.bench.run import PERCENTILES, Bench, Step
from pairvpr.runtime.mapping.token_storage import describe

WIDTH = 110


def page(bench: Bench) -> str:
    """Return the figures and the projection as text, wrapped to WIDTH columns."""
    return "\n".join(
        line
        for paragraph in "\n".join(_lines(bench)).split("\n")
        for line in textwrap.wrap(paragraph, WIDTH, drop_whitespace=False, subsequent_indent="  ") or [""]
    )


def _lines(bench: Bench) -> Iterator[str]:
    held = bench.map
    yield f"pairvpr {bench.version} on {bench.processor}, {bench.cores} cores, {bench.system}"
    yield f"model {bench.preset} {bench.identity[:12]}{'' if bench.trained else ' (seeded weights)'}, {bench.engine}"
    yield (
        f"{bench.queries} answers, {bench.compared:.0f} candidates each, {bench.kept:.0f} of them compared in full, "
        f"in batches of {bench.batch}"
    )
    yield ""
    columns = [*("median" if p == 50 else f"p{p}" for p in PERCENTILES), "GFLOP", "MB", "GFLOP/s", "share"]
    yield "step, ms    " + "".join(f"{column:>10}" for column in columns)
    for name, step in bench.steps.items():
        times = "".join(f"{ms:10.2f}" for ms in step.milliseconds)
        yield f"{name:12}{times}{_work(step, bench.matrix_gflops)}"
    yield ""
    yield (
        f"share: of {bench.matrix_gflops:.0f} GFLOP/s, the rate of a large float32 product in numpy here. GFLOP: "
        "of matrix products and convolutions, counted in the bundle's graphs. MB: least data to move, in float16."
    )
    yield f"peak memory  {bench.peak_memory / 1e6:.0f} MB resident, building the map included"
    yield (
        f"map          {held.pictures} pictures, {held.bytes_per_picture / 1e3:.1f} kB each, with model "
        f"{(held.bytes + held.model_bytes) / 1e6:.1f} MB"
    )
    yield f"tokens       {describe(held.tokens)}"
    yield ""
    yield f"{'PROJECTION, ms an answer':32}" + "".join(f"   at {share:4.0%}" for share in SHARES)
    for each in bench.projection:
        mark = " *" if each.launching_dominates else ""
        yield f"{each.board:32}" + "".join(f"{1000 * seconds:10.1f}" for seconds in each.seconds) + mark
    if any(each.launching_dominates for each in bench.projection):
        launching = 1000 * bench.projection[0].launching
        yield f"* Starting the kernels one by one takes longer, about {launching:.1f} ms. A CUDA graph avoids it."
    yield ASSUMPTIONS


def _work(step: Step, matrix_gflops: float) -> str:
    if step.work is None or step.gflops is None:
        return ""
    share = step.gflops / matrix_gflops
    return f"{step.work.flop / 1e9:10.2f}{step.work.bytes / 1e6:10.1f}{step.gflops:10.1f}{share:10.0%}"
