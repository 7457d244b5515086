"""The cascade: after the pair prefix a linear head predicts the score, and only candidates with prospects go on.

It is learnt and measured by `pairvpr.calibration.cascade` and stored in the bundle.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import BundleError
from pairvpr.runtime.bundle import FILE, Bundle

KEY = "cascade"
"""Its name among a bundle's calibration results."""


@dataclass(frozen=True, eq=False)
class Cascade:
    """A head, how far below the best prediction a candidate may lie, and what that was measured to cost.

    identity: of the bundle whose prefix it reads. engine: what it was calibrated on.
    head, bias: score = head (2 D,) . both class tokens + bias.
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
    def of(bundle: Bundle) -> Cascade | None:
        """The bundle's cascade, None where it was not calibrated; raises BundleError for a damaged or foreign one."""
        content = bundle.info.calibration.get(KEY)
        if content is None:
            return None
        where, remedy = bundle.path / FILE, "calibrate again with `pairvpr calibrate`, or ask for exact answers"
        try:
            low, high = content["interval"]
            head = np.frombuffer(base64.b64decode(content["head"], validate=True), "<f4").astype(np.float32)
            cascade = Cascade(**{**content, "head": head, "interval": (low, high)})
            numbers = np.array([cascade.bias, cascade.margin, cascade.kept, low, high, *head], np.float64)
            if len(head) != 2 * bundle.info.dims.token_dim or not np.isfinite(numbers).all() or cascade.margin < 0:
                raise ValueError(f"a head of {len(head)} numbers, margin {cascade.margin}")
            if not 0 <= cascade.survived <= cascade.checked or cascade.checked < 1:
                raise ValueError(f"{cascade.survived} of {cascade.checked} queries")
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{where}: its cascade is no calibration of this model's ({error}); {remedy}") from error
        if cascade.identity != bundle.identity:
            raise BundleError(
                f"{where}: its cascade was calibrated for model {str(cascade.identity)[:12]}, not for "
                f"{bundle.identity[:12]}; {remedy}"
            )
        return cascade

    def to_json(self) -> dict[str, Any]:
        """As it is stored: `head` as base64 of little-endian float32."""
        head = base64.b64encode(self.head.astype("<f4").tobytes()).decode()
        return {**vars(self), "head": head, "interval": list(self.interval)}

    def figures(self) -> dict[str, Any]:
        """What was measured, without the head."""
        return {name: value for name, value in self.to_json().items() if name != "head"}

    def predict(self, class_tokens: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Predicted scores (n,) from class tokens (n, 2, D) after the prefix."""
        return class_tokens.reshape(len(class_tokens), -1).astype(np.float32) @ self.head + np.float32(self.bias)

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
