"""Record a run for its page, in bounded memory however long the run is."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from pairvpr.html.album import thumbnail
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.geometry.utm_names import named_pose
from pairvpr.runtime.sources import Frame
from pairvpr.viewing.latency import Latency
from pairvpr.viewing.thinning import Thinned

ANSWERS = 4000  # kept at most, evenly chosen; limits of `Thinned` must be even
STRIPS = 24
ERRORS = 20  # the last
SAID = {"accepted": "accepted", "rejected": "rejected", "unjudged": "not judged"}


@dataclass(frozen=True)
class Answered:
    """An answer without the matches below the best one.

    verdict: "accepted", "rejected" or "unjudged", also the name of a CSS class. own: the place of the query, if its
    source tells it. at: the place of the match. timings: milliseconds by step. number: of the frame in the run, from 1.
    filtered: the place that the sequence filter gives, and its picture's name; None without a filter or place.
    """

    query: str
    best: str
    score: float | None
    similarity: float
    verdict: str
    own: Pose | Gps | None
    at: Pose | Gps | None
    timings: Mapping[str, float]
    number: int = 1
    filtered: tuple[Pose | Gps, str] | None = None

    @staticmethod
    def from_answer(frame: Frame, answer: Recognition, number: int = 1) -> Answered:
        """Return the answer for a frame; it must have a match."""
        sequence = answer.sequence
        best = answer.best
        verdict = {True: "accepted", False: "rejected", None: "unjudged"}[answer.accepted]
        own = frame.pose or frame.gps or named_pose(frame.name)
        return Answered(
            frame.name,
            best.name,
            best.score,
            best.similarity,
            verdict,
            own,
            best.pose,
            dict(answer.timings),
            number,
            None if sequence is None or sequence.pose is None else (sequence.pose, sequence.name),
        )

    @property
    def off(self) -> float | None:
        """Metres between the places of query and match, None unless both are known in one frame."""
        if self.own is None or self.at is None:
            return None
        distance = distance_between(self.own, self.at)
        return distance if math.isfinite(distance) else None

    @property
    def said(self) -> str:
        """Score, similarity, verdict and error in words."""
        score = "not compared" if self.score is None else f"score {self.score:+.3f}"
        off = "" if self.off is None else f", {self.off:,.1f} m off"
        return f"{score}, similarity {self.similarity:.3f}, {SAID[self.verdict]}{off}"


@dataclass
class RunRecord:
    """A run in numbers: counts and times of all answers, some of the answers, some pictures, and the last errors.

    It takes about 5 MB at most: ANSWERS answers, STRIPS thumbnails, ERRORS lines, and the bins of `Latency`.
    began: seconds since 1970. first, last: seconds of a monotonic clock at the first and the last answer.
    unread: frames that could not be read. incomplete: answers that compared fewer candidates than asked for.
    threshold: lowest score of an accepted answer; None if no answer was judged.
    """

    began: float = field(default_factory=time.time)
    first: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)
    total: int = 0
    unread: int = 0
    incomplete: int = 0
    threshold: float | None = None
    verdicts: Counter[str] = field(default_factory=Counter)
    latency: Latency = field(default_factory=Latency)
    answers: Thinned[Answered] = field(default_factory=lambda: Thinned(ANSWERS))
    strips: Thinned[tuple[Answered, bytes]] = field(default_factory=lambda: Thinned(STRIPS))
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=ERRORS))

    def add(self, frame: Frame, answer: Recognition) -> None:
        """Add the answer for a frame."""
        self.last = time.monotonic()
        if not self.total:
            self.first = self.last
        self.total += 1
        picture = frame.picture
        if picture is None:
            self.unread += 1
            self.errors.append(str(answer.error))
            return
        kept = Answered.from_answer(frame, answer, self.total)
        if answer.acceptance is not None:
            self.threshold = answer.acceptance.threshold
        self.incomplete += not answer.complete
        self.verdicts[kept.verdict] += 1
        self.latency.add(self.last - self.first, answer.timings)
        self.answers.offer(lambda: kept)
        self.strips.offer(lambda: (kept, thumbnail(picture)))
