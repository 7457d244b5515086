"""Run the reference check: compare an engine's results on a few pictures with the network's."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from pairvpr.errors import BundleError, one_line
from pairvpr.machine import cache_folder
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import DESCRIPTOR, ENCODER, RESTORE, BundleInfo
from pairvpr.runtime.features import Features
from pairvpr.runtime.model import Model, default_bundle

log = logging.getLogger(__name__)

_MOST = 1000  # images of a reference check, which an export makes of a few
_LARGEST = 1e6  # of all its numbers; differences and products of larger ones would not be finite


@dataclass(frozen=True)
class Tolerance:
    """Hold the largest errors that a precision may have.

    descriptors: largest absolute difference of a descriptor's element.
    cosine: largest cosine distance of descriptors.
    scores, scores_relative: pair scores may differ by `scores` plus `scores_relative` times their size.
    looks: largest relative difference of what the first look gives for a pair, by Euclidean norm.
    """

    descriptors: float
    cosine: float
    scores: float
    scores_relative: float
    looks: float


TOLERANCES = {
    "fp32": Tolerance(descriptors=1e-4, cosine=1e-6, scores=1e-3, scores_relative=0.0, looks=1e-4),
    "fp16": Tolerance(descriptors=np.inf, cosine=0.01, scores=0.02, scores_relative=0.01, looks=0.02),
    # Its rounding is eight times coarser than float16's.
    "bf16": Tolerance(descriptors=np.inf, cosine=0.01, scores=0.1, scores_relative=0.05, looks=0.1),
    # This finds only broken engines. The export judged the quality of INT8 on pictures like those of its ranges.
    **dict.fromkeys(
        ("int8", "int8-fp16", "int8-dynamic", "int8-bf16"),
        Tolerance(descriptors=np.inf, cosine=0.05, scores=0.3, scores_relative=0.2, looks=0.3),
    ),
}


@dataclass(frozen=True)
class Reference:
    """Hold the network's results.

    images: (n, H, W, 3) uint8.
    descriptor_images: the same pictures in the size of the descriptor graph, None if the model has none.
    features: features of the images.
    scores: (n,), pair scores of the first image with each image. (0,) for a model without a pair classifier.
    looks: (n, K), the first look at the same pairs, None if the bundle has no such graph.
    """

    images: npt.NDArray[np.uint8]
    features: Features
    scores: npt.NDArray[np.float32]
    descriptor_images: npt.NDArray[np.uint8] | None = None
    looks: npt.NDArray[np.float32] | None = None

    def encode(self, model: Model, rows: slice | npt.NDArray[np.int64]) -> Features:
        """Encode some of the images with a model, in one forward pass."""
        more = None if self.descriptor_images is None else self.descriptor_images[rows]
        return model.encode_prepared(self.images[rows], more)

    def encode_all(self, model: Model) -> Features:
        """Encode all images, in passes of the model's picture batch."""
        step = model.picture_batch
        return Features.concatenate([self.encode(model, slice(i, i + step)) for i in range(0, len(self.images), step)])

    def look(self, model: Model) -> npt.NDArray[np.float32] | None:
        """Take a model's first look at the pairs, with the reference's tokens. None if the reference has none."""
        if self.looks is None:
            return None
        tokens, step = self.features.tokens, model.batch_size
        return np.concatenate([model.look(tokens[:1], tokens[i : i + step]) for i in range(0, len(tokens), step)])

    def save(self, file: Path) -> None:
        """Write the reference as safetensors."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "images": self.images,
            "descriptors": self.features.descriptors,
            "tokens": self.features.tokens,
            "scores": self.scores,
            **({} if self.descriptor_images is None else {"descriptor_images": self.descriptor_images}),
            **({} if self.looks is None else {"looks": self.looks}),
        }
        file.write_bytes(save(arrays))

    @staticmethod
    def from_bundle(bundle: Bundle) -> Reference:
        """Read the reference of a bundle. Raises BundleError if it is damaged or does not fit the bundle's graphs."""
        file = bundle.reference()
        try:
            arrays = load_file(file)
            features = Features(arrays["descriptors"], arrays["tokens"])
            more = arrays.get("descriptor_images"), arrays.get("looks")
            found = Reference(arrays["images"], features, arrays["scores"], *more)
            found._check(bundle.info)
            return found
        except (SafetensorError, KeyError, OSError, ValueError) as error:
            raise BundleError(f"{file}: not a reference check ({one_line(error)}); {RESTORE}") from error

    def _check(self, info: BundleInfo) -> None:
        """Raise ValueError unless the arrays have the types and shapes of the bundle's graphs, and are finite."""
        count = self.images.shape[0] if self.images.ndim else 0
        if not 1 <= count <= _MOST:
            raise ValueError(f"it has no 1 to {_MOST} images")
        pictures = {ENCODER: self.images, DESCRIPTOR: self.descriptor_images}
        for graph, images in pictures.items():
            if graph not in info.graphs:
                continue
            of = info.picture_of(graph)
            if images is None or images.dtype != np.uint8 or images.shape != (count, of.height, of.width, 3):
                raise ValueError(f"its images for {graph} are not {count} of {of.width} x {of.height} pixels")
        dims = info.dims
        wanted = {
            "descriptors": (self.features.descriptors, (count, dims.descriptor)),
            "tokens": (self.features.tokens, (count, dims.tokens, dims.token_dim)),
            "scores": (self.scores, (count if info.pair_classifier else 0,)),
        }
        if dims.look and self.looks is None:
            raise ValueError("it has no first looks")
        if self.looks is not None:
            wanted["looks"] = self.looks, (count, dims.look)
        for name, (array, shape) in wanted.items():
            if array.dtype.kind != "f" or array.shape != shape or not (np.abs(array) <= _LARGEST).all():
                raise ValueError(f"its {name} are not finite numbers of shape {shape}")


