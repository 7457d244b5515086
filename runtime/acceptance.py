"""Which answers may be acted on: a threshold on the best match's pair score, and how sure a score is.

Both are learnt and tested by `pairvpr.calibration.acceptance` and stored in the map's bundle.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pairvpr.errors import BundleError
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.bundle import FILE, Bundle
from pairvpr.runtime.cascade import Cascade
from pairvpr.runtime.map import Map

KEY = "acceptance"
"""Its name among a bundle's calibration results."""
UNCALIBRATED = "not calibrated"
ACCEPTED = "accepted"
TOO_LOW = "score too low: not in the map, or not recognisable"
INCOMPLETE = "incomplete: the threshold is calibrated on answers with all candidates compared"


@dataclass(frozen=True)
class Setup:
    """How answers come about, as far as scores depend on it; a threshold holds for one setup alone.

    places: checksum of the map's pictures. top_k: candidates compared. cascade: checksum of the one that drops some,
    None where all are compared in full.
    """

    places: str
    top_k: int
    cascade: str | None

    @staticmethod
    def of(places: Map, top_k: int, cascade: Cascade | None) -> Setup:
        """That of answers from this map."""
        pictures = sorted((record.name, record.descriptor_crc) for record in places.records)
        return Setup(_digest(pictures), top_k, None if cascade is None else _digest(cascade.to_json()))


@dataclass(frozen=True)
class Acceptance:
    """A threshold, the chance of being right by score, and what stands behind them.

    identity: of the bundle. engine: what it was calibrated on. setup: what it holds for.
    threshold: pair score from which the best match is accepted. slope, bias: `confidence` of a score s is
    1 / (1 + exp(-(slope s + bias))).
    radius: metres (or the map's units) within which a match is right. precision: the share of accepted answers that
    is right, or more; delta: the chance that it is less after all.
    fitted: pictures that `confidence` and the thresholds to test come from. checked: others that the threshold was
    tested on, `right` of them answered rightly, `outside` of them without a map picture within the radius;
    expected: how many of them `confidence` says are right. accepted, accepted_right: those at or above the threshold.
    traverses: folders that all of them come from. own: how many come from the map's own traverse, which is optimistic.
    """

    identity: str
    engine: str
    setup: Setup
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
    traverses: int
    own: int

    @staticmethod
    def of(bundle: Bundle) -> Acceptance | None:
        """The bundle's threshold, None where there is none; raises BundleError for a damaged or foreign one."""
        content = bundle.info.calibration.get(KEY)
        if content is None:
            return None
        where, remedy = bundle.path / FILE, "calibrate again with `pairvpr calibrate --accept`"
        try:
            acceptance = Acceptance(**{**content, "setup": Setup(**content["setup"])})
            numbers = (acceptance.threshold, acceptance.slope, acceptance.bias, acceptance.radius, acceptance.expected)
            if not all(map(math.isfinite, numbers)) or acceptance.slope < 0:
                raise ValueError("a number is not finite, or confidence falls with the score")
            if not (0 < acceptance.precision < 1 and 0 < acceptance.delta < 1):
                raise ValueError(f"precision {acceptance.precision}, delta {acceptance.delta}")
            if not 0 <= acceptance.accepted_right <= acceptance.accepted <= acceptance.checked:
                raise ValueError(f"{acceptance.accepted} of {acceptance.checked} accepted")
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{where}: its acceptance threshold is no calibration of this version ({error}); {remedy}"
            ) from error
        if acceptance.identity != bundle.identity:
            raise BundleError(
                f"{where}: its acceptance threshold was calibrated for model {str(acceptance.identity)[:12]}, not for "
                f"{bundle.identity[:12]}; {remedy}"
            )
        return acceptance

    def objection(self, setup: Setup) -> str | None:
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
        return 0.5 * (1 + math.tanh(0.5 * (self.slope * score + self.bias)))

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {**vars(self), "setup": dict(vars(self.setup))}

    def __str__(self) -> str:
        text = (
            f"accepted from a pair score of {self.threshold:.3f} on, for a precision of {self.precision:g} with "
            f"{1 - self.delta:.0%} confidence: {self.accepted} of {self.checked} checked, {self.accepted_right} of "
            f"them right within {self.radius:g} m; {self.right} of all were right (expected {self.expected:.0f}), "
            f"{self.outside} were outside the map; {self.traverses} traverse{'s' * (self.traverses != 1)}, "
            f"{self.engine}"
        )
        if self.own:
            text += f"; OPTIMISTIC: {self.own} pictures come from the map's own traverse"
        return text


class Judge:
    """Says of answers whether they may be acted on.

    acceptance: None where nothing holds for these answers; reason: why then.
    """

    def __init__(self, acceptance: Acceptance | None = None, reason: str = UNCALIBRATED) -> None:
        self._acceptance = acceptance
        self._reason = reason

    @staticmethod
    def of(bundle: Bundle, setup: Setup | None) -> Judge:
        """The judge of a map's bundle for answers of this setup; None: by descriptors alone, never calibrated.

        Raises BundleError.
        """
        acceptance = Acceptance.of(bundle)
        if acceptance is None:
            return Judge()
        if setup is None:
            return Judge(None, f"{UNCALIBRATED} for answers by descriptors alone")
        objection = acceptance.objection(setup)
        return Judge(acceptance) if objection is None else Judge(None, objection)

    def __call__(self, answer: Recognition) -> Recognition:
        """The answer with `accepted`, `confidence` and `reason`."""
        if self._acceptance is None:
            return replace(answer, reason=self._reason)
        if not answer.complete:
            return replace(answer, reason=INCOMPLETE)
        score = answer.best.score
        if score is None:
            raise ValueError(f"{answer.query}: a complete answer without a score")
        accepted = score >= self._acceptance.threshold
        return replace(
            answer,
            accepted=accepted,
            confidence=self._acceptance.confidence(score),
            reason=ACCEPTED if accepted else TOO_LOW,
            acceptance=self._acceptance,
        )

    def figures(self) -> dict[str, Any] | None:
        """What was measured for the threshold in use, None where none is."""
        return None if self._acceptance is None else self._acceptance.to_json()

    def __str__(self) -> str:
        return str(self._acceptance or self._reason)


def _digest(content: Mapping[str, Any] | list[tuple[str, int]]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
