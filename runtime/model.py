"""Encode pictures and score pairs with a bundle's graphs."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairvpr.errors import EngineError
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import LOOK, Dims
from pairvpr.runtime.engines.base import Arrays
from pairvpr.runtime.engines.open import Engines, open_engines
from pairvpr.runtime.features import Features
from pairvpr.runtime.image import load_picture, resize

Fitted = tuple[npt.NDArray[np.uint8], ...]
"""A picture, uint8 (H, W, 3), in the size of the encoder and, if there is one, in the size of the descriptor graph."""
Picture = str | Path | Image.Image | npt.NDArray[np.uint8]

MAX_BATCH = 32
"""Largest batch. Larger ones only take memory: they were faster on no device measured."""
MEMORY_SHARE = 4
"""A batch may take 1 / MEMORY_SHARE of the available memory."""
SUMMARIES = ("class_tokens", "token_means")
"""Outputs of the prefix that summarize a pair: (n, 2, D) each, for both orders."""


def default_bundle() -> Path:
    """Return the folder of the default bundle: the `nano` preset, which is package data."""
    return Path(str(importlib.resources.files("pairvpr.weights"))) / "nano"


def load_model(
    bundle: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    *,
    threads: int | None = None,
    batch_size: int | None = None,
    digest: str | None = None,
) -> Model:
    """Open a bundle on a device.

    bundle: folder of the bundle. None opens the default model.
    device, precision, threads: see `open_engines`.
    batch_size: pairs per forward pass. None derives it from the available memory.
    digest: the digest that the bundle must have. It is checked before a graph is loaded.
    Raises BundleError or EngineError.
    """
    opened = Bundle.open(bundle if bundle is not None else default_bundle())
    if digest is not None:
        opened.check_digest(digest)
    if batch_size is not None and batch_size < 1:
        raise EngineError(f"--batch-size {batch_size}: give at least 1")
    return Model(opened, open_engines(opened, device, precision, threads), batch_size)


@dataclass(frozen=True)
class HalfComparedPairs:
    """Hold n pairs after the prefix.

    summaries: SUMMARIES side by side, (n, 4 D).
    states: the inputs of the suffix, except `keep`.
    """

    summaries: npt.NDArray[np.float32]
    states: Arrays


class Model:
    """Run a bundle on an engine.

    bundle, engines: the opened bundle and its graphs.
    batch_size: pairs per forward pass.
    turn: lock to hold from encoding, or the prefix, to the last result. Graphs on a GPU reuse their buffers, so only
    one thread at a time may run them. Graphs on a CPU run in any number of threads.
    """

    def __init__(self, bundle: Bundle, engines: Engines, batch_size: int | None = None) -> None:
        self.bundle = bundle
        self.engines = engines
        self.turn = Lock() if engines.device in ("cuda", "tensorrt") else nullcontext()
        fitting = pair_batch(bundle.info.dims, available_memory())
        self.batch_size = batch_size or min(fitting, engines.largest_batch or fitting)

    @property
    def picture_batch(self) -> int:
        """Return the number of pictures to encode in one forward pass."""
        return min(self.batch_size, MAX_BATCH)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Return height and width in pixels of the encoder's input."""
        return self.bundle.info.picture.height, self.bundle.info.picture.width

    def prepare(self, picture: Picture) -> npt.NDArray[np.uint8]:
        """Load and resize a picture for the encoder: uint8 (H, W, 3). Raises SourceError."""
        return self.fit(picture)[0]

    def fit(self, picture: Picture) -> Fitted:
        """Load a picture and resize it for each graph that reads pictures. Raises SourceError."""
        loaded, info = load_picture(picture), self.bundle.info
        formats = [info.picture, *([] if info.descriptor is None else [info.descriptor.picture])]
        return tuple(resize(loaded, (each.height, each.width), each.resize) for each in formats)

    def encode(self, pictures: Sequence[Picture]) -> Features:
        """Encode pictures (paths, PIL pictures or uint8 (H, W, 3) RGB arrays). Raises SourceError."""
        if isinstance(pictures, str | Path | Image.Image):
            raise TypeError("encode takes a list of pictures: put the picture into a list")
        if not pictures:
            dims = self.bundle.info.dims
            return Features(
                np.zeros((0, dims.descriptor), np.float32), np.zeros((0, dims.tokens, dims.token_dim), np.float32)
            )
        step = self.picture_batch
        return Features.concatenate(
            [self.encode_fitted([self.fit(p) for p in pictures[i : i + step]]) for i in range(0, len(pictures), step)]
        )

    def encode_fitted(self, pictures: Sequence[Fitted]) -> Features:
        """Encode pictures that `fit` resized, at least one, in one forward pass. Raises EngineError."""
        return self.encode_prepared(*(np.stack(images) for images in zip(*pictures, strict=True)))

    def encode_prepared(
        self, images: npt.NDArray[np.uint8], descriptor_images: npt.NDArray[np.uint8] | None = None
    ) -> Features:
        """Encode resized pictures, uint8 (n, H, W, 3), in one forward pass. Raises EngineError.

        descriptor_images: the same pictures in the size of the descriptor graph, if the model has one.
        """
        outputs = self.engines.encoder.run({"images": images})
        count, dims = len(images), self.bundle.info.dims
        if self.engines.descriptor is not None:
            if descriptor_images is None:
                raise ValueError("the model has a descriptor graph, whose pictures are missing")
            outputs = {**outputs, **self.engines.descriptor.run({"images": descriptor_images})}
        descriptors = self._output(outputs, "descriptors", (count, dims.descriptor))
        tokens = np.zeros((count, 0, 0), np.float32)
        if self.bundle.info.pair_classifier:
            tokens = self._output(outputs, "tokens", (count, dims.tokens, dims.token_dim))
        self._check_finite(descriptors)
        return Features(descriptors, tokens)

    def score(self, query: Features, database: Features) -> npt.NDArray[np.float32]:
        """Return pair scores (n,) of one query with n database pictures, both orders summed. Higher = same place."""
        if len(query) != 1:
            raise ValueError(f"query must be the features of one picture, not of {len(query)}")
        step, parts = self.batch_size, []
        ahead = self.stage(database.tokens[:step])
        for i in range(0, len(database), step):
            tokens, size = ahead, len(ahead)
            scores = self.start_suffix(self.prefix(query.tokens, tokens), np.arange(size))
            ahead = self.stage(database.tokens[i + step : i + 2 * step])  # while the scores are computed
            parts.append(self.finish(scores))
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def look(
        self, query_tokens: npt.NDArray[np.floating], database_tokens: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.float32]:
        """Take the first look at query tokens (1, T, D) and database tokens (n, M, D). Return its numbers (n, K).

        The bundle must have the graph: `Dims.look` is K, or 0 without it.
        """
        if self.engines.pair_look is None:
            raise ValueError("the bundle has no first look")
        tokens = self.engines.stage({"query_tokens": query_tokens, "database_tokens": database_tokens})
        shape = (len(database_tokens), self.bundle.info.dims.look)
        found = self._output(self.engines.pair_look.run(tokens), LOOK, shape).astype(np.float32)
        self._check_finite(found)
        return found

    def prefix(
        self, query_tokens: npt.NDArray[np.floating], database_tokens: npt.NDArray[np.floating]
    ) -> HalfComparedPairs:
        """Run the first blocks of the pair decoder on query tokens (1, T, D) and database tokens (n, M, D)."""
        tokens = self.engines.stage({"query_tokens": query_tokens, "database_tokens": database_tokens})
        states = self.engines.pair_prefix.run(tokens)
        if missing := [name for name in SUMMARIES if name not in states]:
            raise EngineError(
                f"{self.bundle.path}: graphs of an older version, without {', '.join(missing)}; export the checkpoint "
                "again and give the new bundle with --model (maps stay valid)"
            )
        count, width = len(database_tokens), self.bundle.info.dims.token_dim
        parts = [self._output(states, name, (count, 2, width)).reshape(count, -1) for name in SUMMARIES]
        states = {name: value for name, value in states.items() if name not in SUMMARIES}
        summaries = np.concatenate(parts, axis=1, dtype=np.float32)
        self._check_finite(summaries)
        return HalfComparedPairs(summaries, {**tokens, **states})

    def suffix(self, pairs: HalfComparedPairs, keep: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return pair scores (m,) of the pairs that `keep` (m,) selects. m is at least 1."""
        return self.finish(self.start_suffix(pairs, keep))

    def start_suffix(self, pairs: HalfComparedPairs, keep: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Start the suffix. The device may still compute afterwards: `finish` waits for the scores."""
        return self._output(self.engines.pair_suffix.run({**pairs.states, "keep": keep}), "scores", keep.shape)

    def finish(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Wait for the scores (m,) of `start_suffix` and check them. Raises EngineError."""
        scores = np.asarray(scores)
        self._check_finite(scores)
        return scores

    def stage(self, database_tokens: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Start to copy database tokens (n, M, D) to the device, for `prefix`. Work in progress goes on."""
        if not len(database_tokens):
            return database_tokens
        return self.engines.stage({"database_tokens": database_tokens})["database_tokens"]

    def _output(self, outputs: Arrays, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return an output of a graph. Raises EngineError if it is missing or has another shape."""
        found = outputs.get(name)
        if found is None or tuple(found.shape) != shape:
            got = "is missing" if found is None else f"has shape {tuple(found.shape)} in place of {shape}"
            raise EngineError(
                f"{self.bundle.path}: the output {name} of a {self.engines.precision} graph {got}; copy the bundle "
                "again or export it again with `pairvpr export`"
            )
        return found

    def _check_finite(self, values: npt.NDArray[Any]) -> None:
        """Raise EngineError for NaN and infinity, which would sort like valid scores."""
        if not np.isfinite(values).all():
            raise EngineError(
                f"{self.bundle.path}: the {self.engines.precision} graphs gave values that are not numbers on "
                f"{self.engines.device}; try another --precision, and check the bundle with `pairvpr doctor`"
            )


def pair_batch(dims: Dims, memory: int) -> int:
    """Return the number of pairs per forward pass that fit into 1 / MEMORY_SHARE of `memory` bytes.

    A pair holds, in float32 and for both orders: tokens, states, normed states, queries, keys, values and the MLP's
    hidden layer (about 14 times tokens x width), and two attention matrices per head. Without a pair classifier the
    number is MAX_BATCH.
    """
    if not dims.tokens:
        return MAX_BATCH
    rows = dims.tokens + 1
    per_pair = 4 * (14 * rows * dims.token_dim + 2 * dims.heads * rows * rows)
    return int(np.clip(memory // MEMORY_SHARE // per_pair, 1, MAX_BATCH))


def available_memory() -> int:
    """Return the bytes of memory that are available without swapping."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
