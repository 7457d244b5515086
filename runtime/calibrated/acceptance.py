"""Read the acceptance threshold of a map: the pair score or similarity from which a robot may act on an answer.

`pairvpr.calibration.acceptance` fits and tests the threshold. The map's bundle stores it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pairvpr.runtime.answer import Match
from pairvpr.runtime.bundle import Bundle, check_model, read_result
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.map import Map
from pairvpr.runtime.measure import Measure
from pairvpr.validation import (
    Check,
    check_bool,
    check_fields,
    check_keys,
    check_list,
    check_mapping,
    check_real,
    check_text,
    optional,
    real,
    whole,
)

KEY = "acceptance"
"""Key of the threshold among a bundle's calibration results."""
UNCALIBRATED = "not calibrated"
SAMPLED = ("value", "lead", "similarity")
"""Numbers of the answers that a calibration may have samples of, see `Reading`."""
METRES, FRAMES = "m", "frames"
"""Units of the radius. Metres are the map's units."""


@dataclass(frozen=True)
class ScoreSetup:
    """Hold the settings that influence scores. A threshold is valid only for the setup it was calibrated with.

    places: checksum of the map's pictures.
    top_k: number of candidates compared.
    cascade: checksum of the cascade that drops candidates, or None if all candidates are compared in full.
    pictures: number of the map's pictures. Calibrations of earlier versions have none.
    """

    places: str
    top_k: int
    cascade: str | None
    pictures: int | None = None

    @staticmethod
    def from_map(map_: Map, top_k: int, cascade: Cascade | None, first: int | None = None) -> ScoreSetup:
        """Return the setup of answers from the `first` pictures of this map. None takes all."""
        crcs = map_.records.column("descriptor_crc").tolist()
        pictures = sorted(list(zip(map_.records.names(), crcs, strict=True))[:first])
        checked = None if cascade is None else _digest(cascade.to_json())
        return ScoreSetup(_digest(pictures), top_k, checked, len(pictures))


@dataclass(frozen=True)
class Traverse:
    """Count the test pictures of one folder.

    name: the folder.
    checked: pictures the threshold was tested on.
    accepted: pictures whose answer was accepted.
    right: accepted answers that were right.
    """

    name: str
    checked: int
    accepted: int
    right: int


@dataclass(frozen=True)
class Sample:
    """Summarize how a number of the answers is distributed in a calibration.

    quantiles: the number's quantiles at evenly spaced shares from 0 to 1.
    independent: number of independent values behind them, see `count_independent`.
    """

    quantiles: tuple[float, ...]
    independent: float

    @staticmethod
    def from_json(name: str, content: Any) -> Sample:
        """Read the stored sample of a number. Raises ValueError for one that no calibration yields."""
        if name not in SAMPLED:
            raise ValueError(f"a sample of {name!r:.20}")
        sample = check_keys(content, name, {"quantiles", "independent"})
        quantiles = [check_real(value, "a quantile") for value in check_list(sample["quantiles"], name, 1, 10_000)]
        independent = check_real(sample["independent"], "independent", 0)
        if quantiles != sorted(quantiles):
            raise ValueError("the quantiles of a sample do not rise")
        return Sample(tuple(quantiles), independent)


