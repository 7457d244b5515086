"""Build INT8 plans, and keep those that are faster on this device than float16 and agree with the reference.

Vision transformers are often no faster in INT8 than in float16. Only a measurement on the device itself can tell.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pairvpr.calibration.gate import LIMITS
from pairvpr.errors import EngineError
from pairvpr.export.tensorrt import DEFAULTS, Site, building, describe_plan, put
from pairvpr.export.tensorrt_check import Progress, check_engines
from pairvpr.runtime.bundle import Bundle, link_or_copy
from pairvpr.runtime.bundle_info import LOOK
from pairvpr.runtime.engines.base import Arrays
from pairvpr.runtime.engines.tensorrt import cuda
from pairvpr.runtime.engines.tensorrt.engine import open_plans
from pairvpr.runtime.engines.tensorrt.network import BuildSettings
from pairvpr.runtime.engines.tensorrt.plans import PlanInfo, info_file, plan_name
from pairvpr.runtime.model import SUMMARIES, available_memory, pair_batch
from pairvpr.runtime.reference import Reference

HALF, INT8 = "fp16", "int8-fp16"
WARM_UP, ROUNDS = 3, 21
FASTER = 0.97
"""Largest share of float16's time that INT8 may take to be kept. A smaller gain may be noise."""


@dataclass(frozen=True)
class KeptPrecision:
    """The precision that was kept of a graph, and the reason.

    kept: the precision.
    batch: batch size of the measurement.
    milliseconds: median GPU time in each precision, measured in turn.
    time_share: INT8's time divided by float16's, the median of the rounds.
    problem: message of the accuracy check, or None if it passed.
    """

    graph: str
    kept: str
    batch: int
    milliseconds: Mapping[str, float]
    time_share: float
    problem: str | None

    def __str__(self) -> str:
        half, small = self.milliseconds[HALF], self.milliseconds[INT8]
        times = f"INT8 {small:.2f} ms, FP16 {half:.2f} ms at batch {self.batch}"
        if self.kept == INT8:
            return f"{self.graph}: INT8 kept ({times}, {1 / self.time_share:.2f} times as fast)"
        reason = self.problem or f"INT8 takes {self.time_share:.2f} of the time"
        return f"{self.graph}: FP16 kept ({times}; {reason})"


def build_int8(
    bundle: Bundle, progress: Progress, batches: Sequence[int] | None = None, settings: BuildSettings = DEFAULTS
) -> tuple[Path, list[KeptPrecision]]:
    """Build float16 and INT8 plans of each graph, measure them in turn, and keep the better.

    Return their folder and the decisions. The float16 plans are kept as a set of their own. If no graph is better in
    INT8, no INT8 plans are kept.
    Raises EngineError, BundleError or KeyboardInterrupt. The bundle is then left as it was.
    """
    if bundle.info.descriptor is not None or not bundle.info.pair_classifier:
        raise EngineError(
            f"{bundle.path}: INT8 engines are built only of models whose own encoder makes the descriptors; give "
            "--precision fp16"
        )
    for precision in (INT8, HALF):
        if precision not in bundle.info.precisions:
            raise EngineError(
                f"{bundle.path}: no {precision} graphs in this bundle, and INT8 is measured against float16; export "
                f"them into it first (`pairvpr export --{precision.partition('-')[0]} --out {bundle.path}`)"
            )
    with building(bundle, batches) as site:
        half = site.build_right(HALF, settings, progress)
        cuda.stream().release()  # free the memory of deleted engines for the next builds
        small = site.build(INT8, settings, progress)
        decisions = [_decide(site, graph, half, small, progress) for graph in bundle.info.graphs]
        kept = any(decision.kept == INT8 for decision in decisions)
        if kept:
            mixed = _mix(decisions, half, small)
            check_engines(bundle, open_plans(mixed), INT8, site.batches, progress)
        for decision in decisions:
            _note(half[decision.graph], decision)
        put(half, site.final)
        if kept:
            put(mixed, site.final)
        else:  # plans of an earlier build would still be used
            for graph in bundle.info.graphs:
                for file in (site.final / plan_name(graph, INT8), info_file(site.final / plan_name(graph, INT8))):
                    file.unlink(missing_ok=True)
    return site.final, decisions


