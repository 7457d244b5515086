"""Run the training loop of both stages: steps, checks, validation, checkpoints and an orderly end."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pairvpr.data.samples import PairBatch, PlaceBatch
from pairvpr.errors import TrainingError
from pairvpr.model import Checkpoint, PairVPR, WeightsInfo
from pairvpr.training.config import OptimizerConfig, RunConfig
from pairvpr.training.distributed import World
from pairvpr.training.failures import deaths_told, memory_named, source_errors
from pairvpr.training.log import Progress, RunLog, ThroughputMeter
from pairvpr.training.schedules import Rates, apply_rates
from pairvpr.training.state import RunFolder

log = logging.getLogger("pairvpr")

Batch = PairBatch | PlaceBatch
Stream = Generator[Batch, None, None]
"""Batches, read by workers that end when the generator is closed."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class StepOutcome(NamedTuple):
    """Result of a batch.

    loss: to differentiate.
    measures: scalars to log. Their mean over the processes is logged.
    """

    loss: Tensor
    measures: dict[str, Tensor]


class Batches(Protocol):
    """Source of batches."""

    def training(self, first: int) -> Stream:
        """Yield this process's share of the batches from step `first` to the end of the run."""
        ...

    def validation(self) -> Stream:
        """Yield the validation batches, the same each time. Without validation data there are none."""
        ...


@dataclass(frozen=True)
class Plan:
    """Everything in which the stages differ.

    weights: origin and licence of the weights.
    objective: module that holds the network and turns a batch into an outcome.
    groups: parameters for the optimizer.
    rates: returns the rates of a step.
    pictures_per_step: of all processes.
    best: name of the measure that decides the best checkpoint, and true if more of it is better.
    memory: settings to lower when memory runs out, for messages.
    show: writes pictures of the network's results.
    """

    network: PairVPR
    weights: WeightsInfo
    objective: nn.Module
    batches: Batches
    groups: list[dict[str, Any]]
    rates: Callable[[int], Rates]
    steps: int
    pictures_per_step: int
    train: OptimizerConfig
    seed: int
    best: tuple[str, bool]
    memory: str
    show: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class RunResult:
    """End of a run.

    step: steps done.
    finished: true if these are all steps, false if the run was asked to stop.
    checkpoint: folder of the newest checkpoint.
    """

    step: int
    finished: bool
    checkpoint: Path