@dataclass(frozen=True)
class Acceptance:
    """Hold a threshold, the confidence curve, and the evidence for both.

    identity: identity of the bundle.
    engine: engine used for the calibration.
    setup: the only setup that the threshold is valid for.
    threshold: pair score or similarity from which the best match is accepted.
    slope, bias: the confidence of a score s is 1 / (1 + exp(-(slope s + bias))).
    radius: distance within which a match is right, in `unit`.
    unit: METRES or FRAMES.
    exact: whether exact answers were asked for, so that a cascade is not used by default.
    precision: lowest share of accepted answers that are right.
    delta: chance that the share is lower after all.
    fitted: number of pictures used to fit the confidence and to choose the thresholds to test.
    checked: number of other pictures, which the threshold was tested on.
    right: checked pictures that were answered rightly.
    outside: checked pictures with no map picture within the radius.
    expected: number of right answers among the checked ones that `confidence` predicts.
    accepted, accepted_right: checked pictures at or above the threshold, and the right ones of these.
    traverses: folders of the checked pictures. The threshold says nothing about other conditions.
    own: number of all pictures that come from the map's own traverse, which makes the result optimistic.
    samples: how the numbers of the answers were distributed, by name, see `Reading`. Calibrations of earlier versions
    have none.
    measure: the number that the threshold applies to. It follows from the bundle and is not stored.
    """

    identity: str
    engine: str
    setup: ScoreSetup
    threshold: float
    slope: float
    bias: float
    radius: float
    precision: float
    delta: float
    fitted: int
    checked: int
    right: int
    outside: int
    expected: float
    accepted: int
    accepted_right: int
    traverses: tuple[Traverse, ...]
    own: int
    unit: str = METRES
    exact: bool = False
    samples: Mapping[str, Sample] = field(default_factory=dict)
    measure: Measure = Measure.SCORE

    @staticmethod
    def find_in(bundle: Bundle) -> Acceptance | None:
        """Read the bundle's threshold. Return None if the bundle has none.

        Raises BundleError for a damaged threshold and for another model's.
        """

        def parse(content: Any) -> Acceptance:
            found = Acceptance(**check_fields(content, "it", _CHECKS, _OPTIONAL), measure=bundle.info.measure)
            check_model(bundle, found.identity)
            found._check()
            return found

        return read_result(
            bundle, KEY, "acceptance threshold", "calibrate again with `pairvpr calibrate threshold`", parse
        )

    def _check(self) -> None:
        """Raise ValueError for numbers that contradict each other."""
        if not (0 < self.precision < 1 and 0 < self.delta < 1):
            raise ValueError(f"precision {self.precision}, delta {self.delta}")
        if not self.accepted_right <= self.accepted <= self.checked:
            raise ValueError(f"{self.accepted} of {self.checked} accepted")

    def find_objection(self, setup: ScoreSetup) -> str | None:
        """Return the reason why this threshold is not valid for answers of this setup, or None if it is valid."""
        if setup.places != self.setup.places:
            return f"{UNCALIBRATED} for this map as it is now"
        if setup.top_k != self.setup.top_k and self.measure is Measure.SCORE:  # the most similar is always found
            return f"{UNCALIBRATED} for --top-k {setup.top_k}, but for {self.setup.top_k}"
        if setup.cascade != self.setup.cascade:
            was = "exact answers" if self.setup.cascade is None else "the cascade it was calibrated with"
            return f"{UNCALIBRATED} for these answers, but for {was}"
        return None

    def accepts(self, match: Match) -> bool:
        """Return whether the match reaches the threshold."""
        value = match.value(self.measure)
        return value is not None and value >= self.threshold

    def confidence(self, value: float) -> float:
        """Return the chance (0 to 1) that a best match with this pair score or similarity is right."""
        return logistic(self.slope, self.bias, value)

    def to_json(self) -> dict[str, Any]:
        """Return the threshold as the bundle stores it."""
        samples = {
            name: {"quantiles": list(each.quantiles), "independent": each.independent}
            for name, each in self.samples.items()
        }
        stored = {name: value for name, value in asdict(self).items() if name != "measure"}
        return {**stored, "traverses": list(stored["traverses"]), "samples": samples}


def _check_unit(value: object, name: str) -> str:
    unit = check_text(value, name)
    if unit not in (METRES, FRAMES):
        raise ValueError(f"{name} {unit!r:.20} is neither {METRES} nor {FRAMES}")
    return unit


_COUNT, _SHARE = whole(0, 10**9), real(0, 1)
_SETUP: dict[str, Check] = {
    "places": check_text,
    "top_k": whole(1, 10**9),
    "cascade": optional(check_text),
    "pictures": optional(whole(1, 2**40)),
}
_TRAVERSE: dict[str, Check] = {"name": check_text, **dict.fromkeys(("checked", "accepted", "right"), _COUNT)}
_CHECKS: dict[str, Check] = {
    "identity": check_text,
    "engine": check_text,
    "setup": lambda value, name: ScoreSetup(**check_fields(value, name, _SETUP, {"pictures"})),
    "threshold": check_real,
    "slope": real(0),  # confidence does not fall with the score
    "bias": check_real,
    "radius": real(0),
    **dict.fromkeys(("precision", "delta"), _SHARE),
    **dict.fromkeys(("fitted", "checked", "right", "outside", "accepted", "accepted_right", "own"), _COUNT),
    "expected": real(0),
    "traverses": lambda value, name: tuple(
        Traverse(**check_fields(each, name, _TRAVERSE)) for each in check_list(value, name, 0, 100_000)
    ),
    "unit": _check_unit,
    "exact": check_bool,
    "samples": lambda value, name: {
        key: Sample.from_json(key, each) for key, each in check_mapping(value, name, 10).items()
    },
}
_OPTIONAL = {"unit", "exact", "samples"}


@dataclass(frozen=True)
class AnswerDefaults:
    """Hold the settings of answers that a user leaves open.

    top_k: number of candidates to compare, at most the map's pictures.
    exact: whether all candidates are compared in full; None if any cascade may be used.
    """

    top_k: int
    exact: bool | None

    @staticmethod
    def from_bundle(bundle: Bundle) -> AnswerDefaults:
        """Return the settings that the bundle's threshold was calibrated with, so that answers have decisions.

        Without a threshold these are the model's number of candidates, and None. Raises BundleError.
        """
        acceptance = Acceptance.find_in(bundle)
        if acceptance is None:
            return AnswerDefaults(bundle.info.top_k, None)
        setup = acceptance.setup
        if acceptance.exact:
            return AnswerDefaults(setup.top_k, True)
        cascade = Cascade.find_in(bundle)
        same = cascade is not None and setup.cascade == _digest(cascade.to_json())
        return AnswerDefaults(setup.top_k, False if same else None)


def logistic(slope: float, bias: float, score: float) -> float:
    """Return 1 / (1 + exp(-(slope score + bias)))."""
    return 0.5 * (1 + math.tanh(0.5 * (slope * score + bias)))


def _digest(content: Mapping[str, Any] | list[tuple[str, int]]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