@dataclass(frozen=True)
class Errors:
    """Hold the largest differences from the network. ok: whether all are within the precision's tolerance.

    scores: 0 for a model without a pair classifier.
    looks: relative, 0 for a bundle without a first look.
    """

    descriptors: float
    cosine: float
    scores: float
    ok: bool
    looks: float = 0.0


def measure(
    features: Features,
    scores: npt.NDArray[np.float32],
    truth: Reference,
    precision: str,
    looks: npt.NDArray[np.float32] | None = None,
) -> Errors:
    """Compare features of n pictures, scores (n,) and, if given, first looks (n, K) with the reference's."""
    expected = truth.features.descriptors
    cosine = float(np.max(_cosine_distances(features.descriptors, expected)))
    descriptors = float(np.max(np.abs(features.descriptors - expected)))
    differences = np.abs(scores - truth.scores)
    limit = TOLERANCES[precision]
    allowed = limit.scores + limit.scores_relative * np.abs(truth.scores)
    # The comparisons are written so that NaN fails.
    ok = descriptors <= limit.descriptors and cosine <= limit.cosine and bool(np.all(differences <= allowed))
    seen = 0.0
    if looks is not None and truth.looks is not None:
        seen = looks_error(looks, truth.looks)
        ok = ok and seen <= limit.looks
    return Errors(descriptors, cosine, float(np.max(differences, initial=0.0)), ok, seen)


def looks_error(looks: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]) -> float:
    """Return the largest relative difference of first looks (n, K), by Euclidean norm."""
    sizes = np.maximum(np.linalg.norm(truth, axis=1), 1e-6)
    return float(np.max(np.linalg.norm(looks - truth, axis=1) / sizes))


def _cosine_distances(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the cosine distances (n,) of rows (n, G), in float64: float32 loses more over thousands of numbers."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    similarities: npt.NDArray[np.float64] = np.sum(a * b, axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return 1.0 - similarities


def describe(errors: Errors, pair_classifier: bool) -> str:
    """Return the difference that a message names: of pair scores, or of descriptors without a pair classifier."""
    if pair_classifier:
        return f"pair scores differ by {errors.scores:.3g}, first looks by {errors.looks:.2%}"
    return f"descriptors differ by a cosine distance of {errors.cosine:.3g}"


def check_reference(model: Model) -> Errors:
    """Run the bundle's reference check on the model's engine. Raises BundleError or EngineError."""
    truth = Reference.from_bundle(model.bundle)
    features = truth.encode_all(model)
    scores = np.zeros(0, np.float32)
    if model.bundle.info.pair_classifier:
        scores = model.score(features[0], features)
    return measure(features, scores, truth, model.engines.precision, truth.look(model))


def check_foreign(model: Model) -> None:
    """Run the reference check of a foreign bundle once, and remember that it has passed.

    A bundle is foreign if it is not the one that ships. The memory is a file in the user's cache folder, named by the
    bundle's digest and the precision. Raises BundleError if the check fails, and as `check_reference`.
    """
    digest, engines = model.bundle.digest, model.engines
    passed = cache_folder() / "references" / f"{digest}-{engines.precision}"
    if passed.exists() or digest == Bundle.open(default_bundle()).digest:
        return
    errors = check_reference(model)
    if not errors.ok:
        raise BundleError(
            f"{model.bundle.path}: its {engines.precision} graphs on {engines.device} do not give the results of its "
            f"reference check ({describe(errors, model.bundle.info.pair_classifier)}); copy the bundle again from its "
            "maker"
        )
    try:
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()
    except OSError as error:
        log.info("%s: the reference check runs at each start, because this cannot be written (%s)", passed, error)
