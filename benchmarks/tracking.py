"""Measure what tracking gains: candidates compared, recall, and how soon a robot that was carried away is found.

    python -m benchmarks.tracking day_left day_right --tolerance 2
    python -m benchmarks.tracking town/map/front town/drive/front --poses town/map.csv town/drive.csv --radius 6

The drive is recognised in its order, and once more with its stretches in another order: at the start of each the robot
has been carried elsewhere. It counts as found at the first of two pictures in a row whose place by the sequence filter
is right.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr.evaluation import Benchmark, load_folders
from pairvpr.evaluation.robot import load_robot
from pairvpr.runtime import Frame, PlaceRecognizer, Prior, Recognition, build_map
from pairvpr.runtime.geometry.pose_files import PlaceFinder
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.sequence.tracking import Follower


class Remembering:
    """A recognizer that answers each frame once in the whole map, because that answer is always the same."""

    def __init__(self, recognizer: PlaceRecognizer) -> None:
        self.recognizer, self.map = recognizer, recognizer.map
        self._known: dict[str, Recognition] = {}
        self.candidates: list[int] = []

    def recognize_frame(self, frame: Frame, prior: Prior | None = None) -> Recognition:
        """Return the answer, and count its candidates."""
        if prior is not None:
            answer = self.recognizer.recognize_frame(frame, prior)
        else:
            if frame.name not in self._known:
                self._known[frame.name] = self.recognizer.recognize_frame(frame)
            answer = self._known[frame.name]
        self.candidates.append(len(answer.matches))
        return answer


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("map", type=Path)
    parser.add_argument("drive", type=Path)
    parser.add_argument("--tolerance", type=int, help="Frames within which an answer is right.")
    parser.add_argument("--poses", type=Path, nargs=2, help="Pose files of map and drive, in place of --tolerance.")
    parser.add_argument("--radius", type=float, default=6.0, help="Metres within which an answer is right.")
    parser.add_argument("--model", type=Path, help="Bundle; the default model's without one.")
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--stretch", type=int, default=25, help="Pictures from one kidnapping to the next.")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        if args.poses is None:
            benchmark = load_folders(args.map, args.drive, args.tolerance)
        else:
            benchmark = load_robot(args.map, args.drive, args.radius, Path(folder), args.poses)
        db = Path(folder) / "map"
        build_map(args.map, db, model=args.model, poses=None if args.poses is None else args.poses[0])
        finder = PlaceFinder(None if args.poses is None else args.poses[1])
        frames = [
            Frame(name, None, load_picture(path), None, 0.0, pose=finder.find_place(name, path).pose)
            for name, path in benchmark.queries
        ]
        with PlaceRecognizer.open(db, device="cpu", top_k=min(args.top_k, len(benchmark.database)), exact=True) as vpr:
            asked = Remembering(vpr)
            results: dict[str, Any] = {
                "preset": vpr.model.bundle.info.preset,
                "map": len(vpr.map),
                "queries": len(frames),
                "top_k": vpr.top_k,
            }
            order = carried_about(len(frames), args.stretch)
            for track in (False, True):
                results["tracked" if track else "whole map"] = {
                    "in order": run(asked, benchmark, frames, range(len(frames)), 0, track),
                    "carried about": run(asked, benchmark, frames, order, args.stretch, track),
                }
    print(json.dumps(results, indent=1, allow_nan=False))


def carried_about(count: int, stretch: int) -> list[int]:
    """Return the numbers of the pictures with their stretches in an order in which none follows its neighbour."""
    starts = list(range(0, count - stretch + 1, stretch))
    return [i for start in [*starts[1::2], *starts[0::2]] for i in range(start, start + stretch)]


def run(
    asked: Remembering, benchmark: Benchmark, frames: Sequence[Frame], order: Sequence[int], stretch: int, track: bool
) -> dict[str, Any]:
    """Follow the frames in this order. Return recall in percent, candidates, and pictures until the robot is found."""
    asked.candidates.clear()
    follower = Follower(asked, track=track)  # type: ignore[arg-type]
    single, right = [], []
    for number in order:
        answer = follower.recognize_frame(frames[number])
        assert answer.sequence is not None
        names = {benchmark.database[row][0] for row in benchmark.positives[number]}
        single.append(answer.best.name in names)
        right.append(answer.sequence.name in names)
    found = {
        "recall_single": round(100 * float(np.mean(single)), 1),
        "recall_sequence": round(100 * float(np.mean(right)), 1),
        "candidates_mean": round(float(np.mean(asked.candidates)), 1),
        "candidates_median": float(np.median(asked.candidates)),
    }
    if not stretch:
        return found
    waits = [first_pair(right[start : start + stretch]) for start in range(stretch, len(right), stretch)]
    return found | {"pictures_until_found": waits}


def first_pair(right: Sequence[bool]) -> int | None:
    """Return the number of pictures before the first two in a row that are right, None without such a pair."""
    return next((i for i in range(len(right) - 1) if right[i] and right[i + 1]), None)


if __name__ == "__main__":
    main()
