"""The cascade: after the pair prefix a linear head predicts the score, and only candidates with prospects go on.

It is learnt and measured by `pairvpr.calibration.cascade` and stored in the bundle.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.bundle import Bundle, check_model, read_result
from pairvpr.runtime.model import SUMMARIES

KEY = "cascade"
"""Its name among a bundle's calibration results."""


@dataclass(frozen=True, eq=False)
class Cascade:
    """A head, how far below the best prediction a candidate may lie, and what that was measured to cost.

    identity: of the bundle whose prefix it reads. engine: what it was calibrated on.
    head, bias: score = head (4 D,) . what the prefix says of a pair in short + bias.
    margin: the winner was at most so far below the best prediction in the share `probability` of the queries it was
    chosen on. candidates: at most, per query. fitted: queries that head and margin come from.
    checked: other queries, in `survived` of which the candidate with the best full score went on; interval: of that
    share, 95 %. kept: share of all their candidates that went on, in batches as they were in use.
    """

    identity: str
    engine: str
    head: npt.NDArray[np.float32]
    bias: float
    margin: float
    probability: float
    candidates: int
    fitted: int
    checked: int
    survived: int
    interval: tuple[float, float]
    kept: float

    @staticmethod
    def find_in(bundle: Bundle) -> Cascade | None:
        """The bundle's cascade, None where it was not calibrated; raises BundleError for a damaged or foreign one."""

        def parse(content: Any) -> Cascade:
            head = np.frombuffer(base64.b64decode(content["head"], validate=True), "<f4").astype(np.float32)
            low, high = content["interval"]
            found = Cascade(**{**content, "head": head, "interval": (low, high)})
            check_model(bundle, found.identity)
            found._check(2 * len(SUMMARIES) * bundle.info.dims.token_dim)
            return found

        return read_result(
            bundle, KEY, "cascade", "calibrate again with `pairvpr calibrate`, or ask for exact answers", parse
        )

    def _check(self, inputs: int) -> None:
        """Raise ValueError for numbers that no calibration of a head of so many inputs yields."""
        numbers = np.array([self.bias, self.margin, self.kept, *self.interval, *self.head], np.float64)
        if len(self.head) != inputs or not np.isfinite(numbers).all() or self.margin < 0:
            raise ValueError(f"a head of {len(self.head)} numbers, margin {self.margin}")
        if not 0 <= self.survived <= self.checked or self.checked < 1:
            raise ValueError(f"{self.survived} of {self.checked} queries")

    def to_json(self) -> dict[str, Any]:
        """As it is stored: `head` as base64 of little-endian float32."""
        head = base64.b64encode(self.head.astype("<f4").tobytes()).decode()
        return {**vars(self), "head": head, "interval": list(self.interval)}

    def figures(self) -> dict[str, Any]:
        """What was measured, without the head."""
        return {name: value for name, value in self.to_json().items() if name != "head"}

    def predict(self, summaries: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Predicted scores (n,) from the summaries (n, 4 D) of pairs after the prefix."""
        return summaries @ self.head + np.float32(self.bias)

    def keep(self, predicted: npt.NDArray[np.float32], best: float) -> npt.NDArray[np.int64]:
        """Which of the predictions (n,) are within the margin of the `best` so far, theirs included.

        More candidates can only raise `best`, so one that would go on among all of them goes on in any batches.
        """
        return np.flatnonzero(predicted >= best - self.margin)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.kept:.0%} of up to {self.candidates} candidates go on, the best among them in {self.survived} of "
            f"{self.checked} queries ({self.survived / self.checked:.1%}, 95 % interval {low:.1%} to {high:.1%})"
        )
