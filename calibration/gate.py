"""Judge INT8 graphs: compare their answers with those of the float32 graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.features import Features
from pairvpr.runtime.model import Model

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Answers:
    """Hold a model's answers to n pictures.

    features: features of the pictures.
    candidates: int64 (n, c), the nearest other pictures of each picture by descriptor.
    scores: float32 (n, c), the pair scores with the candidates; similarities for a model without a pair classifier.
    """

    features: Features
    candidates: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """Compare the answers of two models.

    cosine: lowest cosine between the two descriptors of a picture.
    rank_correlation: Spearman's rank correlation of all scores.
    top1_changed: share of pictures whose best candidate differs.
    """

    cosine: float
    rank_correlation: float
    top1_changed: float

    def within(self, limits: Agreement) -> bool:
        """Return whether every figure is at least as good as in `limits`. NaN is not."""
        return (
            self.cosine >= limits.cosine
            and self.rank_correlation >= limits.rank_correlation
            and self.top1_changed <= limits.top1_changed
        )

    def __str__(self) -> str:
        return (
            f"lowest descriptor cosine {self.cosine:.4f}, rank correlation of scores {self.rank_correlation:.4f}, "
            f"best candidate changed in {self.top1_changed:.1%}"
        )


LIMITS = Agreement(cosine=0.995, rank_correlation=0.99, top1_changed=0.01)


def answer_pictures(model: Model, pictures: Sequence[Path], count: int, progress: Progress) -> Answers:
    """Encode pictures and compare each with its `count` nearest others. Raises SourceError."""
    features = model.encode(list(pictures))
    similarity = features.descriptors @ features.descriptors.T
    np.fill_diagonal(similarity, -np.inf)
    return _score(model, features, np.argsort(-similarity, axis=1, kind="stable")[:, :count], progress)


def measure_agreement(model: Model, pictures: Sequence[Path], truth: Answers, progress: Progress) -> Agreement:
    """Compare a model's answers with the truth, on the truth's candidates."""
    found = _score(model, model.encode(list(pictures)), truth.candidates, progress)
    return compare_answers(found, truth)


def compare_answers(found: Answers, truth: Answers) -> Agreement:
    """Compare two models' answers on the same pictures and candidates."""
    cosines = np.sum(found.features.descriptors * truth.features.descriptors, axis=1)
    ranks = [np.argsort(np.argsort(each.scores, axis=None)).astype(np.float64) for each in (found, truth)]
    changed = np.argmax(found.scores, axis=1) != np.argmax(truth.scores, axis=1)
    return Agreement(float(np.min(cosines)), float(np.corrcoef(ranks[0], ranks[1])[0, 1]), float(np.mean(changed)))


def _score(model: Model, features: Features, candidates: npt.NDArray[np.int64], progress: Progress) -> Answers:
    if not model.bundle.info.pair_classifier:
        found = np.einsum("ng,ncg->nc", features.descriptors, features.descriptors[candidates])
        return Answers(features, candidates, found)
    scores = np.zeros(candidates.shape, np.float32)
    for i, others in enumerate(candidates):
        if i % 50 == 0:
            progress(f"scoring pairs: picture {i + 1} of {len(candidates)}")
        scores[i] = model.score(features[i], Features(features.descriptors[others], features.tokens[others]))
    return Answers(features, candidates, scores)
