"""Which answers may be acted on: a threshold on the best match's pair score, and how sure a score is.

Both are learnt and tested by `pairvpr.calibration.acceptance` and stored in the map's bundle.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pairvpr.runtime.bundle import Bundle, check_model, read_result
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.map import Map

KEY = "acceptance"
"""Its name among a bundle's calibration results."""
UNCALIBRATED = "not calibrated"
METRES, FRAMES = "m", "frames"
"""What the radius may be in. Metres are the map's units."""
SHOWN = 10
"""Traverses that are named in a line; all of them are stored."""


@dataclass(frozen=True)
class ScoreSetup:
    """How answers come about, as far as scores depend on it; a threshold holds for one setup alone.

    places: checksum of the map's pictures. top_k: candidates compared. cascade: checksum of the one that drops some,
    None where all are compared in full.
    """

    places: str
    top_k: int
    cascade: str | None

    @staticmethod
    def from_map(map_: Map, top_k: int, cascade: Cascade | None) -> ScoreSetup:
        """That of answers from this map."""
        pictures = sorted((record.name, record.descriptor_crc) for record in map_.records)
        return ScoreSetup(_digest(pictures), top_k, None if cascade is None else _digest(cascade.to_json()))


@dataclass(frozen=True)
class Traverse:
    """A folder of pictures, how many of them were checked and accepted, and how many of these `right`ly."""

    name: str
    checked: int
    accepted: int
    right: int

    def __str__(self) -> str:
        return f"{self.name} ({self.right} of {self.accepted} accepted right, {self.checked} checked)"


@dataclass(frozen=True)
class Acceptance:
    """A threshold, the chance of being right by score, and what stands behind them.

    identity: of the bundle. engine: what it was calibrated on. setup: what it holds for.
    threshold: pair score from which the best match is accepted. slope, bias: `confidence` of a score s is
    1 / (1 + exp(-(slope s + bias))).
    radius: within which a match is right, in `unit`: METRES or FRAMES. precision: the share of accepted answers that
    is right, or more; delta: the chance that it is less after all.
    fitted: pictures that `confidence` and the thresholds to test come from. checked: others that the threshold was
    tested on, `right` of them answered rightly, `outside` of them without a map picture within the radius;
    expected: how many of them `confidence` says are right. accepted, accepted_right: those at or above the threshold.
    traverses: the folders that those checked come from: what it was not checked on it says nothing about.
    own: how many of all pictures come from the map's own traverse, which is optimistic.
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

    @staticmethod
    def find_in(bundle: Bundle) -> Acceptance | None:
        """The bundle's threshold, None where there is none; raises BundleError for a damaged or foreign one."""

        def parse(content: Any) -> Acceptance:
            traverses = tuple(Traverse(**each) for each in content["traverses"])
            found = Acceptance(**{**content, "setup": ScoreSetup(**content["setup"]), "traverses": traverses})
            check_model(bundle, found.identity)
            found._check()
            return found

        return read_result(
            bundle, KEY, "acceptance threshold", "calibrate again with `pairvpr calibrate --accept`", parse
        )

    def _check(self) -> None:
        """Raise ValueError for numbers that no calibration yields."""
        if not all(map(math.isfinite, (self.threshold, self.slope, self.bias, self.radius, self.expected))):
            raise ValueError("a number is not finite")
        if self.unit not in (METRES, FRAMES):
            raise ValueError(f"a radius in {self.unit}")
        if self.slope < 0:
            raise ValueError("confidence falls with the score")
        if not (0 < self.precision < 1 and 0 < self.delta < 1):
            raise ValueError(f"precision {self.precision}, delta {self.delta}")
        if not 0 <= self.accepted_right <= self.accepted <= self.checked:
            raise ValueError(f"{self.accepted} of {self.checked} accepted")

    def objection(self, setup: ScoreSetup) -> str | None:
        """Why this threshold does not hold for answers of this setup; None where it does."""
        if setup.places != self.setup.places:
            return f"{UNCALIBRATED} for this map as it is now"
        if setup.top_k != self.setup.top_k:
            return f"{UNCALIBRATED} for --top-k {setup.top_k}, but for {self.setup.top_k}"
        if setup.cascade != self.setup.cascade:
            was = "exact answers" if self.setup.cascade is None else "the cascade it was calibrated with"
            return f"{UNCALIBRATED} for these answers, but for {was}"
        return None

    def confidence(self, score: float) -> float:
        """The chance (0 to 1) that a best match with this pair score is right."""
        return chance(self.slope, self.bias, score)

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self)

    @property
    def brief(self) -> str:
        """What it promises, without the figures behind it."""
        text = f"accepted from a pair score of {self.threshold:.3f} on, for a precision of {self.precision:g}"
        return f"{text} (OPTIMISTIC: calibrated on the map's own traverse)" if self.own else text

    def __str__(self) -> str:
        text = (
            f"accepted from a pair score of {self.threshold:.3f} on, for a precision of {self.precision:g} with "
            f"{1 - self.delta:.0%} confidence: {self.accepted} of {self.checked} checked, {self.accepted_right} of "
            f"them right within {self.radius:g} {self.unit}; {self.right} of all were right "
            f"(expected {self.expected:.0f}), {self.outside or 'none'} were outside the map; {self.engine}; "
            "holds for light, weather and camera as in "
            f"{', '.join(map(str, self.traverses[:SHOWN]))}"
        )
        if len(self.traverses) > SHOWN:
            text += f" and {len(self.traverses) - SHOWN} more"
        if not self.outside:
            text += ", for a robot that does not leave the map"
        if self.own:
            text += f"; OPTIMISTIC: {self.own} pictures come from the map's own traverse"
        return text


def chance(slope: float, bias: float, score: float) -> float:
    """1 / (1 + exp(-(slope score + bias)))."""
    return 0.5 * (1 + math.tanh(0.5 * (slope * score + bias)))


def _digest(content: Mapping[str, Any] | list[tuple[str, int]]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
