"""Read and apply the cascade: a linear head predicts the score after the pair prefix and drops poor candidates.

`pairvpr.calibration.cascade` fits and checks the cascade. The bundle stores it.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.bundle import Bundle, check_model, read_result
from pairvpr.runtime.model import SUMMARIES
from pairvpr.validation import Check, check_fields, check_interval, check_real, check_text, real, whole

KEY = "cascade"
"""Key of the cascade among a bundle's calibration results."""
_LONGEST_HEAD = 4 << 20  # characters; the largest tokens need a third of it
_COUNT, _SHARE = whole(0, 10**9), real(0, 1)
_CHECKS: dict[str, Check] = {
    "identity": check_text,
    "engine": check_text,
    "head": lambda value, name: check_text(value, name, _LONGEST_HEAD),
    "bias": check_real,
    "margin": real(0),
    "probability": _SHARE,
    **dict.fromkeys(("candidates", "fitted", "survived"), _COUNT),
    "checked": whole(1, 10**9),
    "interval": check_interval,
    "kept": _SHARE,
}


@dataclass(frozen=True, eq=False)
class Cascade:
    """Hold the head, the margin, and the measured cost of dropping candidates.

    identity: identity of the bundle whose prefix the head reads.
    engine: engine used for the calibration.
    head, bias: predicted score = head (4 D,) . summary of a pair after the prefix + bias.
    margin: largest distance of a kept candidate's prediction below the best prediction.
    probability: share of the fitted queries whose winner lies within the margin.
    candidates: most candidates of a query.
    fitted: number of queries that head and margin were fitted on.
    checked: number of other queries, which the cascade was checked on.
    survived: checked queries whose candidate with the best full score was kept.
    interval: 95 % interval of the share survived / checked.
    kept: share of the checked queries' candidates that was kept, in batches as in use.
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
        """Read the bundle's cascade. Return None if the bundle has none.

        Raises BundleError for a damaged cascade and for another model's.
        """

        def parse(content: Any) -> Cascade:
            interval = check_fields(content, "it", _CHECKS)["interval"]
            head = np.frombuffer(base64.b64decode(content["head"], validate=True), "<f4").astype(np.float32)
            # The numbers stay as they are stored: a threshold's setup has a checksum of them.
            found = Cascade(**{**content, "head": head, "interval": interval})
            check_model(bundle, found.identity)
            found._check(2 * len(SUMMARIES) * bundle.info.dims.token_dim)
            return found

        return read_result(
            bundle, KEY, "cascade", "calibrate again with `pairvpr calibrate cascade`, or ask for exact answers", parse
        )

    def _check(self, inputs: int) -> None:
        """Raise ValueError for numbers that no calibration of a head with this number of inputs yields."""
        if len(self.head) != inputs or not np.isfinite(self.head).all():
            raise ValueError(f"head is not one of {inputs} finite numbers")
        if self.survived > self.checked:
            raise ValueError(f"{self.survived} of {self.checked} queries")

    def to_json(self) -> dict[str, Any]:
        """Return the cascade as the bundle stores it: `head` is base64 of little-endian float32."""
        head = base64.b64encode(self.head.astype("<f4").tobytes()).decode()
        return {**vars(self), "head": head, "interval": list(self.interval)}

    def figures(self) -> dict[str, Any]:
        """Return the measured figures, without the head."""
        return {name: value for name, value in self.to_json().items() if name != "head"}

    def predict(self, summaries: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return predicted scores (n,) from the summaries (n, 4 D) of pairs after the prefix."""
        predicted: npt.NDArray[np.float32] = summaries @ self.head + np.float32(self.bias)
        return predicted

    def keep(self, predicted: npt.NDArray[np.float32], best: float) -> npt.NDArray[np.int64]:
        """Return the indices of the predictions (n,) that lie within the margin of `best`.

        best: the best prediction so far, these predictions included. More candidates can only raise it, so a
        candidate that is kept among all of them is kept in any batches.
        """
        return np.flatnonzero(predicted >= best - self.margin)
