"""Decide for each answer whether a robot may act on it."""

from __future__ import annotations

from dataclasses import replace

from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.calibrated.acceptance import UNCALIBRATED, Acceptance, ScoreSetup
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.calibrated.score_monitor import Reading, ScoreMonitor
from pairvpr.runtime.map import Map
from pairvpr.runtime.measure import Measure

ACCEPTED = "accepted"
TOO_LOW = "score too low: not in the map, or not recognisable"
NOT_SIMILAR = "similarity too low: not in the map, or not recognisable"
INCOMPLETE = "incomplete: the threshold is calibrated on answers with all candidates compared"


class Judge:
    """Accept or reject answers by a calibrated threshold.

    acceptance: the threshold, or None if no threshold is valid for these answers.
    reason: the reason why no threshold is valid.
    monitor: compares the answers with those of the calibration. None without a threshold, or with one whose calibration
    stored no samples.
    """

    def __init__(self, acceptance: Acceptance | None = None, reason: str = UNCALIBRATED) -> None:
        self.acceptance = acceptance
        self.reason = reason
        self.monitor = ScoreMonitor(acceptance) if acceptance is not None and acceptance.samples else None

    @staticmethod
    def from_bundle(bundle: Bundle, setup: ScoreSetup | None) -> Judge:
        """Return the judge of a map's bundle for answers of this setup.

        setup: None for answers of a model with a pair classifier by descriptors alone, which are never calibrated.
        Raises BundleError.
        """
        acceptance = Acceptance.find_in(bundle)
        if acceptance is None:
            return Judge()
        if setup is None:
            return Judge(None, f"{UNCALIBRATED} for answers by descriptors alone")
        objection = acceptance.find_objection(setup)
        return Judge(acceptance) if objection is None else Judge(None, objection)

    @staticmethod
    def from_map(bundle: Bundle, map_: Map, top_k: int, cascade: Cascade | None) -> Judge:
        """Return the judge of answers from this map. Without a threshold the pictures are not looked at.

        Raises BundleError.
        """
        if Acceptance.find_in(bundle) is None:
            return Judge()
        return Judge.from_bundle(bundle, ScoreSetup.from_map(map_, top_k, cascade))

    def judge(self, answer: Recognition, *, monitored: bool = True) -> Recognition:
        """Return the answer with `accepted`, `confidence`, `reason` and `warning` filled in.

        monitored: count the answer among those that are compared with the calibration.
        """
        if self.acceptance is None:
            return replace(answer, reason=self.reason)
        if not answer.complete:
            return replace(answer, reason=INCOMPLETE)
        reading = Reading.from_matches(answer.matches, self.acceptance.measure)
        if self.monitor is not None and monitored:
            self.monitor.add(reading)
        accepted = self.acceptance.accepts(answer.best)
        return replace(
            answer,
            accepted=accepted,
            confidence=self.acceptance.confidence(reading.value),
            reason=ACCEPTED if accepted else TOO_LOW if self.acceptance.measure is Measure.SCORE else NOT_SIMILAR,
            acceptance=self.acceptance,
            warning=None if self.monitor is None else self.monitor.warning,
        )
