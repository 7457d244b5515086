"""Decide for each answer whether a robot may act on it."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import numpy.typing as npt

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
ADDED = f"{UNCALIBRATED} for a candidate that was added to the map later"

log = logging.getLogger(__name__)


class Judge:
    """Accept or reject answers by a calibrated threshold.

    A map may have grown since. An answer keeps its decision if all of its candidates were in the calibrated map: it is
    the answer that the calibrated map would give.

    acceptance: the threshold, or None if no threshold is valid for these answers.
    reason: the reason why no threshold is valid.
    added: number of the map's pictures that were added after the calibration. They are its last ones.
    monitor: compares the answers with those of the calibration. None without a threshold, or with one whose calibration
    stored no samples.
    """

    def __init__(
        self, acceptance: Acceptance | None = None, reason: str = UNCALIBRATED, *, calibrated: int = 0, added: int = 0
    ) -> None:
        """Take a threshold that is valid for the first `calibrated` pictures of the map if others were added."""
        self.acceptance = acceptance
        self.reason = reason
        self.added = added
        self._calibrated, self._warned = calibrated, False
        self.monitor = ScoreMonitor(acceptance) if acceptance is not None and acceptance.samples else None

    @staticmethod
    def from_bundle(bundle: Bundle, setup: ScoreSetup | None, pictures: int = 0) -> Judge:
        """Return the judge of a map's bundle for answers of this setup.

        setup: None for answers of a model with a pair classifier by descriptors alone, which are never calibrated.
        pictures: number of pictures of the map, if it has more than the setup.
        Raises BundleError.
        """
        acceptance = Acceptance.find_in(bundle)
        if acceptance is None:
            return Judge()
        if setup is None:
            return Judge(None, f"{UNCALIBRATED} for answers by descriptors alone")
        objection = acceptance.find_objection(setup)
        if objection is not None:
            return Judge(None, objection)
        calibrated = setup.pictures or 0
        return Judge(acceptance, calibrated=calibrated, added=max(0, pictures - calibrated))

    @staticmethod
    def from_map(bundle: Bundle, map_: Map, top_k: int, cascade: Cascade | None) -> Judge:
        """Return the judge of answers from this map. Without a threshold the pictures are not looked at.

        Raises BundleError.
        """
        acceptance = Acceptance.find_in(bundle)
        if acceptance is None:
            return Judge()
        setup = ScoreSetup.from_map(map_, top_k, cascade, acceptance.setup.pictures)
        return Judge.from_bundle(bundle, setup, len(map_.records))

    def judge(
        self, answer: Recognition, candidates: npt.NDArray[np.int64] | None = None, *, monitored: bool = True
    ) -> Recognition:
        """Return the answer with `accepted`, `confidence`, `reason` and `warning` filled in.

        candidates: rows of all candidates in the map. None stands for pictures that were calibrated.
        monitored: count the answer among those that are compared with the calibration.
        """
        if self.acceptance is None:
            return replace(answer, reason=self.reason)
        if not answer.complete:
            return replace(answer, reason=INCOMPLETE)
        if self.added and candidates is not None and (candidates >= self._calibrated).any():
            self._warn()
            return replace(answer, reason=ADDED)
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

    def describe_added(self) -> str:
        """Return a sentence on the pictures that were added after the calibration."""
        return (
            f"{self.added} pictures were added after the calibration; answers with one of them among their candidates "
            "have no decision until `pairvpr calibrate threshold` runs again"
        )

    def _warn(self) -> None:
        """Log once why answers have no decision."""
        if not self._warned:
            self._warned = True
            log.warning("%s", self.describe_added())
