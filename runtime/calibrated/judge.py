"""Decide of each answer whether a robot may act on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.calibrated.acceptance import UNCALIBRATED, Acceptance, ScoreSetup

ACCEPTED = "accepted"
TOO_LOW = "score too low: not in the map, or not recognisable"
INCOMPLETE = "incomplete: the threshold is calibrated on answers with all candidates compared"


class Judge:
    """Says of answers whether they may be acted on.

    acceptance: None where nothing holds for these answers; reason: why then.
    """

    def __init__(self, acceptance: Acceptance | None = None, reason: str = UNCALIBRATED) -> None:
        self._acceptance = acceptance
        self._reason = reason

    @staticmethod
    def from_bundle(bundle: Bundle, setup: ScoreSetup | None) -> Judge:
        """The judge of a map's bundle for answers of this setup; None: by descriptors alone, never calibrated.

        Raises BundleError.
        """
        acceptance = Acceptance.find_in(bundle)
        if acceptance is None:
            return Judge()
        if setup is None:
            return Judge(None, f"{UNCALIBRATED} for answers by descriptors alone")
        objection = acceptance.objection(setup)
        return Judge(acceptance) if objection is None else Judge(None, objection)

    def judge(self, answer: Recognition) -> Recognition:
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

    @property
    def brief(self) -> str:
        """What holds, without the figures behind it."""
        return self._reason if self._acceptance is None else self._acceptance.brief

    def __str__(self) -> str:
        return str(self._acceptance or self._reason)