def _decide(
    site: Site, graph: str, half: Mapping[str, Path], small: Mapping[str, Path], progress: Progress
) -> KeptPrecision:
    """Check a graph in INT8, and measure it in both precisions."""
    batch = 1 if graph == "encoder" else min(pair_batch(site.bundle.info.dims, available_memory()), site.batches[-1])
    problem = _problem(site, graph, half, small, progress)
    inputs = _inputs(site.bundle, graph, batch)
    rounds = _in_turn({HALF: half[graph], INT8: small[graph]}, inputs, progress, graph)
    share = statistics.median(b / a for a, b in zip(rounds[HALF], rounds[INT8], strict=True))
    cuda.stream().release()
    medians = {precision: round(statistics.median(times), 4) for precision, times in rounds.items()}
    kept = INT8 if problem is None and share <= FASTER else HALF
    return KeptPrecision(graph, kept, batch, medians, round(share, 4), problem)


def _problem(
    site: Site, graph: str, half: Mapping[str, Path], small: Mapping[str, Path], progress: Progress
) -> str | None:
    """Return the message of the accuracy check for a graph's INT8 plan among float16 ones, or None if it passes."""
    try:
        errors = check_engines(site.bundle, open_plans({**half, graph: small[graph]}), INT8, site.batches, progress)
    except EngineError as error:
        return str(error)
    return f"descriptors differ by cosine distance {errors.cosine:.2g}" if errors.cosine > 1 - LIMITS.cosine else None


def _in_turn(plans: Mapping[str, Path], inputs: Arrays, progress: Progress, graph: str) -> dict[str, list[float]]:
    """Return GPU milliseconds of each plan, round by round, with inputs and outputs in GPU memory."""
    stream = cuda.stream()
    engines = open_plans(plans, OUTPUTS[graph])
    staged = {precision: engine.stage(inputs) for precision, engine in engines.items()}
    times: dict[str, list[float]] = {precision: [] for precision in plans}
    for number in range(WARM_UP + ROUNDS):
        progress(f"measuring {graph} in FP16 and INT8", number, WARM_UP + ROUNDS)
        order = list(plans) if number % 2 else list(plans)[::-1]
        for precision in order:
            engine, arrays = engines[precision], staged[precision]
            taken = stream.milliseconds(lambda engine=engine, arrays=arrays: engine.run(arrays))  # type: ignore[misc]
            if number >= WARM_UP:
                times[precision].append(taken)
    progress(f"measuring {graph} in FP16 and INT8", WARM_UP + ROUNDS, WARM_UP + ROUNDS)
    return times


OUTPUTS = {
    "encoder": ("descriptors", "tokens"),
    LOOK: (LOOK,),
    "pair_prefix": ("query_state", "database_state", *SUMMARIES),
    "pair_suffix": ("scores",),
}


def _inputs(bundle: Bundle, graph: str, batch: int) -> dict[str, np.ndarray]:
    """Return the inputs that a graph is measured with: the reference's pictures and tokens, repeated.

    All candidates are kept.
    """
    truth = Reference.from_bundle(bundle)
    rows = np.resize(np.arange(len(truth.images)), batch)
    if graph == "encoder":
        return {"images": truth.images[rows]}
    tokens = truth.features.tokens[rows]
    pair = {"query_tokens": truth.features.tokens[:1], "database_tokens": tokens}
    if graph in (LOOK, "pair_prefix"):
        return pair
    # A state holds the tokens and a class token. Its values do not affect the time.
    state = np.concatenate([tokens[:, :1], tokens], axis=1)
    return {**pair, "query_state": state, "database_state": state, "keep": np.arange(batch)}


def _mix(decisions: Sequence[KeptPrecision], half: Mapping[str, Path], small: Mapping[str, Path]) -> dict[str, Path]:
    """Return the kept plans under the names of INT8. A float16 plan among them says so in its description."""
    for decision in decisions:
        plan = small[decision.graph]
        if decision.kept == HALF:
            plan.unlink()
            link_or_copy(half[decision.graph], plan)
            describe_plan(plan, PlanInfo.load(info_file(half[decision.graph])))
        _note(plan, decision)
    return dict(small)


def _note(plan: Path, decision: KeptPrecision) -> None:
    """Add a decision to a plan's description."""
    info = PlanInfo.load(info_file(plan))
    describe_plan(plan, dataclasses.replace(info, decision=asdict(decision)))
