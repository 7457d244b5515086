"""Search by a hand-made descriptor, as a lower line for learnt ones: histograms of oriented gradients.

Dalal & Triggs, "Histograms of oriented gradients for human detection" (CVPR 2005), at 64 x 32 pixels: cells of 8 x 8,
9 unsigned orientations, blocks of 2 x 2 cells, L2 norms. Descriptors are compared by cosine similarity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairvpr.evaluation.benchmark import Benchmark, Picture
from pairvpr.evaluation.recall import RECALL_AT, first_right, recall_at
from pairvpr.runtime.image import load_picture

SIZE = (64, 32)
"""Width and height in pixels."""
CELL, ORIENTATIONS = 8, 9
_ROWS = 1024
"""Queries that are compared with the database at once."""


def hog_recall(benchmark: Benchmark) -> Mapping[int, float]:
    """Return Recall@N by N of the benchmark. Raises SourceError for a picture that cannot be read."""
    database, queries = (_describe_all(side) for side in (benchmark.database, benchmark.queries))
    depth = min(max(RECALL_AT), len(database))
    ranked = [
        np.argsort(-queries[start : start + _ROWS] @ database.T, axis=1, kind="stable")[:, :depth]
        for start in range(0, len(queries), _ROWS)
    ]
    return recall_at(first_right(np.concatenate(ranked), benchmark.positives), len(database), depth)


def describe(picture: Image.Image) -> npt.NDArray[np.float32]:
    """Return the L2-normalised descriptor (756,) of a picture."""
    grey = np.asarray(picture.convert("L").resize(SIZE), np.float32)
    down, right = np.gradient(grey)
    strength = np.hypot(down, right)
    orientation = np.floor((np.arctan2(down, right) % np.pi) / np.pi * ORIENTATIONS).astype(int) % ORIENTATIONS
    rows, columns = grey.shape[0] // CELL, grey.shape[1] // CELL
    cells = np.zeros((rows, columns, ORIENTATIONS), np.float32)
    for number in range(ORIENTATIONS):
        part = np.where(orientation == number, strength, 0)
        cells[..., number] = part.reshape(rows, CELL, columns, CELL).sum(axis=(1, 3))
    blocks = np.stack([cells[r : rows - 1 + r, c : columns - 1 + c] for r in (0, 1) for c in (0, 1)], axis=2)
    blocks = blocks.reshape(rows - 1, columns - 1, -1)
    blocks /= np.linalg.norm(blocks, axis=-1, keepdims=True) + 1e-6
    found: npt.NDArray[np.float32] = (blocks / (np.linalg.norm(blocks) + 1e-6)).ravel()
    return found


def _describe_all(side: Sequence[Picture]) -> npt.NDArray[np.float32]:
    return np.stack([describe(load_picture(file)) for _, file in side])
