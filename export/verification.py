"""Check that an exported bundle computes the same as the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pairvpr.demo import TOWN
from pairvpr.errors import ExportError
from pairvpr.model import PairVPR
from pairvpr.runtime.bundle import GRAPHS, Bundle
from pairvpr.runtime.engines.base import in_place
from pairvpr.runtime.engines.onnxruntime import OnnxRuntimeEngine
from pairvpr.runtime.engines.open import Engines
from pairvpr.runtime.features import Features
from pairvpr.runtime.image import load_picture, resize
from pairvpr.runtime.model import Model
from pairvpr.runtime.reference import Reference, measure

CANDIDATES = 20
BATCHES = (1, 5)
REFERENCE_PICTURES = 4
# Candidates are nearly tied if their float32 scores differ by less than this share of the spread of all scores.
NEAR_TIE = 0.02

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Truth:
    """The network's results on the test pictures: a query at index 0, the candidates after it."""

    images: npt.NDArray[np.uint8]
    features: Features
    scores: npt.NDArray[np.float32]
    summaries: npt.NDArray[np.float32]

    def reference(self) -> Reference:
        """Return the results of the first few pictures, small enough to be stored in the bundle."""
        n = REFERENCE_PICTURES
        return Reference(self.images[:n], self.features[:n], self.scores[:n])


def network_truth(network: PairVPR, progress: Progress) -> Truth:
    """Run the network on pictures of the town that ships, in float32, computing every pair by itself.

    progress: called with a text at each step.
    """
    size = (network.config.image_size, network.config.image_size)
    files = [min((TOWN / "queries" / "day").iterdir()), *sorted((TOWN / "database").iterdir())[:CANDIDATES]]
    images = np.stack([resize(load_picture(file), size) for file in files])
    descriptors, tokens, scores, summaries = [], [], [], []
    with torch.no_grad():
        for i, image in enumerate(images):
            progress(f"network: picture {i + 1} of {len(images)}")
            descriptor, token = network.encode(torch.from_numpy(image[None]))
            descriptors.append(descriptor)
            tokens.append(token)
        query = tokens[0]
        for i, candidate in enumerate(tokens):
            progress(f"network: pair {i + 1} of {len(tokens)}")
            scores.append(network.score(query, candidate))
            summaries.append(_summaries(network, query, candidate))
    features = Features(torch.cat(descriptors).numpy(), torch.cat(tokens).numpy())
    return Truth(images, features, torch.cat(scores).numpy(), torch.cat(summaries).numpy())


def verify_export(bundle: Bundle, precision: str, truth: Truth, progress: Progress) -> dict[str, float]:
    """Compare every graph with the network, at batch 1 and 5. Return the largest errors.

    All forms are checked: those for devices and CUDA in their own arithmetic, and the form for CPUs.
    Raises ExportError if they differ by more than allowed.
    """
    measured: dict[str, float] = {}
    forms = {
        "": {name: bundle.graph(precision, name, cpu=False) for name in GRAPHS},
        ", CPU form": {name: bundle.graph(precision, name, cpu=True) for name in GRAPHS},
        ", CUDA form": {name: bundle.cuda_graph(precision, name) for name in GRAPHS},
    }
    for form, files in forms.items():
        graphs = {name: OnnxRuntimeEngine(file, "cpu") for name, file in files.items()}
        engines = Engines(
            **graphs, device="cpu", precision=precision, description="verification", largest_batch=None, stage=in_place
        )
        for batch in BATCHES:
            progress(f"{precision}{form}: comparing with the network, batch {batch}")
            errors = _compare(Model(bundle, engines, batch), truth, precision, f"batch {batch}")
            measured = {name: max(value, measured.get(name, 0.0)) for name, value in errors.items()}
    return measured


def _compare(model: Model, truth: Truth, precision: str, where: str) -> dict[str, float]:
    """Return the errors at one batch size. With batch 1 only the reference's few pictures are compared."""
    few = slice(0, REFERENCE_PICTURES) if model.batch_size == 1 else slice(0, len(truth.images))
    features = model.encode(list(truth.images[few]))
    scores = model.score(features[0], features)
    pairs = model.prefix(truth.features.tokens[:1], truth.features.tokens[: model.batch_size])
    kept = np.arange(model.batch_size)[::-2]  # half of the candidates, in another order
    suffix = model.suffix(pairs, kept)
    expected = Reference(truth.images[few], truth.features[few], truth.scores[few])
    errors = measure(features, scores, expected, precision)
    result = {
        "descriptors": errors.descriptors,
        "descriptor_cosine": errors.cosine,
        "tokens": float(np.max(np.abs(features.tokens - expected.features.tokens))),
        "prefix_summaries": float(np.max(np.abs(pairs.summaries - truth.summaries[: model.batch_size]))),
        "suffix_scores": float(np.max(np.abs(suffix - truth.scores[kept]))),
        "scores": errors.scores,
    }
    listed = ", ".join(f"{name} {value:.2g}" for name, value in result.items())
    if not errors.ok or not np.all(np.isfinite(list(result.values()))):
        raise ExportError(f"the {precision} graphs differ from the network by more than allowed ({where}: {listed})")
    if model.batch_size > 1 and not same_ranking(scores[1:], expected.scores[1:]):
        raise ExportError(
            f"the {precision} graphs rank the {CANDIDATES} candidates in another order than the network ({listed})"
        )
    return result


def same_ranking(scores: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]) -> bool:
    """Return true if ordering by `scores` also orders `truth`, except for near-ties."""
    ordered = truth[np.argsort(-scores, kind="stable")]
    best_after = np.maximum.accumulate(ordered[::-1])[::-1]
    return bool(np.all(best_after - ordered <= NEAR_TIE * np.ptp(truth)))


def _summaries(network: PairVPR, query: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """Return the class tokens of both orders after the prefix's blocks, then the means of their other tokens.

    The shape is (1, 4 D).
    """
    tokens, means = [], []
    for first, second in ((query, candidate), (candidate, query)):
        x = network.decoder.with_class_token(first)
        for block in list(network.decoder.blocks)[: network.config.split]:
            x = block(x, block.memory(second))
        tokens.append(x[:, 0])
        means.append(x[:, 1:].mean(dim=1))
    return torch.cat(tokens + means, dim=1)
