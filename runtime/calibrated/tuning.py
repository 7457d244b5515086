"""Read and apply the setting tuned for a map: device, precision, threads, batch size and cascade.

`pairvpr.calibration.tune` finds the setting. The map's bundle stores it. It is valid only for the device it was
measured on.
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
from pairvpr.validation import (
    Check,
    check_bool,
    check_fields,
    check_interval,
    check_text,
    optional,
    real,
    whole,
)

log = logging.getLogger(__name__)

_COUNT, _MILLISECONDS = whole(0, 10**9), real(0)
_SETTING: dict[str, Check] = {
    "device": check_text,
    "precision": optional(lambda value, name: check_text(value, name, 200)),
    "threads": optional(whole(1, 10_000)),
    "batch_size": optional(whole(1, 10**6)),
    "exact": optional(check_bool),
}
_CHECKS: dict[str, Check] = {
    "setting": lambda value, name: check_fields(value, name, _SETTING, set(_SETTING)),
    "computer": check_text,
    "engine": check_text,
    **dict.fromkeys(("map_pictures", "candidates", "pictures", "changed"), _COUNT),
    "interval": check_interval,
    "max_loss": real(0, 1),
    "budget_ms": optional(_MILLISECONDS),
    **dict.fromkeys(("median_ms", "p99_ms", "exact_ms"), _MILLISECONDS),
}


@dataclass(frozen=True)
class RuntimeSetting:
    """Hold how to run the model, under the argument names of `PlaceRecognizer.open`.

    None, and device "auto", leave a field open.
    """

    device: str = "auto"
    precision: str | None = None
    threads: int | None = None
    batch_size: int | None = None
    exact: bool | None = None

    def load(self, bundle: Path) -> Model:
        """Open a bundle with this setting. Raises BundleError or EngineError."""
        return load_model(bundle, self.device, self.precision, threads=self.threads, batch_size=self.batch_size)

    def fill_from(self, tuned: RuntimeSetting) -> RuntimeSetting | None:
        """Fill open fields from the tuned setting. Return None if device or precision differ.

        Tuned threads and batch size were found for the tuned device and precision, and mean nothing for others.
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
    """Hold a tuned setting and its measured figures.

    computer: name of the computer, from `pairvpr.machine.name`.
    engine: engine and precision that ran.
    map_pictures: number of pictures in the map.
    candidates: number of candidates of an answer.
    pictures: number of pictures asked.
    changed: pictures whose first match differed from the exact answer's.
    interval: 95 % interval of the share changed / pictures.
    max_loss: largest share allowed.
    budget_ms: limit for the 99th percentile of whole answers in milliseconds, or None.
    median_ms, p99_ms: milliseconds of whole answers.
    exact_ms: median milliseconds of exact answers to the same pictures.
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
        """Read the bundle's tuned setting. Return None if the bundle has none.

        Raises BundleError for a tuned setting that cannot be parsed.
        """

        def parse(content: Any) -> Tuning:
            fields = check_fields(content, "it", _CHECKS)
            found = Tuning(**{**fields, "setting": RuntimeSetting(**fields["setting"])})
            if found.setting.device not in DEVICES:
                raise ValueError(f"device {found.setting.device!r:.50} is none of {', '.join(DEVICES)}")
            if found.changed > found.pictures:
                raise ValueError(f"{found.changed} of {found.pictures} pictures")
            return found

        remedy = "tune again with `pairvpr tune`, or upgrade pairvpr if a newer one made it"
        return read_result(bundle, TUNING, "tuned setting", remedy, parse)

    def to_json(self) -> dict[str, Any]:
        """Return the tuning as the bundle stores it."""
        return {**asdict(self), "interval": list(self.interval)}

    def open(self, bundle: Path, setting: RuntimeSetting | None = None) -> Model:
        """Open a bundle with the tuned setting, or with a setting filled from it.

        Raises EngineError, with the reason, on another device and without the engine or precision of the setting.
        """
        here = machine.name()
        if here != self.computer:
            raise EngineError(f"it was measured on {self.computer}, this is {here}")
        return (setting or self.setting).load(bundle)


def open_tuned(bundle: Path, asked: RuntimeSetting) -> tuple[Model, RuntimeSetting, str]:
    """Open a map's bundle, with its tuned setting for the fields that `asked` leaves open.

    A tuned setting of another device, or one that cannot be used here, is set aside with a warning.
    Returns the model, the setting used, and a note on the tuned setting for the log ("" without one).
    Raises BundleError or EngineError.
    """
    tuning = Tuning.find_in(Bundle.open(bundle))
    if tuning is None:
        return asked.load(bundle), asked, ""
    setting = asked.fill_from(tuning.setting)
    if setting is None:
        note = f"the setting tuned for this map ({tuning.setting}) is not used: another device or precision was given"
        return asked.load(bundle), asked, note
    try:
        model = tuning.open(bundle, setting)
    except EngineError as error:
        model = asked.load(bundle)  # if this fails too, its error alone is raised: the tuned setting plays no part
        log.warning(
            "the setting tuned for this map (%s) is not used: %s; find one for this computer with `pairvpr tune`",
            tuning.setting,
            error,
        )
        return model, asked, ""
    given = "" if setting == tuning.setting else ", with the options given"
    return model, setting, f"tuned{given}: {setting}"
