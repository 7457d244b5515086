"""Hold the measurements of tuning: a trial of each setting, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pairvpr.evaluation.recall import interval_of
from pairvpr.runtime.calibrated.tuning import RuntimeSetting, Tuning
from pairvpr.runtime.map import MapInfo


@dataclass(frozen=True)
class Trial:
    """Hold the measurements of a setting.

    median_ms: median milliseconds on the pictures that all settings were asked in alternation.
    p99_ms: 99th percentile of all its answers in milliseconds.
    pictures: number of pictures it was asked.
    changed: pictures whose first match differed from the exact answer's.
    outcome: why the setting was chosen or not.
    """

    setting: RuntimeSetting
    engine: str
    median_ms: float
    p99_ms: float
    pictures: int
    changed: int
    outcome: str

    @property
    def loss(self) -> float:
        """Return the share of pictures with a changed first match."""
        return self.changed / self.pictures

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the loss."""
        return interval_of(self.loss, self.pictures)


@dataclass(frozen=True)
class Tuned:
    """Hold the result of tuning.

    trials: all trials, fastest first.
    exact: trial of the exact answers.
    chosen: trial of the chosen setting, or None if no setting keeps the budget.
    left_out: settings that cannot run here, with the reason.
    map: facts about the map.
    candidates: number of candidates of an answer.
    cascade: whether a cascade was calibrated.
    computer: name of the computer.
    max_loss: largest share of changed first matches allowed.
    budget_ms: limit for the 99th percentile in milliseconds, or None.
    same: pictures left out because they are in the map.
    unread: pictures left out because they cannot be read.
    """

    trials: Sequence[Trial]
    exact: Trial
    chosen: Trial | None
    left_out: Sequence[str]
    map: MapInfo
    candidates: int
    cascade: bool
    computer: str
    max_loss: float
    budget_ms: float | None
    same: int
    unread: int

    def front(self) -> list[Trial]:
        """Return the Pareto front, fastest first: the trials with less loss than every faster one."""
        found: list[Trial] = []
        for trial in self.trials:
            if not found or trial.loss < found[-1].loss:
                found.append(trial)
        return found

    def tuning(self, chosen: Trial) -> Tuning:
        """Return the tuning to store for a chosen trial."""
        return Tuning(
            setting=chosen.setting,
            computer=self.computer,
            engine=chosen.engine,
            map_pictures=self.map.pictures,
            candidates=self.candidates,
            pictures=chosen.pictures,
            changed=chosen.changed,
            interval=chosen.interval,
            max_loss=self.max_loss,
            budget_ms=self.budget_ms,
            median_ms=round(chosen.median_ms, 3),
            p99_ms=round(chosen.p99_ms, 3),
            exact_ms=round(self.exact.median_ms, 3),
        )

    def to_json(self) -> dict[str, Any]:
        """Return all trials and the chosen tuning as JSON values. `chosen` is None if no setting keeps the budget."""
        return {
            **asdict(self),
            "trials": [{**asdict(each), "loss": each.loss, "interval": list(each.interval)} for each in self.trials],
            "left_out": list(self.left_out),
            "map": {**asdict(self.map), "path": str(self.map.path)},
            "chosen": None if self.chosen is None else self.tuning(self.chosen).to_json(),
        }
