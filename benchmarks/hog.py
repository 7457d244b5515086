"""Measure Recall@1 of a hand-made descriptor: histograms of oriented gradients, compared by cosine similarity.

    python -m benchmarks.hog DATABASE QUERIES [--tolerance FRAMES]

A learnt descriptor must be better than this one, by Dalal & Triggs (CVPR 2005) at 64 x 32 pixels: cells of
8 x 8, 9 unsigned orientations, blocks of 2 x 2 cells, L2 norms.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.evaluation import load_folders
from pairvpr.evaluation.recall import first_right, recall_at
from pairvpr.runtime.image import load_picture

SIZE = (64, 32)
CELL, ORIENTATIONS = 8, 9


def describe(file: Path) -> npt.NDArray[np.float32]:
    """Return the L2-normalised descriptor of a picture file."""
    grey = np.asarray(load_picture(file).convert("L").resize(SIZE), np.float32)
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
    return (blocks / np.linalg.norm(blocks)).ravel()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--tolerance", type=int, help="Frames, for traverses; without it UTM names and 25 m.")
    args = parser.parse_args()
    benchmark = load_folders(args.database, args.queries, args.tolerance)
    sides = [np.stack([describe(path) for _, path in side]) for side in (benchmark.database, benchmark.queries)]
    ranked = np.argsort(-sides[1] @ sides[0].T, axis=1, kind="stable")
    recall = recall_at(first_right(ranked, benchmark.positives), *2 * [len(sides[0])])
    print(f"{len(sides[1])} queries:", ", ".join(f"Recall@{n} {100 * share:.1f} %" for n, share in recall.items()))


if __name__ == "__main__":
    main()
