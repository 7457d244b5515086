"""Read and apply the cascade: looks at the candidates, from cheap to thorough, each of which drops poor candidates.

A look's linear head predicts the score from what the look gives and from the descriptors' similarity.
`pairvpr.calibration.cascade` fits and checks the cascade. The bundle stores it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.bundle import Bundle, check_model, read_result
from pairvpr.runtime.bundle_info import LOOK, Dims
from pairvpr.runtime.model import SUMMARIES
from pairvpr.validation import (
    Check,
    check_fields,
    check_interval,
    check_list,
    check_real,
    check_text,
    optional,
    real,
    whole,
)

KEY = "cascade"
"""Key of the cascade among a bundle's calibration results."""
PREFIX = "pair_prefix"
LEAST = 8
"""Fewest candidates that go on after each step. On half of 861 real queries `nano`'s best was always among them."""
_LONGEST_HEAD = 4 << 20  # characters; the largest tokens need a third of it
_COUNT, _SHARE = whole(0, 10**9), real(0, 1)
_LOOK_CHECKS: dict[str, Check] = {
    "graph": check_text,
    "head": lambda value, name: check_text(value, name, _LONGEST_HEAD),
    "bias": check_real,
    "margin": real(0),
    "kept": _SHARE,
}
_CHECKS: dict[str, Check] = {
    "identity": check_text,
    "engine": check_text,
    "similarity_margin": optional(real(0)),
    "looks": lambda value, name: [check_fields(each, "a look", _LOOK_CHECKS) for each in check_list(value, name, 1, 2)],
    "probability": _SHARE,
    **dict.fromkeys(("candidates", "fitted", "survived"), _COUNT),
    "checked": whole(1, 10**9),
    "interval": check_interval,
    "compared": _SHARE,
}


