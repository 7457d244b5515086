"""Measure what priors gain on a drive with odometry: candidates, processor time of an answer, and recall.

    python -m benchmarks.town_drive town --streets 10
    python -m benchmarks.priors town

The map has the pictures of all four cameras, and the queries are those of the front camera on the later drive. A
query's position is off by a few metres and its heading by a few degrees, as odometry is. Right is a first match within
6 m. Every query is asked with each prior in turn.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rig import RADIUS
from pairvpr.runtime import PlaceRecognizer, Pose, Prior, build_map
from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.geometry.pose_files import PlaceFinder
from pairvpr.runtime.geometry.rotations import multiply
from pairvpr.runtime.image import load_picture

OFF, TURNED = 3.0, 5.0
"""Standard deviations of the odometry: metres in x and in y, and degrees."""
NEAR, TURN = 20.0, 45.0


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("town", type=Path, help="A folder of `benchmarks.town_drive`.")
    parser.add_argument("--model", type=Path, help="Bundle; the default model's without one.")
    parser.add_argument("--top-k", type=int, default=100)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    front = args.town / "drive" / "front"
    names = sorted(path.name for path in front.iterdir())
    finder, rng = PlaceFinder(args.town / "drive.csv"), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        build_map(args.town / "map", Path(folder) / "map", model=args.model, poses=args.town / "map.csv")
        with PlaceRecognizer.open(Path(folder) / "map", device="cpu", top_k=args.top_k, exact=True) as recognizer:
            results: dict[str, Any] = {
                "preset": recognizer.model.bundle.info.preset,
                "map": len(recognizer.map),
                "queries": len(names),
                "top_k": recognizer.top_k,
                "odometry": {"metres": OFF, "degrees": TURNED},
            }
            found: dict[str, list[tuple[bool, int, float]]] = defaultdict(list)
            for name in names:
                truth = finder.find_place(name).pose
                assert truth is not None
                picture = load_picture(front / name)
                for label, prior in priors(drift(truth, rng)).items():
                    began = time.process_time()
                    answer = recognizer.recognize(picture, prior)
                    spent = 1e3 * (time.process_time() - began)
                    best = answer.matches[0].pose if answer.matches else None
                    right = best is not None and distance_between(best, truth) <= RADIUS
                    found[label].append((right, answer.compared, spent))
    results["priors"] = {label: figures(answers, found["whole map"]) for label, answers in found.items()}
    print(json.dumps(results, indent=1, allow_nan=False))


def drift(truth: Pose, rng: np.random.Generator) -> Pose:
    """Return a pose as odometry gives it."""
    east, north = map(float, rng.normal(0.0, OFF, 2))
    half = math.radians(float(rng.normal(0.0, TURNED))) / 2
    assert truth.q is not None
    q = multiply((0.0, 0.0, math.sin(half), math.cos(half)), truth.q)
    return replace(truth, x=truth.x + east, y=truth.y + north, q=q)


def priors(pose: Pose) -> dict[str, Prior | None]:
    """Return the priors to compare."""
    return {
        "whole map": None,
        "front camera": Prior(names="front/*"),
        "heading": Prior(pose, turn=TURN),
        "near": Prior(pose, NEAR),
        "near, heading": Prior(pose, NEAR, turn=TURN),
    }


def figures(answers: list[tuple[bool, int, float]], whole: list[tuple[bool, int, float]]) -> dict[str, float]:
    """Return recall in percent, the mean number of candidates, and processor time relative to the whole map's."""
    right, compared, spent = (np.array(column, float) for column in zip(*answers, strict=True))
    other = np.array([each[2] for each in whole])
    return {
        "recall": round(100 * float(right.mean()), 1),
        "candidates": round(float(compared.mean()), 1),
        "cpu_ratio": round(float(np.median(spent / other)), 3),
    }


if __name__ == "__main__":
    main()
