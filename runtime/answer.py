"""Hold the answer to "where is this?": ranked matches, acceptance and timings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pairvpr.printing import json_line
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.measure import Measure

if TYPE_CHECKING:
    from pairvpr.runtime.calibrated.acceptance import Acceptance

FORMAT = 1
Stage = Literal["full", "prefix", "descriptor"]


@dataclass(frozen=True)
class Match:
    """Hold one database picture in the order of the answer.

    name: name of the picture in the map.
    score: pair score, both orders summed (higher = same place). None if the pair was not compared.
    similarity: cosine similarity of the global descriptors.
    stage: "full" if the pair classifier compared the pair. "prefix" if the cascade dropped it after the first blocks,
    with a predicted score. "descriptor" if only descriptors were compared.
    pose: pose or GPS position of the picture, or None.
    """

    name: str
    score: float | None
    similarity: float
    stage: Stage
    pose: Pose | Gps | None = None

    def value(self, measure: Measure) -> float | None:
        """Return the number that decides by this measure. None if the measure is pair scores and none is complete."""
        if measure is Measure.SIMILARITY:
            return self.similarity
        return self.score if self.stage == "full" else None

    def as_json(self) -> dict[str, Any]:
        """Return the match as JSON values."""
        return {
            "name": self.name,
            "score": None if self.score is None else round(self.score, 6),
            "similarity": round(self.similarity, 6),
            "stage": self.stage,
            "pose": None if self.pose is None else self.pose.as_json(),
        }


@dataclass(frozen=True)
class Filtered:
    """Hold the position after all pictures so far. See `pairvpr.runtime.sequence.filter`.

    name: the likeliest database picture.
    probability: probability of being at this picture or next to it.
    off_map: probability of being outside the map.
    pose: pose or GPS position of the picture, or None.
    searched: number of map pictures that the last picture was searched in, of all of them. None without tracking.
    """

    name: str
    probability: float
    off_map: float
    pose: Pose | Gps | None = None
    searched: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the position as JSON values, with `searched` if the robot is tracked."""
        content: dict[str, Any] = {
            "name": self.name,
            "probability": round(self.probability, 6),
            "off_map": round(self.off_map, 6),
            "pose": None if self.pose is None else self.pose.as_json(),
        }
        return content if self.searched is None else content | {"searched": self.searched}


@dataclass(frozen=True)
class ShardCount:
    """Count the shards of a fleet behind an answer.

    asked, answered: number of shards.
    version: number of the fleet's version.
    """

    asked: int
    answered: int
    version: int


@dataclass(frozen=True)
class Recognition:
    """Hold the answer for one query picture.

    query: name of the picture.
    timestamp: seconds, or None.
    matches: all candidates, best first: fully compared ones by score, then those that the cascade dropped by predicted
    score, then the others by similarity.
    accepted: whether a robot may act on the first match. None if no threshold is valid for this answer (see
    `pairvpr.runtime.calibrated`).
    confidence: chance that the first match is right, or None.
    reason: reason for `accepted`.
    acceptance: the threshold in use. None if `accepted` is None.
    warning: reason why the threshold may not hold, because the run's scores are unlike those of the calibration; or
    None.
    compared: number of candidates that the pair classifier compared, dropped ones included.
    complete: whether all candidates were compared. False if the budget was spent before.
    timings: milliseconds by step ("decode", "preprocess", "encode", "search", "gather", "rerank", "total").
    error: reason why the picture could not be read, or None.
    shards: the shards of a fleet that were asked. None for the answer of a map.
    sequence: position after this and all earlier pictures. None without a `SequenceFilter`. All other fields concern
    this picture alone.
    cameras: answers of a rig's cameras, of which this one speaks for the robot. Empty for a single picture.
    camera: number of this answer's camera in them, or None.
    """

    query: str
    timestamp: float | None = None
    matches: tuple[Match, ...] = ()
    accepted: bool | None = None
    confidence: float | None = None
    reason: str = "not calibrated"
    acceptance: Acceptance | None = None
    warning: str | None = None
    compared: int = 0
    complete: bool = False
    timings: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    sequence: Filtered | None = None
    shards: ShardCount | None = None
    cameras: tuple[Recognition, ...] = ()
    camera: int | None = None

    @property
    def best(self) -> Match:
        """Return the first match. Raises LookupError if there is none (see `error`)."""
        if not self.matches:
            raise LookupError(f"{self.query}: no match ({self.error})")
        return self.matches[0]

    @property
    def measure(self) -> Measure:
        """Return the number that ranks the matches. Similarities do if no pair was to be compared."""
        unscored = self.complete and self.matches and self.matches[0].stage == "descriptor"
        return Measure.SIMILARITY if unscored else Measure.SCORE

    def in_short(self) -> dict[str, Any]:
        """Return the answer of one camera of a rig as JSON values, with its first match alone."""
        return {
            "query": self.query,
            "best": self.matches[0].as_json() if self.matches else None,
            "accepted": self.accepted,
            "confidence": None if self.confidence is None else round(self.confidence, 6),
            "reason": self.reason,
            "error": self.error,
        }

    def to_json(self, matches: int = 10) -> str:
        """Return one line of JSON, format 1, with the first `matches` matches.

        `sequence`, `shards`, `warning`, and `camera` and `cameras` are added if known.
        """
        content: dict[str, Any] = {
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
        if self.shards is not None:
            content["shards"] = asdict(self.shards)
        if self.warning is not None:
            content["warning"] = self.warning
        if self.camera is not None:
            content |= {"camera": self.camera, "cameras": [each.in_short() for each in self.cameras]}
        return json_line(content)