@dataclass(frozen=True, eq=False)
class Look:
    """Hold the head of a look and its margin.

    graph: the graph whose outputs the head reads, LOOK or PREFIX.
    head, bias: predicted score = head (d + 1,) . (outputs (d,), similarity) + bias.
    margin: largest distance of a kept candidate's prediction below the best prediction, but for the LEAST best.
    kept: share of the checked queries' candidates that went on after this look, in batches as in use.
    """

    graph: str
    head: npt.NDArray[np.float32]
    bias: float
    margin: float
    kept: float

    def predict(
        self, outputs: npt.NDArray[np.float32], similarities: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return predicted scores (n,) from the look's outputs (n, d) and the similarities (n,)."""
        predicted: npt.NDArray[np.float32] = look_inputs(outputs, similarities) @ self.head + np.float32(self.bias)
        return predicted

    def keep(self, predicted: npt.NDArray[np.float32], earlier: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Return the indices of the predictions (n,) within the margin of the best, or among the LEAST best.

        earlier: predictions of the batches before. More candidates can only raise the limit, so a candidate that is
        kept among all of them is kept in any batches.
        """
        return np.flatnonzero(select_near(predicted, self.margin, np.concatenate([earlier, predicted])))

    def _check(self, dims: Dims) -> None:
        """Raise ValueError for a head that no calibration yields for a bundle of these sizes."""
        inputs = {LOOK: dims.look, PREFIX: 2 * len(SUMMARIES) * dims.token_dim}[self.graph]
        if not inputs or len(self.head) != inputs + 1 or not np.isfinite(self.head).all():
            raise ValueError(f"head of {self.graph} is not one of {inputs + 1} finite numbers")


@dataclass(frozen=True, eq=False)
class Cascade:
    """Hold the looks, and the measured cost of dropping candidates.

    identity: identity of the bundle whose graphs the heads read.
    engine: engine used for the calibration.
    similarity_margin: largest distance of a compared candidate's similarity below the best. None compares all.
    looks: in the order in which they are taken.
    probability: share of the fitted queries whose winner every margin keeps.
    candidates: most candidates of a query.
    fitted: number of queries that heads and margins were fitted on.
    checked: number of other queries, which the cascade was checked on.
    survived: checked queries whose candidate with the best full score was kept.
    interval: 95 % interval of the share survived / checked.
    compared: share of the checked queries' candidates that the similarity let through to the first look.
    """

    identity: str
    engine: str
    similarity_margin: float | None
    looks: Sequence[Look]
    probability: float
    candidates: int
    fitted: int
    checked: int
    survived: int
    interval: tuple[float, float]
    compared: float

    @property
    def kept(self) -> float:
        """Return the share of the checked queries' candidates that was compared in full."""
        return self.looks[-1].kept

    @property
    def doubts(self) -> list[str]:
        """Return the reasons to calibrate again with more pictures."""
        found = []
        if self.fitted < queries_needed(self.probability):
            found.append(
                f"learned from {self.fitted} pictures; {queries_needed(self.probability)} are needed to keep the best "
                f"candidate of {self.probability:.1%}"
            )
        if self.interval[1] < self.probability:
            found.append(f"the best candidate was kept in less than {self.probability:.1%} of the checked queries")
        return found

    @staticmethod
    def find_in(bundle: Bundle) -> Cascade | None:
        """Read the bundle's cascade. Return None if the bundle has none.

        Raises BundleError for a damaged cascade and for another model's.
        """

        def parse(content: Any) -> Cascade:
            found = _decode(_of_one_look(content) if "head" in content else content)
            check_model(bundle, found.identity)
            found._check(bundle.info.dims)
            return found

        return read_result(
            bundle, KEY, "cascade", "calibrate again with `pairvpr calibrate cascade`, or ask for exact answers", parse
        )

    def _check(self, dims: Dims) -> None:
        """Raise ValueError for numbers that no calibration yields for a bundle of these sizes."""
        graphs = [look.graph for look in self.looks]
        if graphs not in ([LOOK, PREFIX], [PREFIX]):
            raise ValueError(f"looks are of {', '.join(graphs)!r:.100}")
        for look in self.looks:
            look._check(dims)
        if self.survived > self.checked:
            raise ValueError(f"{self.survived} of {self.checked} queries")

    def to_json(self) -> dict[str, Any]:
        """Return the cascade as the bundle stores it: a `head` is base64 of little-endian float32."""
        looks = [
            {**vars(look), "head": base64.b64encode(look.head.astype("<f4").tobytes()).decode()} for look in self.looks
        ]
        return {**vars(self), "looks": looks, "interval": list(self.interval)}

    def figures(self) -> dict[str, Any]:
        """Return the measured figures, without the heads."""
        stored = self.to_json()
        looks = [{name: value for name, value in look.items() if name != "head"} for look in stored["looks"]]
        return {**stored, "looks": looks, "kept": self.kept}


def queries_needed(probability: float) -> int:
    """Return the number of queries from which margins that keep the winner with this probability can be learned.

    With n queries the largest gap is exceeded by a further one with a chance of 1 / (n + 1): Vovk, Gammerman & Shafer
    2005.
    """
    return math.ceil(probability / max(1 - probability, 1e-9) - 1e-9)


def select_similar(similarities: npt.NDArray[np.float32], margin: float | None) -> npt.NDArray[np.bool_]:
    """Return a mask (k,) of the candidates to compare, by all similarities. A margin of None selects all."""
    if margin is None or not len(similarities):
        return np.ones(len(similarities), np.bool_)
    return select_near(similarities, margin, similarities)


def select_near(
    values: npt.NDArray[np.float32], margin: float, known: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """Return a mask of the values within the margin of the best known one, or as good as the LEAST-th best."""
    limit = known.max() - np.float32(margin)
    last = np.sort(known)[-LEAST] if len(known) >= LEAST else -np.inf
    near: npt.NDArray[np.bool_] = values >= min(limit, last)
    return near


def look_inputs(outputs: npt.NDArray[np.float32], similarities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return what a head reads, (n, d + 1): a look's outputs (n, d) and the similarities (n,) of the descriptors."""
    return np.column_stack([outputs, similarities]).astype(np.float32, copy=False)


def _decode(content: Any) -> Cascade:
    """Validate and decode a stored cascade. Raises ValueError.

    The numbers stay as they are stored: a threshold's setup has a checksum of them.
    """
    checked = check_fields(content, "it", _CHECKS)
    looks = [
        Look(**{**each, "head": np.frombuffer(base64.b64decode(each["head"], validate=True), "<f4").astype(np.float32)})
        for each in content["looks"]
    ]
    return Cascade(**{**content, "looks": looks, "interval": checked["interval"]})


def _of_one_look(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cascade as version 0.1.0 stored it in today's form: its head reads the prefix and no similarity."""
    names = ("bias", "margin", "kept")
    head = base64.b64encode(base64.b64decode(content["head"], validate=True) + bytes(4)).decode()
    look = {"graph": PREFIX, "head": head, **{name: content[name] for name in names}}
    others = {name: value for name, value in content.items() if name not in ("head", *names)}
    return {**others, "similarity_margin": None, "looks": [look], "compared": 1.0}