class Loop:
    """One run, or the rest of an interrupted one."""

    def __init__(
        self, plan: Plan, run: RunConfig, folder: RunFolder, world: World, progress: Callable[[Progress], None] | None
    ) -> None:
        """Prepare the run. `folder` holds the checkpoint that the plan's network was loaded from, if there is one."""
        self.plan, self.config, self.folder, self.world, self.progress = plan, run, folder, world, progress
        self.state = folder.state()
        self._require_one_folder()
        self.optimizer = torch.optim.AdamW(plan.groups, lr=0.0, fused=world.device.type == "cuda")
        if self.state.optimizer:
            self.optimizer.load_state_dict(dict(self.state.optimizer))
        self.module = world.wrap(plan.objective)
        self.broken: list[str] = []  # pictures that could not be read since the last report
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _require_one_folder(self) -> None:
        """Raise TrainingError if processes would start at different steps. They would wait for each other forever."""
        steps = sorted({int(step) for step in self.world.collect([str(self.state.step)])})
        if len(steps) > 1:
            raise TrainingError(
                f"{self.folder.path}: one process finds step {steps[0]} in it, another step {steps[-1]}; "
                "set out to a folder that all machines share"
            )

    def run(self) -> RunResult:
        """Run to the end, or until SIGTERM or SIGINT asks to stop. Both end with a checkpoint."""
        plan, state, config = self.plan, self.state, self.config
        if state.step >= plan.steps:
            return self._result()
        # Networks loaded from a checkpoint are in evaluation mode.
        plan.objective.train()
        with (
            deaths_told(),
            stop_signals() as stop,
            RunLog(self.folder.path, state.step, config.tensorboard, self.world.first) as lines,
            deterministic(config.deterministic),
            fast_attention(self.world.device),
            contextlib.closing(source_errors(plan.batches.training(state.step))) as batches,
        ):
            lines.write("start", state.step, steps=plan.steps, processes=self.world.size)
            watch = ThroughputMeter(state.step, plan.steps, plan.pictures_per_step)
            for batch in watch.waiting_for(batches):
                measures = self._step(batch)
                stopping = self.world.any(stop.asked)
                self._tell(measures, watch, lines)
                better = self._validate(lines) if state.step % plan.train.validate_every == 0 else False
                if better or stopping or state.step % config.save_every == 0 or state.step == plan.steps:
                    self._tell_broken(lines)
                    self._save(better)
                if self.world.first and plan.show and config.pictures_every and state.step % config.pictures_every == 0:
                    plan.show(self.folder.path / "pictures" / f"step-{state.step:08}.png")
                if stopping:
                    break
            result = self._result()
            lines.write("finished" if result.finished else "stopped", state.step)
            return result

    def _step(self, batch: Batch) -> dict[str, float]:
        """Learn from one batch. Raise TrainingError before learning from numbers that are not finite."""
        plan, state = self.plan, self.state
        rates = plan.rates(state.step)
        apply_rates(self.optimizer.param_groups, rates)
        seed_step(plan.seed, state.step, self.world.rank)
        with memory_named(plan.memory):
            self.optimizer.zero_grad(set_to_none=True)
            outcome = self._evaluate(self.module, batch)
            torch.autograd.backward(outcome.loss)
            norm = nn.utils.clip_grad_norm_(self.parameters, plan.train.clip or math.inf)
        measures = self.world.mean({**outcome.measures, "gradient_norm": norm})
        bad = [f"{name} {value}" for name, value in measures.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"step {state.step + 1}: {', '.join(bad)}; the run stopped without saving this step: "
                "lower train.lr, set train.clip (3.0), or check the data"
            )
        with memory_named(plan.memory):  # the first step allocates the moments
            self.optimizer.step()
        state.step += 1
        self.broken += batch.broken
        return {**measures, "lr": rates.lr, "weight_decay": rates.weight_decay}

    def _evaluate(self, module: nn.Module, batch: Batch) -> StepOutcome:
        device = self.world.device
        dtype = DTYPES[self.plan.train.precision]
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            outcome: StepOutcome = module(batch.to(device))
        return outcome

    def _validate(self, lines: RunLog) -> bool:
        """Measure on the validation batches. Return true if this was the best result so far."""
        plan, sums, batches = self.plan, dict[str, float](), 0
        plan.objective.eval()
        with contextlib.closing(source_errors(plan.batches.validation())) as stream:
            for batch in stream:
                with torch.no_grad(), memory_named(plan.memory):
                    measures = self.world.mean(self._evaluate(plan.objective, batch).measures)
                sums = {name: sums.get(name, 0.0) + value for name, value in measures.items()}
                self.broken += batch.broken
                batches += 1
        plan.objective.train()
        if not batches:
            return False
        means = {name: value / batches for name, value in sums.items()}
        lines.write("validation", self.state.step, **means)
        name, more_is_better = plan.best
        best, value = self.state.best, means[name]
        better = math.isfinite(value) and (best is None or (value > best if more_is_better else value < best))
        if better:
            self.state.best = value
        return better

    def _save(self, better: bool) -> None:
        if self.world.first:
            self.state.optimizer = self.optimizer.state_dict()
            checkpoint = Checkpoint(self.plan.network, self.plan.weights)
            self.folder.save(checkpoint, self.state, best=better, keep_every=self.config.keep_every)

    def _tell(self, measures: dict[str, float], watch: ThroughputMeter, lines: RunLog) -> None:
        state = self.state
        if state.step % self.config.log_every == 0 or state.step == self.plan.steps:
            self._tell_broken(lines)
            told = watch.read(state.step, measures["loss"])
            speed = {"pictures_per_second": told.pictures_per_second, "waiting": told.waiting}
            lines.write("step", state.step, **measures, **speed)
            if self.world.first and self.progress:
                self.progress(told)

    def _tell_broken(self, lines: RunLog) -> None:
        """Report each picture that any process could not read, once."""
        for report in self.world.collect(self.broken):
            if report not in self.state.broken:
                self.state.broken.append(report)
                count = len(self.state.broken)
                lines.write("broken picture", self.state.step, report=report, count=count)
                if self.world.first:
                    log.warning("broken picture %d: %s", count, report)
        self.broken = []

    def _result(self) -> RunResult:
        return RunResult(self.state.step, self.state.step >= self.plan.steps, self.folder.last)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators (for dropped paths) for a step, so that resuming needs none of their state."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1)))


class StopAsked:
    """Flag that a signal has asked to stop."""

    asked = False


@contextlib.contextmanager
def stop_signals() -> Iterator[StopAsked]:
    """Ask to stop after the step on SIGTERM (sent by Slurm and `timeout`) or Ctrl-C. A second Ctrl-C kills.

    A second SIGTERM does not kill. If a scheduler signals every process, torchrun passes its own signal on to its
    processes.
    """
    stop = StopAsked()
    signals = (signal.SIGTERM, signal.SIGINT)
    before: dict[int, Any] = {number: signal.getsignal(number) for number in signals}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    for number in signals:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number in signals:
            signal.signal(number, before[number])


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Replace operations whose results depend on the order of threads, inside the block, if `wanted`."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def fast_attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return a context in which attention on a CPU is computed without the fused kernel.

    There, forward and backward take two thirds of the fused kernel's time. This was measured at 37 and 82 tokens, the
    sizes that are trained on a CPU. On other devices torch chooses.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
