"""Reduce an exported descriptor to fewer numbers, by the principal components of the user's pictures."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from pairvpr.errors import ExportError, SourceError
from pairvpr.export.descriptor_source import Descriptor
from pairvpr.export.onnx_descriptor import main_opset, make_normalisation
from pairvpr.export.verification import Progress
from pairvpr.runtime.image import load_picture, resize
from pairvpr.runtime.sources import list_pictures

HELD_OUT = 4
"""Every HELD_OUT-th picture does not help to find the components, but measures the loss."""
NEAREST = 10
EVERY = 100
"""Pictures between two messages of progress."""


@dataclass(frozen=True)
class Loss:
    """Hold the losses of a reduction on pictures that were not used to fit it.

    pictures: their number. variance: share of their variance that is kept.
    same_nearest: share of them whose nearest other picture stays the same.
    still_near: share of them whose nearest other picture stays among the NEAREST nearest.
    """

    pictures: int
    variance: float
    same_nearest: float
    still_near: float

    def __str__(self) -> str:
        return (
            f"{self.variance:.1%} of the variance kept, nearest picture the same for {self.same_nearest:.1%}, among "
            f"the {NEAREST} nearest for {self.still_near:.1%} ({self.pictures} held-out pictures)"
        )


class ReducedDescriptor:
    """A descriptor of fewer numbers: centred, projected onto principal components, L2-normalised.

    mean: (G,). components: (N, G), orthonormal, float32. See `Descriptor` for the rest.
    """

    def __init__(
        self, whole: Descriptor, mean: npt.NDArray[np.float32], components: npt.NDArray[np.float32], loss: Loss
    ) -> None:
        self._whole, self._mean, self._components, self.loss = whole, mean, components, loss
        self.picture, self.dim = whole.picture, len(components)
        self.weights = replace(whole.weights, origin=f"{whole.weights.origin}, {self.dim} principal components")

    def describe(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `Descriptor`."""
        return project(self._whole.describe(images), self._mean, self._components)

    def digest(self) -> str:
        """See `Descriptor`. The reduction is a part of it."""
        digest = hashlib.sha256(self._whole.digest().encode())
        for array in (self._mean, self._components):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def graph(self) -> onnx.ModelProto:
        """See `Descriptor`."""
        return self._graph

    @functools.cached_property
    def _graph(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._whole.graph())
        graph, whole = model.graph, "pairvpr.whole"
        for node in graph.node:
            node.output[:] = [whole if name == "descriptors" else name for name in node.output]
            node.input[:] = [whole if name == "descriptors" else name for name in node.input]
        constants = {"pairvpr.mean_descriptor": self._mean, "pairvpr.components": self._components.T}
        graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()
        )
        graph.node.append(helper.make_node("Sub", [whole, "pairvpr.mean_descriptor"], ["pairvpr.centred"]))
        graph.node.append(helper.make_node("MatMul", ["pairvpr.centred", "pairvpr.components"], ["pairvpr.reduced"]))
        nodes, more = make_normalisation("pairvpr.reduced", main_opset(model), "pairvpr.reduction")
        graph.node.extend(nodes)
        graph.initializer.extend(more)
        del graph.output[:], graph.value_info[:]
        graph.output.append(helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["batch", self.dim]))
        return model


def reduce_descriptor(whole: Descriptor, dim: int, folder: Path, progress: Progress) -> ReducedDescriptor:
    """Find the principal components of a descriptor on the pictures of a folder.

    dim: numbers of the reduced descriptor.
    Raises ExportError for a `dim` that is not below the descriptor's, and SourceError for too few pictures and for one
    that cannot be read.
    """
    if dim >= whole.dim:
        raise ExportError(
            f"--descriptor-dim {dim}: the descriptor has {whole.dim} numbers; give fewer, or leave it out"
        )
    files = [path for _, path in list_pictures(folder)]
    used = len(files) - len(files[::HELD_OUT])
    if used <= dim:
        needed = -(-(dim + 1) * HELD_OUT // (HELD_OUT - 1))
        raise SourceError(
            f"{folder}: {len(files)} pictures; --descriptor-dim {dim} needs {needed}: more than one for each number, "
            "and a quarter to measure the loss on; put more there, or give a smaller --descriptor-dim"
        )
    found = _describe(whole, files, progress)
    held_out = np.arange(len(files)) % HELD_OUT == 0
    mean, components = find_components(found[~held_out], dim)
    return ReducedDescriptor(whole, mean, components, measure_loss(found, held_out, mean, components))


def find_components(
    descriptors: npt.NDArray[np.float32], dim: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the mean (G,) and the first `dim` principal components (dim, G) of descriptors (n, G).

    The largest number of each component is positive, so that the same pictures give the same components.
    """
    mean = descriptors.mean(axis=0, dtype=np.float64)
    _, _, found = np.linalg.svd(descriptors - mean, full_matrices=False)
    components = found[:dim]
    signs = np.sign(components[np.arange(dim), np.abs(components).argmax(axis=1)])
    return mean.astype(np.float32), (components * signs[:, None]).astype(np.float32)


def project(
    descriptors: npt.NDArray[np.float32], mean: npt.NDArray[np.float32], components: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the reduced, L2-normalised descriptors (n, N) of descriptors (n, G)."""
    reduced = (descriptors - mean) @ components.T
    normalised: npt.NDArray[np.float32] = reduced / np.maximum(np.linalg.norm(reduced, axis=1, keepdims=True), 1e-12)
    return normalised


def measure_loss(
    descriptors: npt.NDArray[np.float32],
    held_out: npt.NDArray[np.bool_],
    mean: npt.NDArray[np.float32],
    components: npt.NDArray[np.float32],
) -> Loss:
    """Measure the loss on the held-out pictures of n. Their nearest others are sought among all n."""
    centred = descriptors[held_out] - mean
    kept = float(np.square(centred @ components.T).sum() / max(float(np.square(centred).sum()), 1e-30))
    reduced = project(descriptors, mean, components)
    asked, count = np.flatnonzero(held_out), min(NEAREST, len(descriptors) - 1)
    before, after = (_nearest(each, asked, count) for each in (descriptors, reduced))
    return Loss(
        pictures=len(asked),
        variance=kept,
        same_nearest=float(np.mean(before[:, 0] == after[:, 0])),
        still_near=float(np.mean((after == before[:, :1]).any(axis=1))),
    )


def _nearest(descriptors: npt.NDArray[np.float32], asked: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return the rows (m, count) of the nearest other descriptors of the rows asked (m,)."""
    similarities = descriptors[asked] @ descriptors.T
    similarities[np.arange(len(asked)), asked] = -np.inf
    return np.argsort(-similarities, axis=1, kind="stable")[:, :count]


def _describe(whole: Descriptor, files: Sequence[Path], progress: Progress) -> npt.NDArray[np.float32]:
    """Return the descriptors (n, G) of picture files. Raises SourceError."""
    picture, found = whole.picture, []
    size = picture.height, picture.width
    for number, file in enumerate(files):
        if number % EVERY == 0:
            progress(f"descriptor: picture {number + 1} of {len(files)}")
        found.append(whole.describe(resize(load_picture(file), size, picture.resize)[None]))
    return np.concatenate(found)
