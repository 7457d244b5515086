"""One answer of the robot from the answers of its cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.calibrated.acceptance import METRES
from pairvpr.runtime.geometry.geodesy import distance_between


class Fused(NamedTuple):
    """The cameras' answers as they are published, and the index of the one that speaks for the robot."""

    answers: list[Recognition]
    chosen: int


def fuse(answers: Sequence[Recognition]) -> Fused:
    """Choose the accepted answer of highest confidence, unless accepted answers contradict each other.

    Two accepted answers contradict each other if their places lie further apart than the sum of their calibrated
    radii; then none of the round is accepted. Without an accepted answer the one of the highest score is chosen, or
    of the highest similarity if the model has no pair classifier.
    """
    accepted = [answer for answer in answers if answer.accepted]
    for first, second in combinations(accepted, 2):
        if _contradict(first, second):
            reason = f"cameras contradict each other: {first.query} and {second.query}"
            answers = [replace(each, accepted=False, reason=reason) if each.accepted else each for each in answers]
            break

    def rank(index: int) -> tuple[bool, float, float]:
        answer = answers[index]
        value = answer.matches[0].value(answer.measure) if answer.matches else None
        return bool(answer.accepted), answer.confidence or 0.0, float("-inf") if value is None else value

    return Fused(list(answers), max(range(len(answers)), key=rank))


def _contradict(first: Recognition, second: Recognition) -> bool:
    one, other = first.best.pose, second.best.pose
    limits = first.acceptance, second.acceptance
    if one is None or other is None or any(each is None or each.unit != METRES for each in limits):
        return False
    return distance_between(one, other) > sum(each.radius for each in limits if each is not None)
