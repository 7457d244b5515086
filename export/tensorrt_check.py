"""Compare TensorRT engines with the results of the network, at every batch size that they are built for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import DESCRIPTOR, ENCODER, LOOK
from pairvpr.runtime.engines.base import Engine
from pairvpr.runtime.engines.open import Engines
from pairvpr.runtime.engines.tensorrt import api
from pairvpr.runtime.features import Features
from pairvpr.runtime.model import Model
from pairvpr.runtime.reference import TOLERANCES, Errors, Reference, looks_error, measure

RIGHT_VERSION = (10, 12)
"""First TensorRT of which no wrong vision transformers are reported. Those of 10.3, as in JetPack 6, are."""
PAIR_GRAPHS = ("pair_prefix", "pair_suffix")

Progress = Callable[[str, int, int], None]
"""Called with the step, the number done, and the total."""


@dataclass(frozen=True)
class Verdict:
    """The result of the reference check of a bundle's engines.

    errors: of the first batch size at which a graph is wrong, or else of the largest.
    batch: that batch size.
    tokens: largest cosine distance of a token.
    wrong: graphs that may be wrong.
    """

    errors: Errors
    batch: int
    tokens: float
    wrong: tuple[str, ...]

    def require(self, bundle: Bundle, precision: str) -> None:
        """Raise EngineError if a graph is wrong."""
        if self.wrong:
            raise EngineError(
                f"{bundle.path}: the {precision} engines are wrong at batch {self.batch} (cosine distance of "
                f"descriptors {self.errors.cosine:.2g}, of tokens {self.tokens:.2g}, first looks off by "
                f"{self.errors.looks:.1%}, scores by {self.errors.scores:.2g}), and were not kept; {_remedy()}"
            )


def _remedy() -> str:
    version = api.version()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if not version.startswith("rtx-") and numbers < RIGHT_VERSION:
        return (
            f"TensorRT {version} is known to compute vision transformers wrongly on some boards: install JetPack 7.2 "
            "(TensorRT 10.16), or elsewhere a later TensorRT"
        )
    return "try another precision or --optimization-level, and report it"


def check_engines(
    bundle: Bundle, engines: Mapping[str, Engine], precision: str, batches: Sequence[int], progress: Progress
) -> Errors:
    """Check engines as `judge_engines` does, and return the largest batch's errors.

    Raises EngineError if an error is larger than the precision's tolerance.
    """
    verdict = judge_engines(bundle, engines, precision, batches, progress)
    verdict.require(bundle, precision)
    return verdict.errors


def judge_engines(
    bundle: Bundle, engines: Mapping[str, Engine], precision: str, batches: Sequence[int], progress: Progress
) -> Verdict:
    """Compare engines with the bundle's reference at each batch size, its few pictures repeated.

    Pair graphs get the stored tokens, so that the encoder is judged by itself. The suffix gets candidates in another
    order than the prefix.
    """
    truth = Reference.from_bundle(bundle)
    opened = Engines.from_graphs(engines, "tensorrt", precision, "check")
    # The two pictures of a small batch must have different scores, because their order is checked too.
    order = np.argsort(truth.scores) if bundle.info.pair_classifier else np.arange(len(truth.images))
    verdicts = []
    for done, batch in enumerate(batches):
        progress("batch sizes checked", done, len(batches))
        rows = np.resize(order, batch)
        model = Model(bundle, opened, batch)
        scores = _scores(model, truth, rows) if bundle.info.pair_classifier else np.zeros(0, np.float32)
        pictures = rows[: model.picture_batch]
        features = truth.encode(model, pictures)
        looks = None if truth.looks is None else model.look(truth.features.tokens[:1], truth.features.tokens[rows])
        verdicts.append(_verdict(truth, features, pictures, scores, rows, precision, looks))
    progress("batch sizes checked", len(batches), len(batches))
    wrong = tuple(graph for graph in bundle.info.graphs if any(graph in verdict.wrong for verdict in verdicts))
    first = next((verdict for verdict in verdicts if verdict.wrong), verdicts[-1])
    return dataclasses.replace(first, wrong=wrong)


def _scores(model: Model, truth: Reference, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the pair scores of the reference's first picture with those at `rows`, computed in the opposite order."""
    backwards = np.arange(len(rows))[::-1]
    scores = np.empty(len(rows), np.float32)
    prefix = model.prefix(truth.features.tokens[:1], truth.features.tokens[rows])
    scores[backwards] = model.suffix(prefix, backwards.copy())
    return scores


def _verdict(
    truth: Reference,
    features: Features,
    pictures: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    precision: str,
    looks: npt.NDArray[np.float32] | None,
) -> Verdict:
    """Judge the features of some of the reference's pictures, and scores and first looks of some of its pairs."""
    expected = Features(truth.features.descriptors[pictures], truth.features.tokens[pictures])
    tokens = _cosine_distance(features, expected)
    none = np.zeros(0, np.float32)
    encoded = measure(features, none, Reference(truth.images, expected, none), precision)
    known = truth.scores[rows] if len(truth.scores) else none
    scored = measure(expected, scores, Reference(truth.images, expected, known), precision)
    seen = looks_error(looks, truth.looks[rows]) if looks is not None and truth.looks is not None else 0.0
    look_right = seen <= TOLERANCES[precision].looks  # NaN is wrong
    encoder_right = encoded.ok and tokens <= TOLERANCES[precision].cosine
    if truth.descriptor_images is not None:  # which graph made the descriptors
        encoder_right = tokens <= TOLERANCES[precision].cosine
    wrong = (
        *(() if encoder_right else (ENCODER,)),
        *(() if encoded.ok or truth.descriptor_images is None else (DESCRIPTOR,)),
        *(() if look_right else (LOOK,)),
        *(() if scored.ok else PAIR_GRAPHS),
    )
    errors = dataclasses.replace(encoded, scores=scored.scores, looks=seen, ok=not wrong)
    return Verdict(errors, len(rows), tokens, wrong)


def _cosine_distance(features: Features, expected: Features) -> float:
    """Return the largest cosine distance of any token, 0 without tokens."""
    a, b = features.tokens.astype(np.float32), expected.tokens.astype(np.float32)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(np.max(1.0 - np.sum(a * b, axis=-1) / norms, initial=0.0))
