"""What tuning measured: a trial of each setting, the exact and the chosen one among them, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pairvpr.calibration.cascade import wilson_interval
from pairvpr.runtime.calibrated.tuning import RuntimeSetting, Tuning
from pairvpr.runtime.map import MapInfo


@dataclass(frozen=True)
class Trial:
    """What was measured of a setting.

    median_ms: on the pictures that all settings were asked in alternation. p99_ms: of all its answers. pictures: that
    its match is known of, in `changed` of which it is another than the exact answer's. told: what became of it.
    """

    setting: RuntimeSetting
    engine: str
    median_ms: float
    p99_ms: float
    pictures: int
    changed: int
    told: str

    @property
    def loss(self) -> float:
        """Share of the pictures with another first match."""
        return self.changed / self.pictures

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the loss."""
        return wilson_interval(self.changed, self.pictures)


@dataclass(frozen=True)
class Tuned:
    """All trials, fastest first, the exact one and the chosen one, None where none keeps the budget.

    left_out: settings that could not be had, and why. same: pictures that are the map's own, unread: that could not be
    read; neither were asked.
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
        """The trials that no faster one matches in agreement, fastest first: the Pareto front."""
        found: list[Trial] = []
        for trial in self.trials:
            if not found or trial.loss < found[-1].loss:
                found.append(trial)
        return found

    def tuning(self, chosen: Trial) -> Tuning:
        """As it is stored."""
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
