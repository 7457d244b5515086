"""The answer to "where is this?": ranked matches and how they came about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pairvpr.runtime.geometry.poses import Gps, Pose

if TYPE_CHECKING:
    from pairvpr.runtime.calibrated.acceptance import Acceptance

FORMAT = 1
Stage = Literal["full", "prefix", "descriptor"]


@dataclass(frozen=True)
class Match:
    """One database picture in the order of the answer.

    score: pair score, both orders summed (higher = same place); None where the pair was not compared.
    similarity: cosine similarity of the global descriptors.
    stage: "full" where the pair classifier compared the pair; "prefix" where the cascade dropped it after the first
    blocks, its score then being what they predict; "descriptor" where only descriptors were compared.
    """

    name: str
    score: float | None
    similarity: float
    stage: Stage
    pose: Pose | Gps | None = None

    def as_json(self) -> dict[str, Any]:
        """The match as it stands in JSONL output."""
        return {
            "name": self.name,
            "score": None if self.score is None else round(self.score, 6),
            "similarity": round(self.similarity, 6),
            "stage": self.stage,
            "pose": None if self.pose is None else self.pose.as_json(),
        }


@dataclass(frozen=True)
class Filtered:
    """Where the robot is after all pictures so far, see `pairvpr.runtime.sequence.filter`.

    name: the likeliest database picture. probability: of being there or beside it. off_map: of being nowhere in the
    map. pose: that of the picture.
    """

    name: str
    probability: float
    off_map: float
    pose: Pose | Gps | None = None

    def as_json(self) -> dict[str, Any]:
        """The place as it stands in JSONL output."""
        return {
            "name": self.name,
            "probability": round(self.probability, 6),
            "off_map": round(self.off_map, 6),
            "pose": None if self.pose is None else self.pose.as_json(),
        }


@dataclass(frozen=True)
class Recognition:
    """The answer for one query picture.

    matches: all candidates, best first: fully compared ones by score, then those that the cascade dropped by
    predicted score, then the others by similarity.
    accepted: whether a robot may act on the first match; confidence: the chance that it is right. None where no
    calibration holds for this answer (see `pairvpr.runtime.calibrated`); `reason` says why, and why not accepted.
    acceptance: the calibration that says so, None exactly where `accepted` is None.
    compared: how many candidates the pair classifier compared, if only to drop them; complete: whether that is all it
    was asked to, which it is not where the budget was spent before.
    timings: milliseconds by step ("decode", "preprocess", "encode", "search", "gather", "rerank", "total").
    error: why the picture could not be read, None where it could.
    sequence: where the robot is after this and all earlier pictures, None without a `SequenceFilter`; the rest is of
    this picture alone.
    """

    query: str
    timestamp: float | None = None
    matches: tuple[Match, ...] = ()
    accepted: bool | None = None
    confidence: float | None = None
    reason: str = "not calibrated"
    acceptance: Acceptance | None = None
    compared: int = 0
    complete: bool = False
    timings: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    sequence: Filtered | None = None

    @property
    def best(self) -> Match:
        """The first match. Raises LookupError where there is none (`error` says why)."""
        if not self.matches:
            raise LookupError(f"{self.query}: no match ({self.error})")
        return self.matches[0]

    def to_json(self, matches: int = 10) -> str:
        """One line of JSON, format 1, with the first `matches` matches; `sequence` where a filter gave one."""
        content = {
            "format": FORMAT,
            "query": self.query,
            "timestamp": self.timestamp,
            "best": self.matches[0].as_json() if self.matches else None,
            "matches": [match.as_json() for match in self.matches[:matches]],
            "accepted": self.accepted,
            "confidence": None if self.confidence is None else round(self.confidence, 6),
            "reason": self.reason,
            "compared": self.compared,
            "complete": self.complete,
            "timings": {step: round(value, 2) for step, value in self.timings.items()},
            "error": self.error,
        }
        if self.sequence is not None:
            content["sequence"] = self.sequence.as_json()
        return json.dumps(content, ensure_ascii=False)
