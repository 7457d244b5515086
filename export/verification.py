"""Check that an exported bundle computes the same as the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pairvpr.demo import TOWN
from pairvpr.errors import ExportError
from pairvpr.export.descriptor_source import Descriptor
from pairvpr.model import PairVPR
from pairvpr.runtime.bundle import Bundle
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
    looks: npt.NDArray[np.float32]
    descriptor_images: npt.NDArray[np.uint8] | None = None

    def reference(self, count: int = REFERENCE_PICTURES) -> Reference:
        """Return the results of the first few pictures, small enough to be stored in the bundle."""
        more = None if self.descriptor_images is None else self.descriptor_images[:count]
        looks = self.looks[:count] if len(self.looks) else None
        return Reference(self.images[:count], self.features[:count], self.scores[:count], more, looks)


def network_truth(network: PairVPR, progress: Progress) -> Truth:
    """Run the network on pictures of the town that ships, in float32, computing every pair by itself.

    progress: called with a text at each step.
    """
    size = (network.config.image_size, network.config.image_size)
    images = np.stack([resize(picture, size) for picture in _pictures()])
    descriptors, tokens, scores, summaries, looks = [], [], [], [], []
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
            looks.append(_look(network, query, candidate))
    features = Features(torch.cat(descriptors).numpy(), torch.cat(tokens).numpy())
    return Truth(images, features, torch.cat(scores).numpy(), torch.cat(summaries).numpy(), torch.cat(looks).numpy())


def descriptor_truth(descriptor: Descriptor, progress: Progress, pair: Truth | None = None) -> Truth:
    """Run a descriptor's network on the same pictures, one by one.

    pair: the results of the network that compares pairs, whose descriptors are replaced. None for a descriptor alone.
    """
    picture, found = descriptor.picture, []
    size = (picture.height, picture.width)
    images = np.stack([resize(each, size, picture.resize) for each in _pictures()])
    for i in range(len(images)):
        progress(f"descriptor: picture {i + 1} of {len(images)}")
        found.append(descriptor.describe(images[i : i + 1]))
    descriptors = np.concatenate(found)
    if pair is not None:
        return replace(pair, features=Features(descriptors, pair.features.tokens), descriptor_images=images)
    none = np.zeros(0, np.float32)
    return Truth(images, Features(descriptors, np.zeros((len(images), 0, 0), np.float32)), none, none, none)


def _pictures() -> list[Image.Image]:
    """Return the pictures of the town to compare on: a query, then its candidates."""
    files = [min((TOWN / "queries" / "day").iterdir()), *sorted((TOWN / "database").iterdir())[:CANDIDATES]]
    return [load_picture(file) for file in files]


def verify_export(bundle: Bundle, precision: str, truth: Truth, progress: Progress) -> dict[str, float]:
    """Compare every graph with the network, at batch 1 and 5. Return the largest errors.

    All forms are checked: those for devices and CUDA in their own arithmetic, and the form for CPUs.
    Raises ExportError if they differ by more than allowed.
    """
    measured: dict[str, float] = {}
    names = bundle.info.graphs
    forms = {
        "": {name: bundle.graph(precision, name, cpu=False) for name in names},
        ", CPU form": {name: bundle.graph(precision, name, cpu=True) for name in names},
        ", CUDA form": {name: bundle.cuda_graph(precision, name) for name in names},
    }
    for form, files in forms.items():
        graphs = {name: OnnxRuntimeEngine(file, "cpu") for name, file in files.items()}
        engines = Engines.from_graphs(graphs, "cpu", precision, "verification")
        for batch in BATCHES:
            progress(f"{precision}{form}: comparing with the network, batch {batch}")
            errors = _compare(Model(bundle, engines, batch), truth, precision, f"batch {batch}")
            measured = {name: max(value, measured.get(name, 0.0)) for name, value in errors.items()}
    return measured


def _compare(model: Model, truth: Truth, precision: str, where: str) -> dict[str, float]:
    """Return the errors at one batch size. With batch 1 only the reference's few pictures are compared."""
    expected = truth.reference(REFERENCE_PICTURES if model.batch_size == 1 else len(truth.images))
    features = expected.encode_all(model)
    if not model.bundle.info.pair_classifier:
        return _compare_descriptors(features, expected, precision, where)
    scores = model.score(features[0], features)
    seen = expected.look(model)
    pairs = model.prefix(truth.features.tokens[:1], truth.features.tokens[: model.batch_size])
    kept = np.arange(model.batch_size)[::-2]  # half of the candidates, in another order
    suffix = model.suffix(pairs, kept)
    errors = measure(features, scores, expected, precision, seen)
    result = {
        "descriptors": errors.descriptors,
        "descriptor_cosine": errors.cosine,
        "tokens": float(np.max(np.abs(features.tokens - expected.features.tokens))),
        "prefix_summaries": float(np.max(np.abs(pairs.summaries - truth.summaries[: model.batch_size]))),
        "look": errors.looks,
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


def _compare_descriptors(features: Features, expected: Reference, precision: str, where: str) -> dict[str, float]:
    """Return the errors of a descriptor alone at one batch size. Raises ExportError if they are too large."""
    errors = measure(features, expected.scores, expected, precision)
    result = {"descriptors": errors.descriptors, "descriptor_cosine": errors.cosine}
    if not errors.ok:
        listed = ", ".join(f"{name} {value:.2g}" for name, value in result.items())
        raise ExportError(f"the {precision} graph differs from the network by more than allowed ({where}: {listed})")
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


def _look(network: PairVPR, query: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the first look, (1, K), from the network's own parts; see `graphs.PairLook`."""
    decoder = network.decoder
    if decoder.late is not None:
        return torch.stack([decoder.late(query, candidate), decoder.late(candidate, query)], dim=1)
    block = next(iter(decoder.blocks))
    x = block(decoder.with_class_token(candidate), block.memory(query))
    return torch.cat([x[:, 0], x[:, 1:].mean(dim=1)], dim=1)
