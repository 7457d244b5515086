"""Name the number that ranks the candidates of a model's answers: pair scores or similarities."""

from __future__ import annotations

from enum import Enum

DESCRIPTOR_ALONE = "no pair classifier: nothing is re-ranked, and the similarity of descriptors decides"
"""The line that commands print once for a model without a pair classifier."""


class Measure(str, Enum):
    """The number that orders candidates, that thresholds apply to and that tells how sure an answer is.

    SCORE: pair score of the pair classifier, both orders summed.
    SIMILARITY: cosine similarity of the global descriptors, for a model without a pair classifier.
    """

    SCORE = "score"
    SIMILARITY = "similarity"

    def __str__(self) -> str:
        return "pair score" if self is Measure.SCORE else "similarity"
