"""The setting tuned for a map: how to answer on one device, and what that was measured to take and to change.

It is found by `pairvpr.calibration.tune` and stored in the map's bundle. It holds for the device it was measured on.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pairvpr import machine
from pairvpr.errors import EngineError
from pairvpr.runtime.bundle import TUNING, Bundle, read_result
from pairvpr.runtime.engines.open import DEVICES
from pairvpr.runtime.model import Model, load_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RuntimeSetting:
    """How to answer, by the names that `PlaceRecognizer.open` has for it; None, and device "auto", leave it open."""

    device: str = "auto"
    precision: str | None = None
    threads: int | None = None
    batch_size: int | None = None
    exact: bool | None = None

    def load(self, bundle: Path) -> Model:
        """Open a bundle so; raises BundleError or EngineError."""
        return load_model(bundle, self.device, self.precision, threads=self.threads, batch_size=self.batch_size)

    def completed(self, tuned: RuntimeSetting) -> RuntimeSetting | None:
        """Itself, with what it leaves open from a tuned setting; None where it asks for another device or precision.

        Threads and batch of the tuned one were found for its own device and precision, and mean nothing for others.
        """
        if self.device not in ("auto", tuned.device) or self.precision not in (None, tuned.precision):
            return None
        return replace(tuned, **{name: value for name, value in vars(self).items() if value not in (None, "auto")})

    def __str__(self) -> str:
        parts = [f"{self.device} {self.precision or 'in its best precision'}"]
        parts += [] if self.threads is None else [f"{self.threads} thread{'s' if self.threads > 1 else ''}"]
        parts += [] if self.batch_size is None else [f"batches of {self.batch_size}"]
        return ", ".join([*parts, "all candidates in full" if self.exact else "cascade"])


@dataclass(frozen=True)
class Tuning:
    """A tuned setting and what was measured.

    computer: where, by `pairvpr.machine.name`. engine: what ran. map_pictures, candidates: of the map and of an
    answer. pictures: that were asked, in `changed` of which the first match was not that of the exact answer;
    interval: of that share, 95 %. max_loss: the share allowed. budget_ms: what the 99th percentile had to keep, None
    without. median_ms, p99_ms: of whole answers. exact_ms: median of exact answers to the same pictures.
    """

    setting: RuntimeSetting
    computer: str
    engine: str
    map_pictures: int
    candidates: int
    pictures: int
    changed: int
    interval: tuple[float, float]
    max_loss: float
    budget_ms: float | None
    median_ms: float
    p99_ms: float
    exact_ms: float

    @staticmethod
    def find_in(bundle: Bundle) -> Tuning | None:
        """The bundle's tuning, None where there is none; raises BundleError for one that cannot be understood."""

        def parse(content: Any) -> Tuning:
            low, high = content["interval"]
            found = Tuning(**{**content, "setting": RuntimeSetting(**content["setting"]), "interval": (low, high)})
            if found.setting.device not in DEVICES or not 0 <= found.changed <= found.pictures:
                raise ValueError(f"device {found.setting.device}, {found.changed} of {found.pictures} pictures")
            return found

        remedy = "tune again with `pairvpr tune`, or upgrade pairvpr if a newer one made it"
        return read_result(bundle, TUNING, "tuned setting", remedy, parse)

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {**asdict(self), "interval": list(self.interval)}

    def open(self, bundle: Path, setting: RuntimeSetting | None = None) -> Model:
        """Open a bundle with the tuned setting, or what became of it.

        Raises EngineError, saying why, where this is another device or lacks what the setting needs.
        """
        here = machine.name()
        if here != self.computer:
            raise EngineError(f"it was measured on {self.computer}, this is {here}")
        return (setting or self.setting).load(bundle)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.setting}; {self.median_ms:.0f} ms an answer (p99 {self.p99_ms:.0f}, exact {self.exact_ms:.0f}), "
            f"another first match than the exact answer's in {self.changed} of {self.pictures} pictures (95 % interval "
            f"{low:.1%} to {high:.1%}), with {self.candidates} of {self.map_pictures} pictures of the map as candidates"
        )


def open_tuned(bundle: Path, asked: RuntimeSetting) -> tuple[Model, RuntimeSetting, str]:
    """Open a map's bundle with its tuned setting where `asked` leaves things open; the setting, and what to say of it.

    A tuned setting of another device, or one that cannot be had here, is not used, with a warning. Raises BundleError
    or EngineError.
    """
    tuning = Tuning.find_in(Bundle.open(bundle))
    if tuning is None:
        return asked.load(bundle), asked, ""
    setting = asked.completed(tuning.setting)
    if setting is None:
        told = f"not the setting tuned for this map ({tuning.setting}): another was asked for"
        return asked.load(bundle), asked, told
    try:
        model = tuning.open(bundle, setting)
    except EngineError as error:
        model = asked.load(bundle)  # what was asked for and cannot be had is raised, without a word of tuning
        log.warning(
            "the setting tuned for this map (%s) is not used: %s; `pairvpr tune` finds one for here",
            tuning.setting,
            error,
        )
        return model, asked, ""
    asked_for = "" if setting == tuning.setting else ", but for what was asked for"
    return model, setting, f"tuned{asked_for}: {setting}"
