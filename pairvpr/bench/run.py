"""Measure whole answers: build a map, query it, and time each step."""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr import __version__
from pairvpr.bench.boards import ASSUMPTIONS, SHARES, Projection, project
from pairvpr.bench.work import GraphWork, Work, count_work
from pairvpr.demo import TOWN
from pairvpr.machine import processor, system, usable_cores
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.map import MapInfo
from pairvpr.runtime.mapping.builder import add_pictures
from pairvpr.runtime.model import Model, load_model
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.spread import spread

FORMAT = 1
WARM_UP = 5
PERCENTILES = (50, 95, 99)
MATRIX = 2048

Progress = Callable[[str, int, int], None]
"""Called with the step, the number of things done in it, and their total."""


@dataclass(frozen=True)
class Step:
    """A step of an answer. milliseconds: at each of PERCENTILES. work: of one answer, None if it is not counted."""

    milliseconds: tuple[float, ...]
    work: Work | None = None

    @property
    def gflops(self) -> float | None:
        """Rate at the median time, in GFLOP/s; None without work."""
        return None if self.work is None else self.work.flop / self.milliseconds[0] / 1e6


@dataclass(frozen=True)
class Bench:
    """The figures of a bench.

    queries: measured answers. compared, kept: candidates of an answer, and candidates compared in full, on average.
    steps: by name. matrix_gflops: best rate of a large float32 product in numpy, on all cores.
    peak_memory: most resident bytes of the process, also while it built the map.
    """

    version: str
    system: str
    processor: str
    cores: int
    preset: str
    identity: str
    trained: bool
    engine: str
    queries: int
    compared: float
    kept: float
    batch: int
    map: MapInfo
    steps: Mapping[str, Step]
    matrix_gflops: float
    peak_memory: int
    projection: Sequence[Projection]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, for comparison between versions and machines."""
        steps = {
            name: {
                **{f"p{p}": round(ms, 3) for p, ms in zip(PERCENTILES, step.milliseconds, strict=True)},
                **({} if step.work is None else asdict(step.work)),
                **({} if step.gflops is None else {"gflops": round(step.gflops, 2)}),
            }
            for name, step in self.steps.items()
        }
        projection = {
            each.board: {f"{share:.0%}": seconds for share, seconds in zip(SHARES, each.seconds, strict=True)}
            for each in self.projection
        }
        return {
            "format": FORMAT,
            **{name: value for name, value in vars(self).items() if name not in ("steps", "projection", "map")},
            "map": {name: value for name, value in asdict(self.map).items() if name != "path"},
            "steps": steps,
            "projection_seconds": projection,
            "projection_assumptions": ASSUMPTIONS,
        }


def run_bench(
    bundle: Path | None,
    images: Path | None,
    *,
    device: str = "auto",
    precision: str | None = None,
    queries: int = 50,
    progress: Progress,
) -> Bench:
    """Build a map and measure the answers to queries.

    bundle, device, precision: see `load_model`. images: a folder; its pictures are the map and the queries. None
    takes the town that ships: its 120 queries as the map, its database as the queries.
    queries: answers to measure, after a few to warm up.
    Raises SourceError, MapError, BundleError, EngineError.
    """
    model = load_model(bundle, device, precision)
    with tempfile.TemporaryDirectory(prefix="pairvpr-bench-") as folder:
        pictures = images or TOWN / "queries"  # 120 of them, more than most models re-rank
        db = Path(folder) / "map"
        add_pictures(pictures, db, model, create=True, progress=lambda *at: progress("building the map", *at))
        with PlaceRecognizer.open(db, model=model.bundle.path, device=device, precision=precision) as vpr:
            if images is None:
                asked = sorted((TOWN / "database").iterdir())
            else:
                asked = [images / record.name for record in vpr.map.records]
            answers = _ask(vpr, asked, queries, progress)
            peak = peak_memory()
            kept = float(np.mean([sum(match.stage == "full" for match in each.matches) for each in answers]))
            work = answer_work(
                count_work(model.bundle, vpr.map.token_shape[0]),
                vpr.top_k,
                kept,
                vpr.model.batch_size,
                Cascade.find_in(model.bundle),
            )
            return _bench(vpr, answers, kept, work, peak)


def answer_work(
    graphs: Mapping[str, GraphWork], candidates: int, kept: float, batch: int, cascade: Cascade | None
) -> dict[str, Work]:
    """Return the work of an answer by step.

    candidates: of an answer. kept: those that were compared in full. batch: candidates in a pass.
    cascade: drops candidates before that. Between its looks go the shares that its calibration measured. A pass of a
    later graph that this may spare is not counted.
    A model without a pair classifier only encodes.
    """
    encoded = {"encode": graphs["encoder"].total(1, 1)}
    if "descriptor" in graphs:
        encoded["encode"] += graphs["descriptor"].total(1, 1)
    if "pair_prefix" not in graphs:
        return encoded
    counts = {"pair_prefix": float(candidates), "pair_suffix": float(candidates)}
    if cascade is not None:
        shares = [cascade.compared, *(look.kept for look in cascade.looks)]
        counts = {look.graph: share * candidates for look, share in zip(cascade.looks, shares, strict=False)}
        counts["pair_suffix"] = kept
    passes = math.ceil(candidates / batch)
    parts = [graphs[name].total(count, passes) for name, count in counts.items()]
    return {**encoded, "rerank": sum(parts[1:], parts[0])}


def summarise(timings: Sequence[Mapping[str, float]], work: Mapping[str, Work]) -> dict[str, Step]:
    """Return the percentiles of every step over the answers, with its work."""
    return {
        name: Step(
            tuple(float(np.percentile([each[name] for each in timings], p)) for p in PERCENTILES), work.get(name)
        )
        for name in timings[0]
    }


def matrix_gflops(repeats: int = 7) -> float:
    """Return the best rate of a float32 matrix product in numpy, in GFLOP/s, on the cores that numpy takes."""
    factor = np.random.default_rng(0).standard_normal((MATRIX, MATRIX), np.float32)
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        np.matmul(factor, factor)
        best = min(best, time.perf_counter() - start)
    return 2 * MATRIX**3 / best / 1e9


def peak_memory() -> int:
    """Return the most resident bytes that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _ask(vpr: PlaceRecognizer, pictures: Sequence[Path], queries: int, progress: Progress) -> list[Recognition]:
    """Return the answers to `queries` of the pictures, evenly spread; fewer pictures are asked repeatedly."""
    chosen = spread(pictures, queries)
    answers = []
    for number in range(WARM_UP + queries):
        answers.append(vpr.recognize(chosen[number % len(chosen)]))
        progress("answering", number + 1, WARM_UP + queries)
    return answers[WARM_UP:]


def _bench(
    vpr: PlaceRecognizer, answers: Sequence[Recognition], kept: float, work: Mapping[str, Work], peak: int
) -> Bench:
    model: Model = vpr.model
    return Bench(
        version=__version__,
        system=system(),
        processor=processor().model,
        cores=usable_cores(),
        preset=model.bundle.info.preset,
        identity=model.bundle.identity,
        trained=model.bundle.info.weights.trained,
        engine=model.engines.description,
        queries=len(answers),
        compared=float(np.mean([answer.compared for answer in answers])),
        kept=kept,
        batch=model.batch_size,
        map=vpr.map.info(),
        steps=summarise([answer.timings for answer in answers], work),
        matrix_gflops=matrix_gflops(),
        peak_memory=peak,
        projection=project(work),
    )
